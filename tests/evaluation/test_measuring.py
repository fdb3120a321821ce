"""Measuring: what is said of networks whose answers are known, and of their invariance, for every kind of task."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import isoconv
from isoconv.data import Split, Task
from isoconv.evaluation.measuring import measure, multiply_adds
from isoconv.tasks import task_of
from isoconv.tasks.metrics import decide

TASK = Task("tiny", "Tiny", "binary", 2, 1, ("dark", "bright"), (0, 0, 8), "MIT")
MASKS = replace(TASK, kind="segmentation", labels=("background", "grey", "white"))


class Mean(nn.Module):
    """Sees nothing but brightness: the same in every position that keeps all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        return torch.stack([0.2 - brightness, brightness - 0.2], 1)


class TopHalf(nn.Module):
    """Compares the top half of an image with the bottom half."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        difference = (x[:, :, :half].flatten(1).mean(1) - x[:, :, half:].flatten(1).mean(1)) * 10
        return torch.stack([-difference, difference], 1)


def split(count: int = 8) -> Split:
    """Images that are bright at the top where the label is 1, else at the bottom; a little noise."""
    labels = torch.arange(count) % 2
    images = torch.randint(0, 20, (count, 1, 9, 9))
    images[labels == 1, :, :4] += 200
    images[labels == 0, :, 5:] += 200
    return Split(images.to(torch.uint8), labels)


# What it says about invariance


def test_a_network_that_looks_up_is_lost_when_turned() -> None:
    scores, logits, _ = measure(TopHalf(), task_of(TASK), split(), "standard")
    assert logits.shape == (39, 8, 2)
    assert scores["summary"]["upright"] == 1
    rows = {row["name"]: row for row in scores["conditions"]}
    assert rows["rot180"]["accuracy"] == rows["flip_h"]["accuracy"] == 0
    assert rows["flip_w"]["accuracy"] == 1
    assert scores["summary"]["always_right"] == scores["summary"]["constant"] == 0
    assert scores["summary"]["drop"] == pytest.approx(1 - scores["summary"]["rotated_mean"])


def test_masked_and_unmasked_upright_are_told_apart() -> None:
    """Brightness falls with the corners."""
    images = torch.full((4, 1, 9, 9), 55, dtype=torch.uint8)
    images[2:] = 20
    scores, *_ = measure(Mean(), task_of(TASK), Split(images, torch.tensor([1, 1, 0, 0])), "standard")
    assert scores["summary"]["upright_unmasked"] == 1
    assert scores["summary"]["upright"] == 0.5
    assert scores["notes"] == [
        "every image is decided as 'dark', whatever it shows: that this is invariant says nothing"
    ]


def test_several_labels_per_image() -> None:
    task = replace(TASK, kind="multilabel")
    images, labels = split().images, torch.stack([1 - split().labels, split().labels], 1)
    scores, logits, _ = measure(TopHalf(), task_of(task), Split(images, labels), "official")
    assert scores["summary"]["upright"] == 1
    assert scores["summary"]["rotated_worst"] == 0
    decided = decide("multilabel", logits)
    assert scores["conditions"][18]["angle"] == 180
    assert scores["conditions"][18]["consistency"] == (decided[18] == decided[0]).all(-1).double().mean().item() == 0


def test_class_absent_from_the_test_split() -> None:
    """It is said, and whatever would need the class is left out."""
    part = split()
    scores, *_ = measure(TopHalf(), task_of(TASK), Split(part.images[1::2], part.labels[1::2]), "standard")
    assert scores["summary"]["upright"] == 1
    assert scores["summary"]["upright_auc"] is None
    assert scores["summary"]["rotated_auc"] is None
    assert scores["conditions"][0]["recall"] == [None, 1.0]
    assert scores["notes"] == [
        "no image of the test set is labelled 'dark': without recall and AUC, left out of means over classes",
        "every image of the test set is labelled 'bright': without AUC",
    ]
    json.dumps(scores, allow_nan=False)


def test_images_are_resized_before_they_are_turned() -> None:
    seen = []

    class Watch(Mean):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape)
            return super().forward(x)

    measure(Watch(), task_of(TASK), split(), "official", size=12, batch_size=3)
    assert {shape[2:] for shape in seen} == {(12, 12)}
    assert [shape[0] for shape in seen[:: len(seen) // 3]] == [3, 3, 2]


def test_mode_of_every_module_is_restored() -> None:
    model = nn.Sequential(nn.Dropout(), Mean()).train()
    model[1].eval()
    images = split()
    first, again = (measure(model, task_of(TASK), images, "official")[1] for _ in range(2))
    assert torch.equal(first, again)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


# Masks


class Shade(nn.Module):
    """Gives each pixel the label of its shade, black, grey or white."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x - torch.tensor([0.0, 0.5, 1.0]).view(1, 3, *[1] * (x.dim() - 2))).abs()


