"""Segmentation: its losses by their formulas, counts and masks that move against other libraries, its paired test."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.segmentation import DiceScore

from isoconv.data import Task as DataInfo
from isoconv.evaluation.protocols import PROTOCOLS, Condition, conditions
from isoconv.symmetry import circular_mask
from isoconv.tasks import Segmentation
from isoconv.tasks.segmentation import segmentation_loss

TASK = Segmentation(DataInfo("tiny", "Tiny", "segmentation", 2, 1, ("background", "b", "c"), (0, 0, 4), "MIT"))


def masks(images: int = 4, side: int = 12) -> Tensor:
    return torch.randint(3, (images, side, side)).to(torch.uint8)


def blobs(images: int = 4, side: int = 24) -> Tensor:
    """Masks of smooth outlines."""
    waves = torch.randn(images, 3, side // 6, side // 6)
    return F.interpolate(waves, (side, side), mode="bicubic").argmax(1).to(torch.uint8)


def sure(labels: Tensor) -> Tensor:
    """Logits of a network that gives these labels."""
    return 50.0 * F.one_hot(labels.long(), 3).movedim(-1, 1)


def named(name: str, protocol: str = "standard") -> Condition:
    return next(position for position in conditions(protocol, 2) if position.name == name)


# Losses


def test_loss_of_perfect_and_of_wrong_logits() -> None:
    labels = masks()
    assert segmentation_loss(sure(labels), labels) < 1e-5
    assert segmentation_loss(-sure(labels), labels) > 25


def test_dice_part_of_the_loss_by_hand() -> None:
    labels = torch.tensor([[[0, 1]]])
    logits = torch.zeros(1, 2, 1, 2)  # one half everywhere: overlap 1/2, sizes 1 and 1, smoothed by 1
    assert TASK.losses["dice"](logits, labels).item() == pytest.approx(1 - 2 / 3)
    assert segmentation_loss(logits, labels).item() == pytest.approx(math.log(2) + 1 - 2 / 3)


def test_losses_by_their_formulas() -> None:
    logits, labels = torch.randn(4, 3, 12, 12), masks()
    share = np.moveaxis(logits.double().softmax(1).numpy(), 1, -1).reshape(-1, 3)
    truth = np.eye(3)[labels.flatten().numpy()]
    entropy = -(truth * np.log(share)).sum(1).mean()
    dice = 1 - np.mean((2 * (share * truth).sum(0) + 1) / (share.sum(0) + truth.sum(0) + 1))
    expected = {"dice_ce": entropy + dice, "cross_entropy": entropy, "dice": dice}
    got = {name: loss(logits, labels).item() for name, loss in TASK.losses.items()}
    assert got == pytest.approx(expected, rel=1e-5)
    assert next(iter(got)) == "dice_ce"


def test_every_second_batch_is_cut_to_the_disc() -> None:
    """Then neither images nor labels outside of it change the loss."""

    class Pixels(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images, 1 - images, images.mean((2, 3), keepdim=True).expand_as(images)], 1)

    images, labels, loss = torch.rand(4, 1, 12, 12), masks(), TASK.losses["dice_ce"]
    outside = ~circular_mask((12, 12))
    others = torch.where(outside, torch.rand(4, 1, 12, 12), images), torch.where(outside, (labels + 1) % 3, labels)
    for step, same in enumerate([False, True, False, True]):
        one, other = (TASK.training_loss(Pixels(), loss, *each, step) for each in ((images, labels), others))
        assert (one.item() == other.item()) is same


# Counts


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_records_count_pixels(seed: int, turned: bool, cut: bool) -> None:
    torch.manual_seed(seed)
    logits, labels, upright = torch.randn(2, 3, 6, 5), torch.randint(3, (2, 6, 5)), torch.randint(3, (2, 6, 5))
    inside = torch.rand(6, 5) > 0.5
    found = logits.argmax(1)
    other = upright if turned else found
    kept = TASK.record(logits, labels, upright if turned else None, inside if cut else None)
    pixels = [(i, j) for i in range(6) for j in range(5) if not cut or inside[i, j]]
    for image in range(2):
        values = [tuple(x[image, i, j].item() for x in (found, labels, other)) for i, j in pixels]
        for label in range(3):
            p, t, u = ([value[k] == label for value in values] for k in range(3))
            overlaps = [sum(map(int.__and__, map(int, p), map(int, each))) for each in (t, u)]
            assert kept[image, label].tolist() == [overlaps[0], sum(p), sum(t), overlaps[1], sum(u)]


def test_dice_is_that_of_torchmetrics() -> None:
    found, labels = torch.stack([masks(), masks(), masks()]), masks()
    kept = torch.stack([TASK.record(sure(each), labels, found[0]) for each in found])
    rows, _ = TASK.table(kept, labels)
    whole = DiceScore(3, average="none", aggregation_level="global", input_format="index")
    alone = DiceScore(3, average="macro", include_background=False, input_format="index")
    for i, row in enumerate(rows):
        expected = whole(found[i].long(), labels.long())
        assert list(row["classes"]) == ["background", "b", "c"]
        assert list(row["classes"].values()) == pytest.approx(expected.tolist())
        assert row["dice"] == pytest.approx(expected[1:].mean().item())
        each = [alone(found[i, [n]].long(), labels[[n]].long()).item() for n in range(4)]
        assert TASK.by_image(kept, labels)[i].tolist() == pytest.approx(each)
        each = [alone(found[i, [n]].long(), found[0, [n]].long()).item() for n in range(4)]
        assert TASK.agreements(kept)[i].tolist() == pytest.approx(each)


def test_what_has_no_dice() -> None:
    """Nothing but background in mask and answer: no score; two such answers are the same."""
    empty = torch.zeros(1, 4, 4, dtype=torch.uint8)
    kept = TASK.record(sure(empty), empty)[None]
    assert TASK.by_image(kept, empty).isnan().all()
    assert TASK.agreements(kept).tolist() == [[1]]
    (row,), resampled = TASK.table(kept, empty)
    assert (row["dice"], row["dice_ci"], row["classes"]) == (None, None, {"background": 1, "b": None, "c": None})
    assert resampled.isnan().all()
    assert TASK.validation(kept[0], empty) == {"val_dice": None}
    assert TASK.goodness({"val_dice": None, "val_loss": 0.1}) < TASK.goodness({"val_dice": 0.0, "val_loss": 9.0})
    assert TASK.summary({"val_dice": None}) == "dice -"
    assert TASK.notes(kept[0], empty) == [
        "no mask of the test set holds b, c",
        "every pixel is taken for background, whatever it shows: that this is invariant says nothing",
    ]


def test_best_epoch_has_the_highest_dice_and_then_the_lowest_loss() -> None:
    epochs = [{"val_dice": d, "val_loss": x} for d, x in ((0.9, 1.0), (0.9, 2.0), (0.8, 0.1), (None, 0.0))]
    assert sorted(epochs, key=TASK.goodness, reverse=True) == epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda counts: counts.astype(float), "whole numbers"),
        (lambda counts: counts[..., :2, :], "3 classes, 5"),
        (lambda counts: counts[..., :3], "3 classes, 5"),
        (lambda counts: -counts, "cannot be"),
        (lambda counts: counts + np.array([1, 0, 0, 0, 0]) * 145, "cannot be"),
        (lambda counts: counts + np.array([0, 0, 0, 1, 0]) * 145, "cannot be"),
    ],
)
def test_counts_that_cannot_be(change: object, message: str) -> None:
    counts = torch.stack([TASK.record(sure(masks()), masks())] * 2).numpy()
    assert TASK.check_records(counts, None) is None
    assert message in TASK.check_records(change(counts), None)


# Masks that move


@pytest.mark.parametrize("side", [9, 12])
def test_masks_move_with_the_image_by_quarter_turns_and_flips(side: int) -> None:
    labels = masks(side=side)
    expected = {"rot0": labels, "rot90": labels.rot90(1, (1, 2)), "rot180": labels.rot90(2, (1, 2))}
    expected |= {"flip_h": labels.flip(1), "flip_w": labels.flip(2)}
    for name, moved in expected.items():
        for protocol in PROTOCOLS:
            assert torch.equal(TASK.moved(labels, named(name, protocol)), moved.long()), (name, protocol)
    assert torch.equal(TASK.moved(labels, named("upright_unmasked")), labels.long())


@pytest.mark.parametrize("angle", [10, 40, 200])
def test_masks_move_by_any_angle_as_scipy_moves_them(angle: int) -> None:
    labels, options = blobs(), {"reshape": False, "order": 1, "mode": "grid-constant"}
    foreground = F.one_hot(labels.long(), 3)[..., 1:].double().numpy()
    shares = ndimage.rotate(foreground, angle, (2, 1), **options)
    shares = np.concatenate([1 - shares.sum(-1, keepdims=True), shares], -1)
    second, first = np.sort(shares)[..., 1:].transpose(3, 0, 1, 2)
    clear = torch.from_numpy(first - second > 1e-3)
    assert clear.double().mean() > 0.98
    expected = torch.from_numpy(shares.argmax(-1))
    assert torch.equal(TASK.moved(labels, named(f"rot{angle}"))[clear], expected[clear])
    assert not torch.equal(TASK.moved(labels, named(f"rot{360 - angle}"))[clear], expected[clear])


def test_noise_does_not_move_a_mask_and_what_comes_from_outside_is_background() -> None:
    labels = 1 + masks() % 2
    noisy, rotated = named("rot30_noisy", "disturbed"), named("rot30", "disturbed")
    assert torch.equal(TASK.moved(labels, noisy), TASK.moved(labels, rotated))
    corners = TASK.moved(labels, named("rot40", "official"))
    assert corners[:, 0, 0].tolist() == [0] * 4
    assert (corners[:, 4:8, 4:8] > 0).all()


# Pairs


def test_permutations_by_counting() -> None:
    """Of 6 images there are 64 ways to swap the masks of two networks."""
    labels = masks(6)
    answers = [torch.where(torch.rand(3, 6, 12, 12) < share, labels, masks(6)) for share in (0.5, 0.45)]
    kept = [torch.stack([TASK.record(sure(each), labels) for each in found]) for found in answers]
    tests = TASK.paired(*(TASK.prepared(each, labels) for each in kept))
    metric = DiceScore(3, include_background=False, average="macro", aggregation_level="global", input_format="index")

    def scores(found: Tensor) -> Tensor:
        upright, *turned = (metric(each.long(), labels.long()) for each in found)
        return torch.stack([upright, torch.stack(turned).mean()])

    differences = []
    for number in range(64):
        swapped = torch.tensor([number >> i & 1 for i in range(6)], dtype=torch.bool)[:, None, None]
        one, other = (torch.where(swapped, *pair) for pair in (answers[::-1], answers))
        differences.append((scores(one) - scores(other)).abs())
    reached = (torch.stack(differences) >= differences[0] - 1e-6).double().mean(0)
    assert [tests["upright_p"], tests["rotated_mean_p"]] == pytest.approx(reached.tolist(), abs=0.02)


# Answers


def test_answers() -> None:
    labels = torch.tensor([[[0, 0, 1, 2]]])
    (answer,) = TASK.answers(sure(labels))
    assert answer["mask"].tolist() == labels[0].tolist()
    assert answer["shares"] == {"background": 0.5, "b": 0.25, "c": 0.25}
    assert TASK.columns(answer) == {"share of background": 0.5, "share of b": 0.25, "share of c": 0.25}
    assert TASK.shown(answer) == {"background": "50.0 %", "b": "25.0 %", "c": "25.0 %"}
    curves = {score.title: value for score, value in TASK.curves(answer, answer, 0.75)}
    assert curves == {"same mask as upright (Dice)": 0.75, "share of b": 0.25, "share of c": 0.25}
    assert (TASK.said(answer), TASK.told(labels[0])) == ("", "")


@pytest.mark.parametrize(("dims", "shape"), [(2, "(N, 3, H, W)"), (3, "(N, 3, D, H, W)")])
def test_the_shape_of_outputs_in_words(dims: int, shape: str) -> None:
    info = DataInfo("tiny", "Tiny", "segmentation", dims, 1, ("background", "b", "c"), (0, 0, 4), "MIT")
    assert Segmentation(info).output_shape == shape


def test_test_sets_are_told_apart_by_their_pixels() -> None:
    labels = masks()
    assert TASK.identity(labels).tolist() == [np.bincount(each.flatten(), minlength=3).tolist() for each in labels]
