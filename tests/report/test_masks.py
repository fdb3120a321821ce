"""The report of segmentations, alone and beside classifications."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoconv.data import load
from isoconv.evaluation.protocols import conditions
from isoconv.report import write_report
from isoconv.report.columns import all_scores
from isoconv.report.comparing import best_in, best_of_each, headlines, pairs, ranking, verdict
from isoconv.report.images import overlay
from isoconv.report.scores import Gathered, gather
from isoconv.report.statistics import Difference
from isoconv.runs import RunDir
from isoconv.study.plan import Study, load_study
from isoconv.symmetry import circular_mask
from isoconv.tasks import Score

STUDY = """
title = "Cells and vessels"
data = ["cells", "vessels", "vessels3d"]
seeds = [0, 1]
[options]
width = 4
epochs = 4
batch_size = 4
size = 16
[[contestant]]
name = "sre"
model = "sre_resnet18"
2d = { kernel_sizes = [5, 5, 3, 3] }
[[contestant]]
name = "plain"
model = "resnet18"
[[contestant]]
name = "sre-unet"
title = "SRE U-Net"
model = "sre_unet"
lr = 0.1
engine = "reference"
2d = { kernel_sizes = [5, 3, 3, 3] }
3d = { kernel_sizes = [3, 3, 3, 3] }
[[contestant]]
name = "unet"
title = "U-Net"
model = "unet"
lr = 0.1
[[averaged]]
name = "unet-4"
of = "unet"
turns = 4
"""
NAMES = {
    "sre": "cells-sre-s0",
    "plain": "cells-plain-s0",
    "masks/sre": "vessels-sre-unet-s0",
    "masks/plain": "vessels-unet-s0",
    "masks/plain1": "vessels-unet-s1",
    "masks/volumes": "vessels3d-sre-unet-s0",
}


@pytest.fixture
def both(evaluated: Callable[[str], RunDir], tmp_path: Path) -> tuple[Study, Path]:
    """A study of both kinds of work, and its runs."""
    (tmp_path / "runs").mkdir()
    for name, cell in NAMES.items():
        evaluated(name).path.rename(tmp_path / "runs" / cell)
    (tmp_path / "both.toml").write_text(STUDY)
    return load_study(tmp_path / "both.toml"), tmp_path / "runs"


@pytest.fixture
def gathered(both: tuple[Study, Path]) -> Gathered:
    return gather(*both, "standard")


def counts_of(runs: Path, cell: str) -> np.ndarray:
    """Pixels (positions, images, classes, 5) of the standard protocol."""
    return np.load(runs / cell / "predictions.npz")["standard_counts"]


def test_scores_are_those_of_the_runs(both: tuple[Study, Path], gathered: Gathered) -> None:
    study, runs = both
    assert {data: [e.contestant for e in entries] for data, entries in gathered.entries.items()} == {
        "cells": ["sre", "plain"],
        "vessels": ["sre-unet", "unet"],  # turned masks have no mean
        "vessels3d": ["sre-unet"],
    }
    unet = gathered.entry("vessels", "unet")
    assert unet is not None
    summaries = [RunDir(runs / f"vessels-unet-s{seed}").results()["standard"]["summary"] for seed in (0, 1)]
    for score in unet.task.scores:
        assert unet.mean(score.key) == pytest.approx(np.mean([summary[score.key] for summary in summaries]))
    counts = counts_of(runs, "vessels-unet-s0")
    shared, found, true = counts.sum(1)[..., :3].transpose(2, 0, 1).astype(float)
    dice = 2 * shared / (found + true)  # positions, classes
    positions = conditions("standard", 2)
    beyond = [i for i, p in enumerate(positions) if p.group == "rotation" and 90 < (p.angle or 0) < 270]
    assert unet.runs[0].scores["beyond_90"] == pytest.approx(dice[beyond, 1:].mean())
    assert unet.runs[0].details.numpy() == pytest.approx(np.stack([dice[0], dice[:36].mean(0)], 1), nan_ok=True)
    assert not {"always_right", "upright_auc", "upright_calibration"} & {score.key for score in all_scores(unet.task)}


def test_paired_tests_are_of_single_images(both: tuple[Study, Path], gathered: Gathered) -> None:
    _, runs = both

    def by_image(*cells: str) -> np.ndarray:
        each = []
        for cell in cells:
            shared, found, true = np.moveaxis(counts_of(runs, cell)[0, :, 1:, :3].astype(float), -1, 0)
            each.append(np.nanmean(2 * shared / (found + true), axis=1))
        return np.mean(each, axis=0)

    ((classified,), (segmented,)) = headlines(gathered)
    assert [row["a"].title for row in (classified, segmented)] == ["sre", "SRE U-Net"]
    expected = by_image("vessels-sre-unet-s0") - by_image("vessels-unet-s0", "vessels-unet-s1")
    assert segmented["upright"].mean == pytest.approx(expected.mean())
    assert [(row["data"], row["a"].contestant, row["b"].contestant) for row in pairs(gathered)] == [
        ("cells", "sre", "plain"),
        ("vessels", "sre-unet", "unet"),
    ]


def test_images_without_a_score_are_left_out_of_a_pair(gathered: Gathered) -> None:
    sre, plain = gathered.entries["vessels"]
    holes = sre.runs[0].upright.clone()
    holes[0] = torch.nan
    entry = replace(sre, runs=[replace(sre.runs[0], upright=holes)])
    one = replace(gathered, entries={"vessels": [entry, plain]})
    (row,) = pairs(one)
    expected = (entry.images("upright") - plain.images("upright"))[1:].mean().item()
    assert row["upright"].mean == pytest.approx(expected)
    nothing = replace(sre, runs=[replace(sre.runs[0], upright=holes * torch.nan)])
    assert pairs(replace(gathered, entries={"vessels": [nothing, plain]})) == []


def test_the_direction_of_a_score_decides_who_is_better(gathered: Gathered) -> None:
    error = Score("dice", "error", unit="mm", higher_is_better=False)
    difference = Difference(-0.5, -0.6, -0.4, 0.001)
    assert (verdict(difference, error), verdict(difference, Score("dice", "Dice"))) == (1, -1)
    sre, plain = gathered.entries["vessels"]
    assert (sre.mean("rotated_mean") or 0) > (plain.mean("rotated_mean") or 0)
    rotated = Score("rotated_mean", "Dice rotated")
    assert best_in([sre, plain], rotated) == [sre.index]
    assert best_in([sre, plain], replace(rotated, higher_is_better=False)) == [plain.index]
    assert best_in([sre], rotated) == []


def test_who_leads_and_ranks_of_errors(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"a": "vessels", "b": "vessels"}
    twice = replace(
        gathered,
        entries={name: gathered.entries[of] for name, of in data.items()},
        tasks={name: gathered.tasks[of] for name, of in data.items()},
    )
    task = type(gathered.tasks["vessels"])
    for higher, leader in ((True, "sre-unet"), (False, "unet")):
        monkeypatch.setattr(task, "main", Score("dice", "Dice", higher_is_better=higher))
        rotated = [row for row in best_of_each(twice) if row["position"] == "rotated"]
        assert {row["best"].contestant for row in rotated} == {leader}
        assert all(row["lead"] > 0 for row in rotated)
        drawn = ranking(twice, list(data), "rotated")
        assert drawn is not None
        ranks = dict(zip([entry.contestant for entry in drawn["entries"]], drawn["ranks"], strict=True))
        assert ranks[leader] == 1.0


def test_tables_of_both_kinds(both: tuple[Study, Path], tmp_path: Path) -> None:
    write_report(*both, tmp_path / "report.html")
    with (tmp_path / "report-runs.csv").open() as file:
        rows = {(row["data"], row["contestant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    for (data, *_), row in rows.items():
        assert bool(row["upright"])
        assert bool(row["consistency"])
        assert bool(row["upright_auc"]) is (data == "cells")
    text = (tmp_path / "report.md").read_text()
    cells, vessels = text.partition("## vessels\n")[::2]
    assert "accuracy upright, %" in cells
    assert "Dice" not in cells
    assert "Dice upright, %" in vessels
    assert "accuracy" not in vessels
    assert "4 test images.\n" in vessels


def test_the_page_of_both_kinds(both: tuple[Study, Path], tmp_path: Path, parsed: Callable[[str], Any]) -> None:
    write_report(*both, tmp_path / "report.html")
    text = " ".join(parsed((tmp_path / "report.html").read_text()).text.split())
    assert "Classification: sre against plain" in text
    assert "Segmentation: SRE U-Net against U-Net" in text
    assert "Dice against angle." in text
    assert "Accuracy against angle." in text
    assert "4 test images, 3 labels, one for each pixel. Small test set" in text
    assert text.count("Confusion, upright and rotated") == 1
    assert text.count("Each class") == 2  # images and volumes
    assert "the mean Dice of single images is not that of the tables" in text
    study = replace(both[0], data=("vessels",))
    write_report(study, both[1], tmp_path / "alone.html")
    text = parsed((tmp_path / "alone.html").read_text()).text
    assert "accuracy" not in text.lower()
    assert "Calibration" not in text
    assert "Segmentation: " not in text


def test_masks_turn_over_the_images(both: tuple[Study, Path], tmp_path: Path) -> None:
    write_report(*both, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    match = re.search(r'<script type="application/json" id="turn-json">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    turning = json.loads(match[1])
    assert list(turning) == ["cells", "vessels"]
    vessels = turning["vessels"]
    assert [reading["colour"] for reading in vessels["readings"]] == ["transparent", "#f0e442", "#cc79a7"]
    test, counts = load("vessels", 16).test, counts_of(both[1], "vessels-sre-unet-s0")
    assert [example["title"] for example in vessels["examples"]] == [f"no. {i}" for i in range(4)]
    for number, example in enumerate(vessels["examples"]):
        mask = test.labels[number].numpy() * circular_mask((16, 16)).numpy()
        truth = opened(example["truth"]).reshape(16, 36, 16, 4)
        for quarter in range(4):
            assert np.array_equal(truth[:, 9 * quarter], overlay(np.rot90(mask, quarter), 3))
        sre, _ = example["answers"]
        assert opened(sre["masks"]).shape == (16, 36 * 16, 4)
        assert sre["said"] == [""] * 36
        assert sre["right"] == [None] * 36
        assert sre["maps"] is None
        shared, found, true = np.moveaxis(counts[:36, number, 1:, :3].astype(float), -1, 0)
        dice = np.nanmean(2 * shared / (found + true), axis=1)
        assert sre["scores"] == [f"Dice {100 * value:.1f} %" for value in dice]
        assert np.sum(sre["readings"], axis=1) == pytest.approx(1, abs=1e-3)


def opened(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
