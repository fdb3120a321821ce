"""No crash costs more than an epoch: what was stopped or killed resumes as if it had not been, or is refused."""

import errno
import io
import json
import logging
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

from isoconv.data import KINDS, Kind
from isoconv.runs import RunDir
from isoconv.tasks import task_of
from isoconv.training import checkpoints
from isoconv.training.learner import Learner
from isoconv.training.loop import TrainConfig, train

Learned = Callable[[RunDir], list[dict]]
Files = Callable[[RunDir], dict[Path, bytes]]
Made = Callable[..., SimpleNamespace]


def script(*args: Any, processes: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `process.py` in a process of its own, or in several that work together."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *several, Path(__file__).with_name("process.py"), *map(str, args)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads, **env})


@pytest.mark.parametrize("kind", [kind for kinds in KINDS.values() for kind in kinds])
def test_every_kind_of_work_resumes_as_if_it_had_not_been_stopped(
    config: TrainConfig,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    learned: Learned,
    made: Made,
) -> None:
    vars(data).update(vars(made(kind=kind)))
    task = task_of(data.task)
    config = replace(config, model="sre_unet" if task.networks == "segmentation" else "sre_resnet18")
    whole = train(config)
    lines = whole.metrics()
    assert whole.model_info["epoch"] == max(range(config.epochs), key=lambda epoch: task.goodness(lines[epoch]))
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


def test_killed_and_resumed_is_never_interrupted(config: TrainConfig, tmp_path: Path, learned: Learned) -> None:
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
        if self.global_step == 3 + 1:
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
    assert len(train(config, resume=True).metrics()) == 3


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    config: TrainConfig, caplog: pytest.LogCaptureFixture, files: Files
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


def test_resuming_with_other_options_is_refused(config: TrainConfig, files: Files) -> None:
    before = files(train(config))
    with pytest.raises(ValueError, match=r"started with other options \(epochs 3 -> 9, lr 0.02 -> 0.1\)"):
        train(replace(config, epochs=9, lr=0.1), resume=True)
    assert files(RunDir(config.out)) == before


@pytest.mark.parametrize("epoch", [0, 1])
def test_full_disk_keeps_the_previous_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, learned: Learned
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
        return loss * float("nan") if self.global_step == 3 + 1 else loss

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
    assert len(run.metrics()) == 3
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 2
    assert run.load_model()(torch.rand(1, 1, 8, 8)).shape == (1, 2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["steps"] == second["steps"] == 3 * 3
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
