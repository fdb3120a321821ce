"""Training: what it writes, that it never sees the test images, and that no crash costs more than an epoch.

Run as a script, this file trains on the same tiny images, to be killed or to be one of several processes:
``python tests/training/test_training.py OUT [--resume] [--die EPOCH STEP]``.
"""

import argparse
import errno
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import isoconv.training.loop as training
from isoconv.data import KINDS, MEDMNIST, DeviceBatches, Kind, Split, Task, get_task
from isoconv.runs import OnImages, RunDir
from isoconv.symmetry import circular_mask
from isoconv.tasks import task_of
from isoconv.training import checkpoints
from isoconv.training.learner import Learner
from isoconv.training.loop import TrainConfig, cosine, resolved, train

EPOCHS, STEPS = 3, 3


class Untouchable:
    """A split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was touched: {name}")


def split(dims: int, count: int, seed: int) -> Split:
    """Bright and dark noise, labelled so."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 156, (count, 1) + (8,) * dims, generator=draw)
    return Split((noise + 100 * labels.view(-1, 1, *[1] * dims)).to(torch.uint8), labels)


def tiny_data(dims: int = 2, kind: Kind = "binary") -> SimpleNamespace:
    task = Task("tiny", "Tiny", kind, dims, 1, ("dark", "bright"), (20, 10, 10), "MIT")
    parts = {name: labelled(split(dims, count, seed), kind) for name, count, seed in (("train", 20, 0), ("val", 10, 1))}
    return SimpleNamespace(task=task, **parts, test=Untouchable(), fingerprints={})


def labelled(part: Split, kind: Kind) -> Split:
    """The images with targets of another kind."""
    if kind == "segmentation":
        return Split(part.images, (part.images[:, 0] > 100).to(torch.uint8))
    return Split(part.images, torch.stack([part.labels, 1 - part.labels], 1)) if kind == "multilabel" else part


def tiny_config(out: Path, **options: Any) -> TrainConfig:
    """Three steps an epoch: batches of 8, 8 and 4 images."""
    defaults = {"width": 2, "kernel_sizes": (3, 3, 3, 3), "epochs": EPOCHS, "batch_size": 8, "size": 8, "device": "cpu"}
    return TrainConfig("tiny", "sre_resnet18", out, **{**defaults, **options})


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tiny data set in place of every other."""
    tiny = tiny_data()
    monkeypatch.setattr(training, "find", lambda *_: (tiny.task, lambda _: tiny))
    return tiny


@pytest.fixture
def config(data: SimpleNamespace, tmp_path: Path) -> TrainConfig:
    return tiny_config(tmp_path / "run")


def script(*args: Any, processes: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this file in a process of its own, or in several that work together."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *several, __file__, *map(str, args)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads, **env})


def learned(run: RunDir) -> list[dict]:
    """The metrics without the timings."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.metrics()]


def files(run: RunDir) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


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


def test_volumes(config: TrainConfig, data: SimpleNamespace) -> None:
    vars(data).update(vars(tiny_data(3)))
    run = train(replace(config, model="sre_resnet18_3d", epochs=1, batch_size=None))
    assert (run.config.batch_size, run.config.lr) == (4, 1e-2)
    assert run.load_model()(torch.rand(1, 1, 8, 8, 8)).shape == (1, 2)


