"""Training: what it writes, how it learns, and that it never sees the test images."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isoconv.data import DeviceBatches, Split
from isoconv.runs import RunDir
from isoconv.symmetry import circular_mask
from isoconv.training.loop import TrainConfig, train

Learned = Callable[[RunDir], list[dict]]
Files = Callable[[RunDir], dict[Path, bytes]]
Made = Callable[..., SimpleNamespace]


# What a training writes


def test_a_run_is_complete_and_its_network_scores_as_recorded(config: TrainConfig, data: SimpleNamespace) -> None:
    run = train(config)
    lines = run.metrics()
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    names = "epoch lr train_loss val_loss val_auc val_acc val_balanced_acc seconds images_per_second"
    assert all(list(line) == names.split() for line in lines)
    assert not list(run.path.rglob("*.tmp"))

    best = max(lines, key=lambda line: (line["val_auc"], -line["val_loss"]))
    assert run.model_info["epoch"] == best["epoch"]
    with torch.no_grad():
        logits = run.load_model()(data.val.images.float() / 255)
    assert torch.nn.functional.cross_entropy(logits, data.val.labels).item() == pytest.approx(
        best["val_loss"], rel=1e-5
    )
    assert (logits.argmax(1) == data.val.labels).float().mean().item() == pytest.approx(best["val_acc"])


def test_defaults_are_resolved_in_the_saved_config(config: TrainConfig, data: SimpleNamespace) -> None:
    saved = train(replace(config, epochs=1, batch_size=None)).config
    assert (saved.batch_size, saved.lr) == (128, 2e-2)


def test_volumes(config: TrainConfig, data: SimpleNamespace, made: Made) -> None:
    vars(data).update(vars(made(3)))
    run = train(replace(config, model="sre_resnet18_3d", epochs=1, batch_size=None))
    assert (run.config.batch_size, run.config.lr) == (4, 1e-2)
    assert run.load_model()(torch.rand(1, 1, 8, 8, 8)).shape == (1, 2)


def test_recipe_official_trains_at_32_pixels(config: TrainConfig, data: SimpleNamespace) -> None:
    images = {
        "train": torch.zeros(20, 1, 28, 28, dtype=torch.uint8),
        "val": torch.zeros(10, 1, 28, 28, dtype=torch.uint8),
    }
    for name, pixels in images.items():
        setattr(data, name, Split(pixels, getattr(data, name).labels))
    run = train(replace(config, recipe="official", size=28, epochs=1, model="resnet18"))
    assert run.model_info["input_size"] == 32
    assert not run.model_info["masked"]


def test_recipe_standard_preconditions_the_gradients(config: TrainConfig, tmp_path: Path, learned: Learned) -> None:
    runs = {
        chosen: train(replace(config, out=tmp_path / str(chosen), epochs=1, precondition=chosen))
        for chosen in (None, True, False)
    }
    assert learned(runs[None]) == learned(runs[True]) != learned(runs[False])
    assert runs[None].config.precondition


def test_recipe_standard_shows_the_network_the_inscribed_disc_only(config: TrainConfig) -> None:
    model = train(replace(config, epochs=1)).load_model()
    images = torch.rand(2, 1, 8, 8)
    outside = ~circular_mask((8, 8))
    assert torch.equal(model(images), model(images + outside))
    assert not torch.equal(model(images), model(images + 0.1))


def test_mixed_precision_on_the_cpu(config: TrainConfig) -> None:
    run = train(replace(config, epochs=1, precision="bf16-mixed"))
    assert math.isfinite(run.metrics()[0]["val_loss"])
    assert {value.dtype for value in run.load_model().parameters()} == {torch.float32}


def test_half_precision_on_the_cpu_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="precision 16-mixed needs a GPU; use --precision bf16-mixed"):
        train(replace(config, precision="16-mixed"))
    assert not config.out.exists()


def test_the_seed_decides_everything(config: TrainConfig, tmp_path: Path, learned: Learned) -> None:
    first, again, other = (
        train(replace(config, out=tmp_path / name, seed=seed, epochs=1))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert learned(first) == learned(again)
    assert (first.path / "model.safetensors").read_bytes() == (again.path / "model.safetensors").read_bytes()
    assert learned(first) != learned(other)


def test_no_noise_on_the_way(config: TrainConfig, capfd: pytest.CaptureFixture[str]) -> None:
    train(replace(config, epochs=1))
    assert capfd.readouterr() == ("", "")


# What is learned from, and how


def test_images_come_in_a_new_order_each_epoch(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[list[int]] = []

    def watched(self: DeviceBatches) -> Any:
        labels: list[int] = []
        if self.shuffle:
            epochs.append(labels)
        for batch in original(self):
            labels += batch[1].tolist()
            yield batch

    original = DeviceBatches.__iter__
    monkeypatch.setattr(DeviceBatches, "__iter__", watched)
    train(config)
    assert len({tuple(labels) for labels in epochs}) == 3


# Choosing the best epoch


def test_a_single_label_leaves_accuracy_to_choose(
    config: TrainConfig, data: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    data.val = Split(data.val.images, torch.zeros(10, dtype=torch.int64))
    caplog.set_level(logging.INFO, "isoconv")
    lines = train(config).metrics()
    assert [line["val_auc"] for line in lines] == [None] * 3
    assert "no AUC, a class is absent from the validation split" in caplog.text
