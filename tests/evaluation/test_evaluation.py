"""Evaluation: what it writes agrees with itself and with the network, and what is broken is refused before any work."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.segmentation import DiceScore

import isoconv.evaluation.measuring as evaluation
from isoconv.data import load
from isoconv.evaluation.measuring import evaluate
from isoconv.evaluation.protocols import DISTURBANCES, PROTOCOLS, conditions
from isoconv.evaluation.results import load_predictions
from isoconv.runs import RunDir
from isoconv.symmetry import circular_mask
from isoconv.tasks.metrics import classification_metrics

Evaluated = Callable[[str], RunDir]
EVERY_RUN = pytest.mark.parametrize("name", ["sre", "plain", "volumes", "masks/sre", "masks/plain", "masks/volumes"])
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)


def files(run: RunDir) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


# What an evaluation writes


@pytest.mark.parametrize("name", ["sre", "plain", "volumes"])
@EVERY_PROTOCOL
def test_results_and_predictions_agree(evaluated: Evaluated, name: str, protocol: str) -> None:
    run = evaluated(name)
    entry = run.results()[protocol]
    arrays = load_predictions(run)
    logits, labels, names = (arrays[f"{protocol}_{array}"] for array in ("logits", "labels", "conditions"))
    test = load(run.config.data, size=16).test
    assert np.array_equal(labels, test.labels.numpy())
    positions = conditions(protocol, run.task.info.dims)
    assert [row["name"] for row in entry["conditions"]] == names.tolist() == [p.name for p in positions]
    decisions = logits.argmax(-1)
    for row, decided in zip(entry["conditions"], decisions, strict=True):
        assert row["accuracy"] == pytest.approx((decided == labels).mean())
        assert row["consistency"] == pytest.approx((decided == decisions[0]).mean())
        assert row["recall"] == pytest.approx([(decided == c)[labels == c].mean() for c in range(labels.max() + 1)])
        assert row["accuracy_ci"][0] <= row["accuracy"] <= row["accuracy_ci"][1]
    scores = classification_metrics("multiclass", torch.from_numpy(logits[0]), torch.from_numpy(labels))
    assert entry["upright"] == {key: value for key, value in scores.items() if key != "notes"}


@pytest.mark.parametrize("name", ["masks/sre", "masks/plain", "masks/volumes"])
@EVERY_PROTOCOL
def test_masks_and_counts_agree(evaluated: Evaluated, name: str, protocol: str) -> None:
    """Counts are summed by hand, and those of masks compared with the data."""
    run = evaluated(name)
    entry, arrays = run.results()[protocol], load_predictions(run)
    counts, pixels, names = (arrays[f"{protocol}_{array}"] for array in ("counts", "labels", "conditions"))
    positions = conditions(protocol, run.task.info.dims, run.masked)
    assert [row["name"] for row in entry["conditions"]] == names.tolist() == [p.name for p in positions]
    assert counts.shape == (len(positions), 4, 3, 5)
    masks = load(run.config.data, size=16).test.labels
    assert np.array_equal(pixels, [np.bincount(mask.flatten(), minlength=3) for mask in masks])
    seen = masks[:, circular_mask(masks.shape[1:])] if positions[0].inside else masks
    assert np.array_equal(counts[0, ..., 2], [np.bincount(mask.flatten(), minlength=3) for mask in seen])
    for row, of_images in zip(entry["conditions"], counts, strict=True):
        overlap, found, true, *_ = of_images.sum(0).T
        dice = 2 * overlap / (found + true)
        assert list(row["classes"].values()) == pytest.approx(dice.tolist())
        assert row["dice"] == pytest.approx(dice[1:].mean())
        assert row["dice_ci"][0] <= row["dice"] <= row["dice_ci"][1]
    for label, summary in entry["classes"].items():
        assert summary["upright"] == pytest.approx(entry["conditions"][0]["classes"][label], abs=1e-4)
        assert summary["upright_ci"] == entry["conditions"][0]["classes_ci"][label]


@EVERY_RUN
@EVERY_PROTOCOL
def test_summary_follows_from_the_table(evaluated: Evaluated, name: str, protocol: str) -> None:
    run = evaluated(name)
    entry, task = run.results()[protocol], run.task
    table, summary = entry["conditions"], entry["summary"]
    positions = conditions(protocol, task.info.dims, run.masked)
    main = {row["name"]: row[task.main.key] for row in table}
    if protocol == "official":
        main = {key: round(100 * value, 2) / 100 for key, value in main.items()}
    rotated = [main[p.name] for p in positions if p.group == "rotation"]
    expected = {
        "upright": main[positions[0].name],
        "rotated_mean": mean(rotated),
        "rotated_std": np.std(rotated),
        "rotated_worst": min(main[p.name] for p in positions if p.group in ("rotation", "cube")),
        "drop": main[positions[0].name] - mean(rotated),
        "right_angles": mean(main[p.name] for p in positions if p.right_angle),
        "flips": mean(main[p.name] for p in positions if p.group == "flip"),
    }
    turned = [row for row, p in zip(table, positions, strict=True) if p.group == "rotation"]
    groups = {"rotated": turned}
    for group in DISTURBANCES if protocol == "disturbed" else ():
        groups[group] = [row for row in table if row["group"] == group]
        expected[group] = mean(row[task.main.key] for row in groups[group])
        expected[f"{group}_consistency"] = mean(row["consistency"] for row in groups[group])
    for score in task.others:
        expected |= {f"{group}_{score.key}": mean(row[score.key] for row in rows) for group, rows in groups.items()}
        expected[f"upright_{score.key}"] = table[0][score.key]
    expected["consistency"] = mean(row["consistency"] for row in turned)
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert main[summary["rotated_worst_at"]] == summary["rotated_worst"]
    for group in ("upright", "rotated_mean", "right_angles", "flips"):
        low, high = summary[f"{group}_ci"]
        assert 0 <= low <= summary[group] + 1e-4  # the official protocol rounds
        assert summary[group] - 1e-4 <= high <= 1


@pytest.mark.parametrize("name", ["sre", "plain", "volumes"])
def test_what_all_rotations_tell_is_at_most_what_the_worst_tells(evaluated: Evaluated, name: str) -> None:
    entry = evaluated(name).results()["official"]
    turned = [row for row in entry["conditions"] if row["group"] == "rotation"]
    assert entry["summary"]["always_right"] <= min(row["accuracy"] for row in turned)
    assert entry["summary"]["constant"] <= min(row["consistency"] for row in turned)


@pytest.mark.parametrize("name", ["masks/sre", "masks/volumes"])
def test_dice_is_that_of_the_masks_of_the_saved_network(evaluated: Evaluated, name: str) -> None:
    """As torchmetrics finds it on whole images, which need neither disc nor turning."""
    run = evaluated(name)
    test = load(run.config.data, size=16).test
    with torch.inference_mode():
        found = run.load_model()(test.images / 255).argmax(1)
    metric = DiceScore(3, average="none", aggregation_level="global", input_format="index")
    expected = metric(found, test.labels.long()).tolist()
    (row,) = (row for row in run.results()["standard"]["conditions"] if row["group"] == "unmasked")
    assert list(row["classes"].values()) == pytest.approx(expected, abs=1e-6)
    assert row["dice"] == pytest.approx(np.mean(expected[1:]), abs=1e-6)


@pytest.mark.parametrize("name", ["sre", "plain", "volumes"])
def test_logits_are_those_of_the_saved_network(evaluated: Evaluated, name: str) -> None:
    run = evaluated(name)
    images = load(run.config.data, size=16).test.images.float() / 255
    net = run.load_model()
    with np.load(run.path / "predictions.npz", allow_pickle=False) as archive, torch.no_grad():
        upright = torch.from_numpy(archive["official_logits"][0])
        masked = torch.from_numpy(archive["standard_logits"][0])
        torch.testing.assert_close(upright, net(images))
        torch.testing.assert_close(masked, net(images * circular_mask(images.shape[2:])))


def test_what_was_evaluated_is_recorded(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    entry = run.results()["standard"]
    labels = ["round", "elongated", "hollow", "clustered", "dense"]
    assert entry["data"] == {"name": "cells", "size": 16, "test_images": 40, "labels": labels}
    assert entry["model"]["name"] == "sre_resnet18"
    assert entry["training"]["epochs"] == 4
    assert entry["cost"]["parameters"] == sum(p.numel() for p in run.load_model().parameters())
    assert entry["cost"]["training_seconds"] > 0
    assert entry["cost"]["multiply_adds_banded"] < entry["cost"]["multiply_adds_dense"]


@pytest.mark.parametrize(("masked", "lost"), [(True, ["standard", "disturbed"]), (False, ["standard"])])
def test_the_mask_of_the_disturbed_protocol_follows_the_training(
    evaluated: Evaluated, masked: bool, lost: list[str]
) -> None:
    run = evaluated("plain")
    info = run.model_info
    (run.path / "model.json").write_text(json.dumps({**info, "masked": masked}))
    shown: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shown.append(x)
            return x.flatten(1).mean(1, keepdim=True).expand(-1, 5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "load_model", lambda _: Watch())
        results = {protocol: evaluate(run, protocol, limit=2) for protocol in PROTOCOLS}
    assert [protocol for protocol, result in results.items() if result["masked"]] == lost
    upright = load(run.config.data, size=16).test.images[:2].float() / 255
    outside = ~circular_mask((16, 16))
    names = [position["name"] for position in results["disturbed"]["conditions"]]
    seen = dict(zip(names, shown[-len(names) - 1 : -1], strict=True))  # the last counts multiply-adds
    assert torch.equal(seen["rot0"], upright * ~outside if masked else upright)
    assert all(bool(x[..., outside].any()) != masked for x in seen.values())


def test_each_protocol_keeps_what_the_other_found(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    before = run.results()
    assert list(before) == [*PROTOCOLS]
    evaluate(run, "official", limit=5)
    after = run.results()
    assert after["standard"] == before["standard"]
    assert after["official"]["data"]["test_images"] == 5
    with np.load(run.path / "predictions.npz", allow_pickle=False) as archive:
        assert archive["standard_logits"].shape == (39, 40, 5)
        assert archive["official_logits"].shape == (39, 5, 5)


@pytest.mark.parametrize("name", ["sre", "masks/sre"])
def test_evaluating_again_finds_the_same(evaluated: Evaluated, name: str) -> None:
    run = evaluated(name)
    before, summary = files(run), run.results()["standard"]["summary"]
    assert evaluate(run.path, "standard", batch_size=40) == run.results()["standard"]
    assert files(run) == before
    other = evaluate(run, "standard", batch_size=3)["summary"]  # other batches, other rounding
    main = {key: other[key] for key in ("upright", "rotated_mean", "rotated_worst", "right_angles", "flips")}
    assert main == pytest.approx({key: summary[key] for key in main}, abs=2e-3)


# What it says about invariance


@pytest.mark.parametrize("name", ["sre", "volumes", "masks/sre", "masks/volumes"])
@EVERY_PROTOCOL
def test_isotropic_network_is_the_same_at_right_angles_and_flipped(
    evaluated: Evaluated, name: str, protocol: str
) -> None:
    run = evaluated(name)
    entry, task = run.results()[protocol], run.task
    first, *others = conditions(protocol, task.info.dims, run.masked)
    rows = {row["name"]: row for row in entry["conditions"]}
    for position in others:
        if position.right_angle or position.group == "flip":
            row = rows[position.name]
            assert row[task.main.key] == pytest.approx(rows[first.name][task.main.key], abs=1e-3)
            assert row["consistency"] == pytest.approx(1, abs=2e-3)
    assert entry["summary"]["right_angles"] == pytest.approx(entry["summary"]["upright"], abs=1e-3)
    assert entry["summary"]["flips"] == pytest.approx(entry["summary"]["upright"], abs=1e-3)


@pytest.mark.parametrize("name", ["plain", "masks/plain"])
def test_plain_network_is_not(evaluated: Evaluated, name: str) -> None:
    rows = evaluated(name).results()["standard"]["conditions"]
    assert min(row["consistency"] for row in rows if row["group"] == "flip") < 0.99


# Unfinished and damaged


@pytest.mark.parametrize("name", ["plain", "masks/plain"])
def test_a_training_that_was_stopped_is_said_to_be_unfinished(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    run = evaluated(name)
    lines = run.metrics()
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: 1 / 0)  # what comes next
    for kept, said in ((4, False), (3, True)):
        run.write_metrics(lines[:kept])
        caplog.clear()
        with pytest.raises(ZeroDivisionError):
            evaluate(run)
        assert (f"{name.split('/')[-1]}: 3 of 4 epochs trained; --resume continues" in caplog.text) is said


def _broken(evaluated: Evaluated, damage: Callable[[RunDir], object], message: str, error: type[Exception]) -> None:
    """An evaluation of a damaged run fails, before any image is shown to the network, and changes no file."""
    run = evaluated("sre")
    damage(run)
    before = files(run)
    with pytest.raises(error, match=message):
        evaluate(run.path)
    assert files(run) == before


def cut(name: str) -> Callable[[RunDir], object]:
    return lambda run: (run.path / name).write_bytes((run.path / name).read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message", "error"),
    [
        (lambda run: (run.path / "config.json").unlink(), "no run at .*train one with", FileNotFoundError),
        (lambda run: (run.path / "model.json").unlink(), "not finished an epoch yet", FileNotFoundError),
        (cut("config.json"), r"config\.json is not valid JSON", ValueError),
        (cut("model.safetensors"), r"model\.safetensors is not a complete weights file", ValueError),
        (cut("predictions.npz"), r"predictions\.npz is damaged .*; delete it and evaluate again", ValueError),
        (cut("results.json"), r"results\.json is not valid JSON", ValueError),
        (
            lambda run: (run.path / "config.json").write_text('{"data": "cells"}'),
            r"config\.json lacks the entry 'model'; restore it",
            ValueError,
        ),
    ],
)
def test_damaged_run(
    evaluated: Evaluated,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[RunDir], object],
    message: str,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(evaluation, "measure", lambda *_, **__: pytest.fail("it was evaluated"))
    _broken(evaluated, damage, message, error)


def test_weights_of_another_architecture(evaluated: Evaluated) -> None:
    other = evaluated("plain").path / "model.safetensors"
    _broken(
        evaluated,
        lambda run: (run.path / "model.safetensors").write_bytes(other.read_bytes()),
        r"model.safetensors does not fit the network: conv1.weight is \(4, 3, 5, 5\), .*; copy it again",
        ValueError,
    )


def test_unknown_protocol(evaluated: Evaluated) -> None:
    with pytest.raises(ValueError, match="unknown protocol 'oficial'.* did you mean 'official'"):
        evaluate(evaluated("sre"), "oficial")


@pytest.mark.parametrize("option", ["limit", "batch_size"])
def test_numbers_below_one(evaluated: Evaluated, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        evaluate(evaluated("sre"), **{option: 0})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_without_write_permission_is_refused_before_the_work(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    run.path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written and would lose the results"):
        evaluate(run)


def test_run_that_may_not_be_written(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, also where the tests run as root."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="get permission or copy it"):
        evaluate(evaluated("sre"))


def test_full_disk_keeps_the_earlier_results(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated("sre")
    before = files(run)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"cannot write .*predictions\.npz .*; what was there before is intact"):
        evaluate(run)
    assert files(run) == before
