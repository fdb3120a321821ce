"""What the report reads from the run directories of a study."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoconv.report import write_report
from isoconv.report.comparing import curve
from isoconv.report.scores import gather
from isoconv.runs import RunDir
from isoconv.study.plan import load_study
from isoconv.tasks.metrics import decide

Parsed = Callable[[str], Any]


def test_scores_are_those_of_the_runs(toml: Path, runs: Path) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    assert {data: [e.contestant for e in entries] for data, entries in gathered.entries.items()} == {
        "cells": ["sre", "plain", "plain-4", "plain-36"],
        "cells3d": ["sre"],
    }
    plain = gathered.entry("cells", "plain")
    assert plain is not None
    summaries = [RunDir(runs / f"cells-plain-s{seed}").results()["standard"]["summary"] for seed in (0, 1)]
    for name in ("upright", "rotated_mean", "consistency"):
        assert plain.mean(name) == pytest.approx(np.mean([s[name] for s in summaries]))
        assert plain.sd(name) == pytest.approx(np.std([s[name] for s in summaries], ddof=1))
    for name, score in (("upright", "upright"), ("rotated", "rotated_mean")):
        assert plain.images(name).mean().item() == pytest.approx(plain.mean(score))
    confusion = RunDir(runs / "cells-plain-s0").results()["standard"]["upright"]["confusion"]
    assert plain.runs[0].details["upright"].tolist() == confusion
    assert plain.runs[0].details["rotated"].sum().item() == 36 * 40


def test_averaged_over_turns(toml: Path, runs: Path) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    run = RunDir(runs / "cells-plain-s0")
    arrays = dict(np.load(run.path / "predictions.npz"))
    logits, labels = (torch.from_numpy(arrays[f"standard_{name}"]) for name in ("logits", "labels"))
    quarter, full = gathered.entry("cells", "plain-4"), gathered.entry("cells", "plain-36")
    assert quarter is not None
    assert full is not None
    at_30 = (decide("multiclass", logits[[3, 12, 21, 30]].mean(0)) == labels).double().mean().item()
    assert quarter.runs[0].positions[3]["accuracy"] == pytest.approx(at_30)
    assert quarter.runs[0].positions[12]["accuracy"] == pytest.approx(at_30)
    assert quarter.mean("right_angles") == pytest.approx(quarter.mean("upright"))
    assert full.mean("consistency") == 1.0
    assert full.mean("rotated_mean") == pytest.approx(full.mean("upright"))
    assert full.mean("flips") is None
    plain = gathered.entry("cells", "plain")
    assert plain is not None
    assert full.cost("multiply_adds_dense") == 36 * plain.cost("multiply_adds_dense")


def test_averaging_does_not_change_the_network_of_one_turn(toml: Path, runs: Path) -> None:
    study = load_study(toml)
    once = replace(study, averaged=(replace(study.averaged[0], turns=1),))
    gathered = gather(once, runs, "official")
    plain, same = gathered.entry("cells", "plain"), gathered.entry("cells", "plain-4")
    assert plain is not None
    assert same is not None
    names = ("upright", "rotated_worst", "right_angles", "always_right", "upright_auc", "upright_macro_f1", "beyond_90")
    for name in (*names, "rotated_balanced_accuracy", "rotated_macro_f1", "rotated_calibration"):
        assert same.mean(name) == pytest.approx(plain.mean(name), abs=1e-4)


def test_conditions_beyond_rotation(toml: Path, runs: Path, tmp_path: Path, parsed: Parsed) -> None:
    """Reported with any protocol; runs from before the study had them are said to be not measured, and stay."""
    study = replace(load_study(toml), protocols=("official", "disturbed"))
    path = runs / "cells-plain-s1" / "results.json"
    results = json.loads(path.read_text())
    del results["disturbed"]
    path.write_text(json.dumps(results))
    gathered = gather(study, runs, "official")
    sre, plain, averaged = (gathered.entry("cells", name) for name in ("sre", "plain", "plain-4"))
    assert sre is not None
    assert plain is not None
    assert averaged is not None
    assert len(plain.runs) == 2
    summary = RunDir(runs / "cells-sre-s0").results()["disturbed"]["summary"]
    assert sre.mean("turned") == summary["rotated_mean"]
    assert sre.mean("turned_consistency") == summary["consistency"]
    assert sre.mean("turned_auc") == summary["rotated_auc"]
    for name in ("zoomed", "shifted_consistency", "noisy_auc", "blurred_balanced_accuracy"):
        assert sre.mean(name) == summary[name]
        assert plain.mean(name) is averaged.mean(name) is None
    write_report(study, runs, tmp_path / "report.html")
    page = parsed((tmp_path / "report.html").read_text())
    assert page.text.count("protocol disturbed") == 4  # a chart and a table on each of two data sets
    assert page.text.count("seen through the inscribed disc") == 4
    assert page.text.count("not measured") == 3 * 10  # plain and its two averages
    text = (tmp_path / "report.md").read_text()
    (row,) = re.findall(r"\| SRE & friends \| 1 \| .*", text.partition("Protocol disturbed")[2].partition("##")[0])
    shown = [cell.strip(" *") for cell in row.split("|")[3:5]]
    assert shown == [f"{100 * summary[name]:.1f}" for name in ("rotated_mean", "zoomed")]
    assert "| plain | 2 | not measured |" in text


def test_who_saw_the_mask_is_said(toml: Path, runs: Path, tmp_path: Path, parsed: Parsed) -> None:
    """A study may have networks of both kinds; each is shown what it was trained on, and old results are left out."""
    study = replace(load_study(toml), protocols=("official", "disturbed"))
    for seed in (0, 1):
        path = runs / f"cells-plain-s{seed}"
        info = RunDir(path).model_info
        (path / "model.json").write_text(json.dumps({**info, "masked": False}))
    for protocol in study.protocols:
        write_report(study, runs, tmp_path / "report.html", protocol)
        page = parsed((tmp_path / "report.html").read_text()).text
        everyone = "plain, plain, 4 turns, plain-36 whole images"
        if protocol == "official":
            assert page.count(f"each as in its training: SRE & friends through the inscribed disc, {everyone}") == 2
            assert page.count("not measured") == 3 * 10
        else:
            assert "plain" not in {e.contestant for e in gather(study, runs, protocol).entries["cells"]}
    assert "Protocol disturbed, seen through the inscribed disc:" in (tmp_path / "report.md").read_text()


def test_no_table_of_conditions_that_a_study_does_not_have(page: Path, tmp_path: Path, parsed: Parsed) -> None:
    assert "disturbed" not in parsed(page.read_text()).text
    assert "disturbed" not in (tmp_path / "report.md").read_text()


def test_the_protocol_of_disturbances_by_itself(toml: Path, runs: Path, tmp_path: Path, parsed: Parsed) -> None:
    study = replace(load_study(toml), protocols=("disturbed",))
    gathered = gather(study, runs, "disturbed")
    assert [len(point) for point in curve(gathered.entries["cells"][0])] == [4] * 13
    write_report(study, runs, tmp_path / "report.html")
    assert "plain, 4 turns" in parsed((tmp_path / "report.html").read_text()).text
    assert "plain-36" not in parsed((tmp_path / "report.html").read_text()).text  # there are 12 turns
    ninth = replace(study, averaged=(replace(study.averaged[0], turns=9),))  # 40 degrees are not among them
    assert [e.contestant for e in gather(ninth, runs, "disturbed").entries["cells"]] == ["sre", "plain"]


def test_other_test_images_are_refused(toml: Path, runs: Path, tmp_path: Path) -> None:
    path = runs / "cells-plain-s1" / "predictions.npz"
    arrays = dict(np.load(path))
    arrays["standard_labels"] = arrays["standard_labels"][::-1].copy()
    np.savez(path, **arrays)
    message = r"plain-s1 was evaluated on other test images than .* of cells; do it, or them, again: isoconv evaluate"
    with pytest.raises(ValueError, match=message):
        write_report(load_study(toml), runs, tmp_path / "report.html")