class Blind(nn.Module):
    """Sees nothing but background."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[2:])


def shaded(labels: Tensor) -> Split:
    """Images whose shades are the labels."""
    return Split(torch.tensor([0, 128, 255], dtype=torch.uint8)[labels.long()][:, None], labels)


def squares(side: int = 16) -> Tensor:
    labels = torch.zeros(4, side, side, dtype=torch.uint8)
    labels[:, 4:9, 5:12], labels[:, 9:13, 3:7] = 1, 2
    return labels


@pytest.mark.parametrize("protocol", ["standard", "official", "disturbed"])
def test_dice_of_perfect_masks_is_one(protocol: str) -> None:
    """The masks turn with the images: by right angles exactly, else to the rounding of edges."""
    values, counts, targets = measure(Shade(), task_of(MASKS), shaded(squares()), protocol)
    summary = values["summary"]
    assert summary["upright"] == summary["right_angles"] == summary["flips"] == 1
    assert 0.5 < summary["rotated_worst"] < 1
    assert summary["consistency"] > 0.8
    assert counts.shape == (len(values["conditions"]), 4, 3, 5)
    assert targets.tolist() == [[16 * 16 - 51, 35, 16]] * 4
    for label in ("grey", "white"):
        assert values["classes"][label]["upright"] == 1 >= values["classes"][label]["rotated_mean"]


def test_masks_that_do_not_turn_with_the_image_are_wrong() -> None:
    class Stays(Shade):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(shaded(squares()).images[: len(x)] / 255)

    values, *_ = measure(Stays(), task_of(MASKS), shaded(squares()), "official")
    rows = {row["name"]: row for row in values["conditions"]}
    assert rows["rot0"]["dice"] == rows["rot360"]["dice"] == 1
    turned = squares().rot90(2, (1, 2))
    for i, label in enumerate(("grey", "white"), start=1):
        overlap = ((turned == i) & (squares() == i)).sum().item()
        expected = 2 * overlap / (2 * (squares() == i).sum().item())
        assert rows["rot180"]["classes"][label] == pytest.approx(expected)
    assert rows["rot180"]["consistency"] == pytest.approx(rows["rot180"]["dice"])


def test_a_class_that_is_nowhere_has_no_dice() -> None:
    """Nothing but background in the masks, and a network that sees nothing else."""
    labels = torch.zeros(4, 16, 16, dtype=torch.uint8)
    values, *_ = measure(Blind(), task_of(MASKS), shaded(labels), "standard")
    json.dumps(values, allow_nan=False)
    assert values["classes"]["background"]["upright"] == 1
    assert set(values["classes"]["grey"].values()) == {None}
    assert values["summary"].pop("consistency") == 1
    assert set(values["summary"].values()) == {None}
    assert values["notes"] == [
        "no mask of the test set holds grey, white",
        "every pixel is taken for background, whatever it shows: that this is invariant says nothing",
    ]


def test_pixels_outside_of_the_disc_do_not_count() -> None:
    """In masked positions: the network sees black there."""
    labels = squares()
    labels[:, 0, 0] = 2
    values, counts, _ = measure(Shade(), task_of(MASKS), shaded(labels), "standard")
    assert values["summary"]["upright"] == values["summary"]["upright_unmasked"] == 1
    whole, inside = counts[-1, 0, :, 2], counts[0, 0, :, 2]
    assert whole.tolist() == [16 * 16 - 52, 35, 17]
    assert inside[1:].tolist() == [35, 16]
    assert inside.sum() < whole.sum()


# Cost


def test_multiply_adds_by_hand() -> None:
    net = nn.Sequential(
        isoconv.SREConv2d(3, 4, 5, padding=2, bands=3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    plain = 6 * 5 * 5 * 2 * 9 + 2 * 6
    assert multiply_adds(net, torch.zeros(1, 3, 10, 10)) == {
        "multiply_adds_dense": 4 * 100 * 3 * 25 + plain,
        "multiply_adds_banded": 4 * 100 * 3 * 3 + plain,
    }
    assert not any(module._forward_hooks for module in net.modules())


# Bad input


def test_empty_test_split() -> None:
    with pytest.raises(ValueError, match="the test split of tiny is empty; there is nothing to evaluate"):
        measure(Mean(), task_of(TASK), Split(torch.zeros(0, 1, 9, 9, dtype=torch.uint8), torch.zeros(0).long()))


def test_labels_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 0\.\.7; check the data set"):
        measure(Mean(), task_of(TASK), Split(split().images, torch.arange(8)))


@pytest.mark.parametrize(
    ("count", "dtype"), [(8, torch.float32), (7, torch.uint8)], ids=["floats", "one label too many"]
)
def test_images_that_would_be_shown_wrongly(count: int, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="expected uint8 images, 0 to 255, and as many labels, got .* and 8 labels"):
        Split(torch.zeros(count, 1, 9, 9, dtype=dtype), torch.arange(8))


@pytest.mark.parametrize("info", [TASK, MASKS], ids=lambda info: info.kind)
def test_outputs_that_are_not_finite(info: Task) -> None:
    """Of one image, in one position."""

    class Diverges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = (Mean() if info is TASK else Shade()), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            outputs = self.net(x)
            outputs[2, 1] = float("nan") if self.calls == 4 else 0.5
            return outputs

    images = split() if info is TASK else shaded(squares())
    expected = rf"outputs for 1 of {len(images)} images in position rot30 are not finite; .* train again with a lower"
    with pytest.raises(ValueError, match=expected):
        measure(Diverges(), task_of(info), images)


@pytest.mark.parametrize(
    ("info", "needed"),
    [
        (replace(TASK, labels=("a", "b", "c")), r"\(8, 2\), binary needs \(N, 3\)"),
        (MASKS, r"segmentation needs \(N, 3, H"),
    ],
)
def test_network_of_another_number_of_outputs(info: Task, needed: str) -> None:
    with pytest.raises(ValueError, match=f"the network gives outputs .*{needed}.*; evaluate it on the data that it"):
        measure(Mean(), task_of(info), split())