@pytest.mark.parametrize("kind", [kind for kinds in KINDS.values() for kind in kinds])
def test_every_kind_of_work_resumes_as_if_it_had_not_been_stopped(
    config: TrainConfig, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    vars(data).update(vars(tiny_data(kind=kind)))
    task = task_of(data.task)
    config = replace(config, model="sre_unet" if task.networks == "segmentation" else "sre_resnet18")
    whole = train(config)
    lines = whole.metrics()
    assert whole.model_info["epoch"] == max(range(EPOCHS), key=lambda epoch: task.goodness(lines[epoch]))
    assert whole.task.info.kind == kind
    assert (whole.config.task, whole.config.loss) == (task.name, next(iter(task.losses)))

    def stop(learner: Learner) -> None:
        if learner.current_epoch == 1:
            raise RuntimeError("power cut")

    again = replace(config, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            train(again)
    resumed = train(again, resume=True)
    assert learned(resumed) == learned(whole)
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_the_loss_that_is_asked_for_is_minimised(config: TrainConfig, tmp_path: Path) -> None:
    usual, focal = (train(replace(config, loss=loss, epochs=1, out=tmp_path / str(loss))) for loss in (None, "focal"))
    assert (usual.config.loss, focal.config.loss) == ("cross_entropy", "focal")
    assert 0 < focal.metrics()[0]["train_loss"] < usual.metrics()[0]["train_loss"]  # (1 - p)^2 of it


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


def test_recipe_standard_preconditions_the_gradients(config: TrainConfig, tmp_path: Path) -> None:
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


def test_the_seed_decides_everything(config: TrainConfig, tmp_path: Path) -> None:
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
    assert len({tuple(labels) for labels in epochs}) == EPOCHS


def test_optimiser_is_the_papers() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    learner = Learner(OnImages(net, masked=False), task_of(tiny_data().task), 2e-2, schedule=lambda _: 1.0)
    (group,) = learner.configure_optimizers()["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (2e-2, 0.9, 1e-3, False)
    assert len(group["params"]) == 4


def test_learning_rate_falls_along_half_a_cosine() -> None:
    rates = [0.02 * cosine(step, lr=0.02, steps=300, every=1) for step in range(301)]
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(1e-6 + (0.02 - 1e-6) * (1 + math.cos(math.pi * step / 300)) / 2)
    assert rates[-1] == pytest.approx(1e-6)
    by_epoch = [0.02 * cosine(step, lr=0.02, steps=300, every=3) for step in range(300)]
    assert by_epoch == [rates[step - step % 3] for step in range(300)]


@pytest.mark.parametrize(("recipe", "every"), [("standard", 1), ("official", STEPS)])
def test_recorded_learning_rate_follows_the_recipe(config: TrainConfig, recipe: str, every: int) -> None:
    lines = train(replace(config, recipe=recipe)).metrics()
    expected = [0.02 * cosine(STEPS * epoch, lr=0.02, steps=STEPS * EPOCHS, every=every) for epoch in range(EPOCHS)]
    assert [line["lr"] for line in lines] == pytest.approx(expected)


# Choosing the best epoch


def test_a_single_label_leaves_accuracy_to_choose(
    config: TrainConfig, data: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    data.val = Split(data.val.images, torch.zeros(10, dtype=torch.int64))
    caplog.set_level(logging.INFO, "isoconv")
    lines = train(config).metrics()
    assert [line["val_auc"] for line in lines] == [None] * EPOCHS
    assert "no AUC, a class is absent from the validation split" in caplog.text


# Bad input


def test_existing_run_is_refused_before_training(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(train(replace(config, epochs=1)))
    monkeypatch.setattr(training.pl.Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(FileExistsError, match="choose another --out"):
        train(config)
    assert files(RunDir(config.out)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "sre_resnet81"}, "unknown model 'sre_resnet81'.* did you mean 'sre_resnet18'"),
        (
            {"model": "sre_resnet18_3d"},
            "tiny has 2D images, network 'sre_resnet18_3d' does not; use --model sre_resnet18",
        ),
        ({"profile": "linaer"}, "unknown profile 'linaer'.* did you mean 'linear'"),
        ({"kernel_sizes": (9, 9)}, "kernel_sizes"),
        ({"loss": "focale"}, "loss of binary must be one of cross_entropy, focal, got 'focale'; did you mean 'focal'"),
        ({"model": "sre_unet"}, "network 'sre_unet' is not for classification; use --model with one of sre_resnet18,"),
    ],
)
def test_bad_option_is_refused_and_nothing_is_written(config: TrainConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(config, **change))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "vesels"}, "unknown data set 'vesels'; did you mean 'vessels'"),
        ({"data": "cells"}, "network 'sre_unet' is not for classification; use --model with one of"),
        ({"task": "classification"}, "vessels is for segmentation, not for classification; leave out --task"),
        ({"model": "sre_resnet18"}, "network 'sre_resnet18' is not for segmentation; use --model with one of sre_unet"),
        ({"model": "unet_3d"}, "vessels has 2D images, network 'unet_3d' does not; use --model unet$"),
        ({"rotate": True}, "segmentation trains by recipe standard without rotation; leave out --recipe and --rotate"),
        ({"recipe": "official"}, "leave out --recipe and --rotate"),
        ({"loss": "focal"}, "loss of segmentation must be one of dice_ce, cross_entropy, dice, got 'focal'"),
        ({"size": 8}, "at least 16 pixels"),
    ],
)
def test_options_that_do_not_fit_masks(tmp_path: Path, change: dict, message: str) -> None:
    config = TrainConfig("vessels", "sre_unet", tmp_path / "x", size=16, width=2, device="cpu")
    with pytest.raises(ValueError, match=message):
        train(replace(config, **change))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("cells", {"width": 64, "size": 28, "batch_size": 128, "lr": 2e-2, "loss": "cross_entropy"}),
        ("cells3d", {"width": 64, "size": 28, "batch_size": 4, "lr": 1e-2, "loss": "cross_entropy"}),
        ("vessels", {"width": 32, "size": 64, "batch_size": 8, "lr": 2e-2, "loss": "dice_ce"}),
        ("vessels3d", {"width": 32, "size": 64, "batch_size": 8, "lr": 1e-2, "loss": "dice_ce"}),
    ],
)
def test_what_is_left_open_is_decided_by_the_task(data: str, options: dict) -> None:
    task = task_of(get_task(data))
    done = resolved(TrainConfig(data, "any", Path("out")), task)
    assert {name: getattr(done, name) for name in options} == options
    assert (done.task, done.precondition, done.data) == (task.name, True, data)
    given = {"width": 3, "size": 20, "batch_size": 5, "lr": 0.5, "precondition": False}
    kept = resolved(TrainConfig(data, "any", Path("out"), **given), task)
    assert {name: getattr(kept, name) for name in given} == given


