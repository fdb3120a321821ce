"""A tiny data set in place of every other, and a training on it that takes a second."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import isoconv.training.loop as training
from isoconv.data import Kind, Split, Task
from isoconv.runs import RunDir
from isoconv.training.loop import TrainConfig


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
    if kind == "regression":
        return Split(part.images, torch.stack([part.images.float().flatten(1).mean(1), -3.0 * part.labels], 1))
    return Split(part.images, torch.stack([part.labels, 1 - part.labels], 1)) if kind == "multilabel" else part


def tiny_config(out: Path, **options: Any) -> TrainConfig:
    """Three epochs of three steps: batches of 8, 8 and 4 images."""
    defaults = {"width": 2, "kernel_sizes": (3, 3, 3, 3), "epochs": 3, "batch_size": 8, "size": 8, "device": "cpu"}
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


@pytest.fixture
def made() -> Callable[..., SimpleNamespace]:
    """What makes a tiny data set, of other dims or another kind."""
    return tiny_data


@pytest.fixture
def learned() -> Callable[[RunDir], list[dict]]:
    """The metrics of a run without the timings."""
    timings = ("seconds", "images_per_second")
    return lambda run: [{k: v for k, v in line.items() if k not in timings} for line in run.metrics()]


@pytest.fixture
def files() -> Callable[[RunDir], dict[Path, bytes]]:
    """Every file of a run."""
    return lambda run: {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
