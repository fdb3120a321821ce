"""Runs of a cross-validation side by side."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoconv.cli.main import main
from isoconv.evaluation import compare, evaluate
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.training.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    """Two networks on three folds of bright and dark images."""
    root, random = tmp_path_factory.mktemp("folds"), np.random.default_rng(0)
    for label, low in (("bright", 120), ("dark", 0)):
        (root / "data" / label).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(random.integers(low, low + 136, (16, 16), np.uint8)).save(
                root / "data" / label / f"{i}.png"
            )
    done = []
    for model in ("sre_resnet18", "resnet18"):
        for fold in (1, 2, 3):
            out = root / f"{model}-{fold}"
            small = {"width": 2, "size": 16, "epochs": 1, "batch_size": 8, "device": "cpu"}
            done.append(train(TrainConfig(str(root / "data"), model, out, folds=3, fold=fold, **small)))
            evaluate(done[-1])
    return done


def test_runs_of_a_fold_are_paired(runs: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((runs[1].path / "config.json").read_text())["fold"] == 2
    found = compare(runs)
    assert [(Path(p["a"]).name, Path(p["b"]).name) for p in found["pairs"]] == [
        (f"sre_resnet18-{fold}", f"resnet18-{fold}") for fold in (1, 2, 3)
    ]
    assert [group["folds"] for group in found["groups"]] == [[1, 2, 3]] * 2
    scores = [run.results()["standard"]["summary"]["rotated_mean"] for run in runs]
    differences = [a - b for a, b in zip(scores[:3], scores[3:], strict=True)]
    (line,) = found["folds"]
    assert line["rotated_mean_difference"] == pytest.approx(statistics.mean(differences))
    low, high = line["rotated_mean_difference_ci"]
    half = 4.302653 * statistics.stdev(differences) / 3**0.5  # Student's t of 2 degrees of freedom, from a table
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
    assert main(["compare", *(str(run.path) for run in runs)]) == 0
    assert "mean over folds" in " ".join(capsys.readouterr().out.split())


def test_one_fold_or_none_has_no_interval(runs: list[RunDir]) -> None:
    assert compare([runs[0], runs[3]])["folds"] == []


def test_networks_with_other_folds_are_not_paired(runs: list[RunDir]) -> None:
    assert compare([runs[0], runs[4]])["pairs"] == []
