"""Who wins where: differences, ranks and curves of the gathered results."""

from dataclasses import replace
from pathlib import Path

import pytest

from isoconv.report.comparing import best_of_each, curve, headlines, pairs, ranking, tally
from isoconv.report.scores import gather
from isoconv.study.plan import load_study


def test_curves_are_closed_circles_with_bands(toml: Path, runs: Path) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    seeds, single = (gathered.entry("cells", name) for name in ("plain", "sre"))
    assert seeds is not None
    assert single is not None
    for entry in (seeds, single):
        points = curve(entry)
        assert [point[0] for point in points] == list(range(0, 361, 10))
        assert points[0][1:] == points[-1][1:]
        assert all(low <= centre <= high for _, centre, low, high in points)
    assert curve(single)[5][2:] == tuple(single.runs[0].positions[5]["accuracy_ci"])


def test_a_single_run_of_volumes_has_the_interval_of_all_that_turn_by_one_angle(toml: Path, runs: Path) -> None:
    entry = gather(load_study(toml), runs, "official").entries["cells3d"][0]
    run, shares = entry.runs[0], iter((0.3, 0.6, 0.9))
    positions = [
        {**p, "accuracy": (share := next(shares)), "accuracy_ci": [share - 0.1, share + 0.05]}
        for p in run.positions
        if p["angle"] == 30
    ]
    assert len(positions) == 3
    entry = replace(entry, runs=[replace(run, positions=positions)])
    assert curve(entry) == [pytest.approx((30, 0.6, 0.5, 0.65))]


def test_who_is_right_as_often_is_as_good(toml: Path, runs: Path) -> None:
    """The official protocol rounds accuracies, averaging does not: that decides neither a rank nor who leads."""
    study = replace(load_study(toml), data=("cells",))
    once = replace(study, averaged=(replace(study.averaged[0], turns=1),))
    gathered = gather(once, runs, "official")
    results = []
    for entry in gathered.entries["cells"]:
        scores = [
            {**run.scores, "upright": run.scores["upright"] + 5e-5 * (entry.contestant == "plain")}
            for run in entry.runs
        ]
        results.append(replace(entry, runs=[replace(r, scores=s) for r, s in zip(entry.runs, scores, strict=True)]))
    tasks = dict.fromkeys(("cells", "again"), gathered.tasks["cells"])
    gathered = replace(gathered, entries={"cells": results, "again": results}, tasks=tasks)
    _, plain, same = results
    assert plain.mean("upright") > same.mean("upright")
    drawn = ranking(gathered, list(gathered.entries), "upright")
    assert drawn is not None
    assert drawn["ranks"][1] == drawn["ranks"][2]
    two = replace(gathered, entries={"cells": results[1:]})
    assert [row["lead"] for row in best_of_each(two)] == [0.0, 0.0]


def test_verdicts(toml: Path, runs: Path) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    ((row,),) = headlines(gathered)
    assert (row["data"], row["a"].contestant, row["b"].contestant) == ("cells", "sre", "plain-4")
    difference = row["a"].mean("rotated_mean") - row["b"].mean("rotated_mean")
    assert row["rotated"].mean == pytest.approx(difference)
    counts = tally([row], "rotated")
    assert counts["won"] + counts["lost"] + counts["undecided"] == 1
    assert len(pairs(gathered)) == 6
    among_all = next(each for each in pairs(gathered) if (each["a"], each["b"]) == (row["a"], row["b"]))
    assert among_all["rotated"].p >= row["rotated"].p
    assert among_all["rotated"].mean == row["rotated"].mean
    assert ranking(gathered, ["cells", "cells3d"], "rotated") is None  # only one contestant is on both data sets