def test_unknown_data_set_suggests_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'breastmnst'; did you mean 'breastmnist'"):
        train(TrainConfig("breastmnst", "resnet18", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert "breastmnist" in MEDMNIST


# Crashes


def test_killed_and_resumed_is_never_interrupted(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config)
    result = script(tmp_path / "killed", "--die", 1, 1)
    assert result.returncode == -signal.SIGKILL, result.stderr
    killed = RunDir(tmp_path / "killed")
    assert len(killed.metrics()) == 1
    train(replace(config, out=killed.path), resume=True)
    assert (killed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    ends = [torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in (whole, killed)]
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))
    assert learned(killed) == learned(whole)
    assert len(json.loads((killed.path / "environment.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize(
    ("stop", "raises"), [(signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGTERM, "SystemExit(143)")]
)
def test_stopped_by_a_signal_is_no_success(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stop: int, raises: str
) -> None:
    def stopped(self: Learner, batch: Any) -> Any:
        if self.global_step == STEPS + 1:
            signal.raise_signal(stop)
        return original(self, batch)

    original, before = Learner.training_step, signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Learner, "training_step", stopped)
    caplog.set_level(logging.INFO, "isoconv")
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as raised:
            train(config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert repr(raised.value) == raises
    assert "stopped; it can be resumed after its last finished epoch" in caplog.text
    assert len(RunDir(config.out).metrics()) == 1


def test_a_job_of_slurm_is_one_process(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "4", "JOB_ID": "7", "JOB_NAME": "job"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert train(replace(config, epochs=1)).model_info["epoch"] == 0


def test_killed_in_the_first_epoch_starts_over(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", _raise(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            train(config)
    assert len(train(config, resume=True).metrics()) == EPOCHS


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(train(config))
    caplog.set_level(logging.INFO, "isoconv")
    assert files(train(config, resume=True)) == before
    assert "3 of 3 epochs done" in caplog.text


def test_stopped_between_the_last_checkpoint_and_the_metrics(config: TrainConfig) -> None:
    run = train(config)
    lines = run.metrics()
    run.write_metrics(lines[:-1])
    train(config, resume=True)
    assert run.metrics() == lines


def test_resuming_what_was_never_started(config: TrainConfig) -> None:
    with pytest.raises(FileNotFoundError, match="no run at"):
        train(config, resume=True)
    assert not config.out.exists()


def test_resuming_with_other_options_is_refused(config: TrainConfig) -> None:
    before = files(train(config))
    with pytest.raises(ValueError, match=r"started with other options \(epochs 3 -> 9, lr 0.02 -> 0.1\)"):
        train(replace(config, epochs=9, lr=0.1), resume=True)
    assert files(RunDir(config.out)) == before


@pytest.mark.parametrize("epoch", [0, 1])
def test_full_disk_keeps_the_previous_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The disk is full half-way through a checkpoint; with space again, the training goes on as if nothing had been."""
    original, count = checkpoints.atomic_write, 0

    def full(path: Path, write: Callable) -> None:
        def half(f: Any) -> None:
            f.write(b"half of a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        nonlocal count
        count += 1
        original(path, half if count == epoch + 1 else write)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "atomic_write", full)
        with pytest.raises(OSError, match=r"cannot write .*last\.ckpt \(No space left on device\)"):
            train(config)
    checkpoint = RunDir(config.out).last_checkpoint
    if epoch:
        assert len(torch.load(checkpoint, weights_only=True)["callbacks"]["Recorder"]["history"]) == epoch
    assert [p.name for p in checkpoint.parent.iterdir()] == ["last.ckpt"] * bool(epoch)
    assert learned(train(config, resume=True)) == learned(train(replace(config, out=tmp_path / "whole")))


@pytest.mark.parametrize("damage", ["short", "empty", "pickle", "another", "list"])
def test_damaged_checkpoint_is_refused(config: TrainConfig, damage: str, tmp_path: Path) -> None:
    checkpoint = train(config).last_checkpoint
    content = checkpoint.read_bytes()
    others = {
        "pickle": {"state_dict": _Bomb(tmp_path / "exploded")},  # whose loading would run code
        "another": {"state_dict": torch.load(checkpoint, weights_only=True)["state_dict"]},
        "list": [],
    }
    if damage in others:
        buffer = io.BytesIO()
        torch.save(others[damage], buffer)
        checkpoints.seal(buffer)
        checkpoint.write_bytes(buffer.getvalue())
    else:
        checkpoint.write_bytes(content[: len(content) // 2] if damage == "short" else b"")
    with pytest.raises(ValueError, match=r"last\.ckpt is cut short or no checkpoint of isoconv; restore it"):
        train(config, resume=True)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 0.99999])
def test_a_flipped_bit_in_a_checkpoint_is_refused(config: TrainConfig, where: float) -> None:
    """Wherever it is; torch alone takes one in the weights, and the training goes on from others."""
    checkpoint = train(config).last_checkpoint
    content = bytearray(checkpoint.read_bytes())
    content[int(where * len(content))] ^= 4
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged, it has another checksum .*; restore it from a copy"):
        train(config, resume=True)


def test_torch_itself_takes_a_flipped_bit(config: TrainConfig) -> None:
    checkpoint = train(config).last_checkpoint
    content = bytearray(checkpoint.read_bytes())
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["model.net.conv1.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 4
    torch.load(io.BytesIO(content), weights_only=True)
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match="another checksum"):
        checkpoints.load_checkpoint(checkpoint)


def test_checkpoint_of_another_architecture_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    checkpoint = train(config).last_checkpoint
    other = train(replace(config, out=tmp_path / "other", width=3, epochs=1)).last_checkpoint
    checkpoint.write_bytes(other.read_bytes())
    with pytest.raises(
        ValueError, match=r"last\.ckpt does not fit the network: model\.net\.\S+ is \(3, .* \(2, .*other architecture"
    ):
        train(config, resume=True)


def test_infinite_loss_stops_at_once(config: TrainConfig) -> None:
    with pytest.raises(FloatingPointError, match=r"loss at epoch 0, step \d of 3 is (nan|inf).* an --lr below 1e\+30$"):
        train(replace(config, lr=1e30))


def test_infinite_loss_keeps_the_last_good_state(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(self: Learner, batch: Any) -> Any:
        loss = original(self, batch)
        return loss * float("nan") if self.global_step == STEPS + 1 else loss

    original = Learner.training_step
    monkeypatch.setattr(Learner, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 1 of 3 is nan.*; the state after epoch 0 is kept in"):
        train(config)
    run = RunDir(config.out)
    assert len(run.metrics()) == 1
    state = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


# Several processes


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    result = script(tmp_path / "run", processes=2)
    assert result.returncode == 0, result.stderr
    run = RunDir(tmp_path / "run")
    assert len(run.metrics()) == EPOCHS
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 2
    assert run.load_model()(torch.rand(1, 1, 8, 8)).shape == (1, 2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["steps"] == second["steps"] == EPOCHS * STEPS
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    saved = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(first["state"][name], saved[name]) for name in saved)
    weights = load_file(run.path / "model.safetensors")
    assert {f"model.net.{name}" for name in weights} == set(saved)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _raise(error: Exception) -> Callable:
    def step(*_: Any) -> None:
        raise error

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die", type=int, nargs=2, metavar=("EPOCH", "STEP"))
    args = parser.parse_args()
    tiny = tiny_data()
    training.find = lambda *_: (tiny.task, lambda _: tiny)
    original = Learner.training_step

    def step(self: Learner, batch: Any) -> Any:
        if args.die and divmod(self.global_step, STEPS) == tuple(args.die):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch)

    def on_train_end(self: Learner) -> None:
        if self.trainer.world_size > 1:
            path = args.out.parent / f"rank{self.global_rank}.pt"
            torch.save({"state": self.state_dict(), "steps": self.global_step}, path)

    Learner.training_step, Learner.on_train_end = step, on_train_end
    train(tiny_config(args.out), args.resume)


if __name__ == "__main__":
    main()
