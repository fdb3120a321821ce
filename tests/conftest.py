"""Shared fixtures: golden numbers and real data where they are at hand, and fixed seeds."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("isoconv", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("isoconv")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes already use every core
    torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


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
