"""A study of networks that answer with numbers, from a table of files to its report."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoconv.report import write_report
from isoconv.report.comparing import headlines, tally
from isoconv.report.scores import Gathered, gather
from isoconv.runs import RunDir
from isoconv.study.cell import work
from isoconv.study.plan import Study, load_study
from isoconv.study.status import study_status

STUDY = """
data = ["{data}"]
[options]
width = 2
epochs = 1
batch_size = 4
size = 16
[[contestant]]
name = "sre"
model = "sre_resnet18"
[[contestant]]
name = "plain"
model = "resnet18"
[[averaged]]
name = "plain-4"
of = "plain"
turns = 4
"""
COUNTS = {"train": 8, "val": 4, "test": 8}


@pytest.fixture
def sticks(tmp_path: Path, no_figures: None) -> tuple[Study, Path]:
    """A study of the length of sticks, and its runs, all of them done."""
    rng, rows = np.random.default_rng(0), ["path,length,split"]
    for split, count in COUNTS.items():
        for i in range(count):
            pixels = rng.integers(0, 60, (16, 16), np.uint8)
            length = int(rng.integers(4, 14))
            pixels[7:9, 1 : 1 + length] = 200
            Image.fromarray(pixels).save(tmp_path / f"{split}{i}.png")
            rows.append(f"{split}{i}.png,{length},{split}")
    (tmp_path / "sticks.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "sticks.toml").write_text(STUDY.replace("{data}", str(tmp_path / "sticks.csv")))
    study, runs = load_study(tmp_path / "sticks.toml"), tmp_path / "runs"
    runs.mkdir()
    for cell in study.cells:
        work(study.config(cell, runs, device="cpu"), study.protocols)
    return study, runs


def test_from_a_table_of_files_to_a_report(
    sticks: tuple[Study, Path], tmp_path: Path, parsed: Callable[[str], Any]
) -> None:
    study, runs = sticks
    assert [row["state"] for row in study_status(study, runs)] == ["done", "done"]
    gathered = gather(study, runs, "standard")
    (entries,) = gathered.entries.values()
    assert [entry.contestant for entry in entries] == ["sre", "plain", "plain-4"]
    _check_scores(gathered, runs)
    write_report(study, runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    text = " ".join(parsed(page).text.split())
    assert "Mean absolute error against angle." in text
    assert "8 test images, 1 target. Small test set" in text
    assert re.search(r"The mean difference in mean absolute error is [+−][\d.]+\.", text)
    assert not re.search(r"accuracy|Calibration|Confusion|points", text.partition("Paired tests Every")[0])
    (turning,) = json.loads(re.search(r'id="turn-json">(.*?)</script>', page, re.DOTALL)[1]).values()  # type: ignore[index]
    assert [reading["title"] for reading in turning["readings"]] == ["length"]
    assert all(re.fullmatch(r"no. \d, length \d+", example["title"]) for example in turning["examples"])
    assert set(turning["examples"][0]["answers"][0]["right"]) == {None}
    with (tmp_path / "report-runs.csv").open() as file:
        assert all(float(row["rotated_mean"]) > 0 for row in csv.DictReader(file))


def _check_scores(gathered: Gathered, runs: Path) -> None:
    """Against their formulas; the smaller error wins."""
    arrays = {name: np.load(runs / f"sticks-{name}-s0" / "predictions.npz") for name in ("sre", "plain")}
    errors = {name: np.abs(a["standard_values"][:36] - a["standard_labels"])[..., 0] for name, a in arrays.items()}
    ((row,),) = headlines(gathered)
    assert (row["a"].contestant, row["b"].contestant) == ("sre", "plain")
    for name, entry in (("sre", row["a"]), ("plain", row["b"])):
        assert entry.mean("rotated_mean") == pytest.approx(errors[name].mean(), rel=1e-6)
        assert entry.mean("rotated_worst") == pytest.approx(errors[name].mean(1).max(), rel=1e-6)
        assert (
            entry.mean("rotated_rmse")
            == RunDir(runs / f"sticks-{name}-s0").results()["standard"]["summary"]["rotated_rmse"]
        )
    for name, each in (
        ("upright", {k: e[0] for k, e in errors.items()}),
        ("rotated", {k: e.mean(0) for k, e in errors.items()}),
    ):
        assert row[name].mean == pytest.approx((each["sre"] - each["plain"]).mean(), rel=1e-5)
        counted = tally([row], name)
        if row[name].p < 0.05:
            assert (counted["won"], counted["lost"]) == ((1, 0) if row[name].mean < 0 else (0, 1))
    values, truth = arrays["plain"]["standard_values"][:36, :, 0], arrays["plain"]["standard_labels"][:, 0]
    averaged = np.stack([values[[(i + turn) % 36 for turn in (0, 9, 18, 27)]].mean(0) for i in range(36)])
    quarter = gathered.entries[row["data"]][2]
    assert quarter.mean("rotated_mean") == pytest.approx(np.abs(averaged - truth).mean(), rel=1e-5)
    assert quarter.mean("change") == pytest.approx(np.abs(averaged - averaged[0]).mean(), rel=1e-5)
