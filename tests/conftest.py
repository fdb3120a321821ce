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

from isoconv.runs import RunDir, TrainConfig

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
def _few_images() -> Iterator[None]:
    from isoconv import data
    from isoconv.data.vessels import VESSELS

    counts = {"cells": (60, 20, 40), "cells3d": (12, 8, 12), "vessels": (8, 4, 4), "vessels3d": (8, 4, 4)}
    with pytest.MonkeyPatch.context() as patch:
        for sets in (data.TASKS, data.SYNTHETIC, VESSELS):
            for name in sets.keys() & counts.keys():
                patch.setitem(sets, name, replace(sets[name], counts=counts[name]))
        yield


@pytest.fixture
def few_cells() -> Iterator[None]:
    """The synthetic sets with few images: in the test split 40 and 12, of those with masks 4."""
    with _few_images():
        yield


def _evaluate_all(*configs: TrainConfig) -> None:
    from isoconv.evaluation.measuring import evaluate
    from isoconv.evaluation.protocols import PROTOCOLS
    from isoconv.training.loop import train

    with _few_images():
        for config in configs:
            run = train(config)
            for protocol in PROTOCOLS:
                evaluate(run, protocol)


@pytest.fixture(scope="session")
def _evaluated_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sre``, ``plain``, ``plain1`` (another seed) and ``volumes``, trained until they differ and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"width": 4, "epochs": 4, "batch_size": 4, "size": 16, "device": "cpu"}
    plain = TrainConfig("cells", "resnet18", folder / "plain", **small)
    sre = replace(plain, model="sre_resnet18", out=folder / "sre", kernel_sizes=(5, 5, 3, 3))
    volumes = replace(plain, data="cells3d", model="sre_resnet18_3d", out=folder / "volumes", epochs=1, width=2)
    _evaluate_all(sre, plain, replace(plain, seed=1, out=folder / "plain1"), volumes)
    return folder


@pytest.fixture(scope="session")
def _segmented_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a label per pixel, in the folder ``masks``."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"width": 4, "epochs": 4, "batch_size": 4, "size": 16, "device": "cpu", "lr": 0.1}
    plain = TrainConfig("vessels", "unet", folder / "masks" / "plain", **small)
    sre = replace(plain, model="sre_unet", out=folder / "masks" / "sre", kernel_sizes=(5, 3, 3, 3), engine="reference")
    volumes = replace(sre, data="vessels3d", model="sre_unet_3d", out=folder / "masks" / "volumes")
    seed1 = replace(plain, seed=1, out=folder / "masks" / "plain1")
    _evaluate_all(sre, plain, seed1, replace(volumes, kernel_sizes=(3, 3, 3, 3)))
    return folder


@pytest.fixture
def evaluated(request: pytest.FixtureRequest, few_cells: None, tmp_path: Path) -> Callable[[str], RunDir]:
    """A copy of a tiny evaluated run on few images: ``sre``, ``plain``, ``plain1`` or ``volumes``, which classify, or
    ``masks/sre`` and so on, which segment."""

    def copy(name: str) -> RunDir:
        once = request.getfixturevalue("_segmented_once" if name.startswith("masks/") else "_evaluated_once")
        return RunDir(shutil.copytree(once / name, tmp_path / name))

    return copy


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that draw nothing: drawing takes longer than everything else."""
    monkeypatch.setattr("isoconv.figures.save_all", lambda run, *_: [run.path / "figures" / "none.png"])
