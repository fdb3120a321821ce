"""`isoconv explain`: errors beside a plain network, a picture, and errors of use."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]


def test_beside_a_plain_network(evaluated: Evaluated, call: Callable, picture: Path, tmp_path: Path) -> None:
    sre, plain, plot = evaluated("sre"), evaluated("plain"), tmp_path / "maps.png"
    told = call("explain", sre.path, picture, "--beside", plain.path, "--plot", plot, "--json")
    assert told.code == 0
    ours, theirs = json.loads(told.out)
    assert ours["label"] == theirs["label"]
    assert ours["label"] in sre.task.info.labels
    assert ours["images"] == 2
    assert ours["quarter_turns"] < 1e-4
    assert theirs["quarter_turns"] > 0.05
    assert ours["free_angles"] > ours["quarter_turns"]
    assert plot.stat().st_size > 5000


def test_masks(evaluated: Evaluated, call: Callable, tmp_path: Path) -> None:
    run, picture = evaluated("masks/sre"), tmp_path / "grey.npy"
    np.save(picture, np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8))
    (row,) = json.loads(call("explain", run.path, picture, "--label", run.task.info.labels[1], "--json").out)
    assert row["quarter_turns"] < 1e-4


def test_errors(evaluated: Evaluated, call: Callable, picture: Path) -> None:
    run, masks = evaluated("sre").path, evaluated("masks/sre").path
    assert "label must be one of" in call("explain", run, picture, "--label", "cat").error
    assert "take runs of one task" in call("explain", run, picture, "--beside", masks).error
    assert "--plot must be a .png file" in call("explain", run, picture, "--plot", "maps.jpg").error


@pytest.mark.parametrize("name", ["sre", "masks/sre"])
def test_the_evaluation_draws_it(evaluated: Evaluated, name: str) -> None:
    from isoconv.figures import save_all

    run = evaluated(name)
    assert run.path / "figures" / "saliency.png" in save_all(run)
