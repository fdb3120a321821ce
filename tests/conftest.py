"""Shared fixtures: golden numbers and real data where they are at hand, and fixed seeds."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from isoconv.runs import RunDir

hypothesis.settings.register_profile("isoconv", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("isoconv")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes already use every core
    torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What the command line sets up in one test is gone in the next."""
    yield
    logger = logging.getLogger("isoconv")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def golden() -> Callable[[str], np.lib.npyio.NpzFile]:
    """Numbers computed with the official packages, by file name; the test is skipped where the files are absent."""

    def load(name: str) -> np.lib.npyio.NpzFile:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"golden numbers not at hand: {path} is missing")
        return np.load(path, allow_pickle=False)

    return load


@pytest.fixture(scope="session")
def medmnist_dir() -> Path:
    """Folder of real MedMNIST files: ``ISOCONV_DATA`` or the one beside the checkout; the test is skipped where neither
    is there."""
    path = Path(os.environ.get("ISOCONV_DATA", SHARED / "data" / "medmnist"))
    if not (path / "breastmnist.npz").is_file():
        pytest.skip(
            f"real MedMNIST files not at hand: no breastmnist.npz in {path}; set ISOCONV_DATA to the folder that "
            "holds it"
        )
    return path


@contextmanager
def _few_cells() -> Iterator[None]:
    from isoconv import data

    counts = {"cells": (60, 20, 40), "cells3d": (12, 8, 12)}
    with pytest.MonkeyPatch.context() as patch:
        for tasks in (data.TASKS, data.SYNTHETIC):
            for name, few in counts.items():
                patch.setitem(tasks, name, replace(tasks[name], counts=few))
        yield


@pytest.fixture
def few_cells() -> Iterator[None]:
    """The synthetic sets with few images: 40 and 12 in the test split."""
    with _few_cells():
        yield


@pytest.fixture(scope="module")
def few_vessels() -> Iterator[None]:
    """The synthetic sets of segmentation with 4 images in the test split."""
    from isoconv.data.vessels import VESSELS

    with pytest.MonkeyPatch.context() as patch:
        for name, task in VESSELS.items():
            patch.setitem(VESSELS, name, replace(task, counts=(8, 4, 4)))
        yield


@pytest.fixture(scope="session")
def _evaluated_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sre``, ``plain``, ``plain1`` (another seed) and ``volumes``, trained until they differ and evaluated."""
    from isoconv.evaluation.measuring import evaluate
    from isoconv.evaluation.protocols import PROTOCOLS
    from isoconv.training.loop import TrainConfig, train

    folder = tmp_path_factory.mktemp("runs")
    small = {"width": 4, "epochs": 4, "batch_size": 4, "size": 16, "device": "cpu"}
    plain = TrainConfig("cells", "resnet18", folder / "plain", **small)
    sre = replace(plain, model="sre_resnet18", out=folder / "sre", kernel_sizes=(5, 5, 3, 3))
    volumes = replace(plain, data="cells3d", model="sre_resnet18_3d", out=folder / "volumes", epochs=1, width=2)
    with _few_cells(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoconv.figures.drawing.save_all", lambda *_: [])  # seconds each; their own tests draw them
        for config in (sre, plain, replace(plain, seed=1, out=folder / "plain1"), volumes):
            run = train(config)
            for protocol in PROTOCOLS:
                evaluate(run, protocol)
    return folder


@pytest.fixture
def evaluated(_evaluated_once: Path, few_cells: None, tmp_path: Path) -> Callable[[str], RunDir]:
    """A copy of a tiny evaluated run on few cells: ``sre``, ``plain``, ``plain1`` or ``volumes``."""

    def copy(name: str) -> RunDir:
        return RunDir(shutil.copytree(_evaluated_once / name, tmp_path / name))

    return copy


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that draws nothing: drawing takes longer than everything else."""
    monkeypatch.setattr("isoconv.figures.drawing.save_all", lambda *_: [])
