"""The report: the numbers of the runs, one file that needs nothing else, and a page that works in a browser."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoconv.cli.main import main
from isoconv.evaluation.protocols import conditions
from isoconv.report import page as page_module
from isoconv.report import write_report
from isoconv.report.charts import rank_diagram
from isoconv.report.comparing import best_of_each, curve, headline, pairs, ranking, tally
from isoconv.report.scores import gather
from isoconv.report.turning import _words
from isoconv.runs import RunDir
from isoconv.study.plan import load_study
from isoconv.tasks.metrics import decide

STUDY = """
title = "Few cells <turned>"
data = ["cells", "cells3d"]
seeds = [0, 1]
protocols = ["standard", "official"]
headline = ["sre", "plain-4"]
[options]
width = 4
epochs = 4
batch_size = 4
size = 16
3d = { width = 2, epochs = 1 }
[[contestant]]
name = "sre"
title = "SRE & friends"
model = "sre_resnet18"
2d = { kernel_sizes = [5, 5, 3, 3] }
[[contestant]]
name = "plain"
model = "resnet18"
[[averaged]]
name = "plain-4"
title = "plain, 4 turns"
of = "plain"
turns = 4
[[averaged]]
name = "plain-36"
of = "plain"
turns = 36
"""
NAMES = {"sre": "cells-sre-s0", "plain": "cells-plain-s0", "plain1": "cells-plain-s1", "volumes": "cells3d-sre-s0"}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "few.toml").write_text(STUDY)
    return tmp_path / "few.toml"


@pytest.fixture
def runs(evaluated: Callable[[str], RunDir], tmp_path: Path) -> Path:
    """Four finished cells of eight."""
    (tmp_path / "runs").mkdir()
    for name, cell in NAMES.items():
        evaluated(name).path.rename(tmp_path / "runs" / cell)
    (tmp_path / "runs" / "cells3d-plain-s1.failed").write_text("no <good>\n")
    return tmp_path / "runs"


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a test asks for."""

    VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(toml: Path, runs: Path, tmp_path: Path) -> Path:
    write_report(load_study(toml), runs, tmp_path / "report.html")
    return tmp_path / "report.html"


def test_files_beside_each_other(toml: Path, runs: Path, tmp_path: Path) -> None:
    names = [path.name for path in write_report(load_study(toml), runs, tmp_path / "report.html")]
    assert names == ["report.html", "report.md", "report-runs.csv", "report-pairs.csv"]
    assert all((tmp_path / name).stat().st_size for name in names)


def test_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    parsed = Page(text)
    addresses = [v for _, a in parsed.tags for k in ("src", "href", "xlink:href", "srcset") if (v := a.get(k))]
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    assert re.findall(r"https?://|@import|url\((?!\$)", text) == []
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def test_structure_is_accessible(page: Path) -> None:
    parsed = Page(page.read_text())
    identities = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(identities) == len(set(identities))
    anchors = [a["href"] for a in parsed.all("a") if (a.get("href") or "").startswith("#")]
    assert {anchor[1:] for anchor in anchors if anchor} <= set(identities)
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == len(parsed.all("main")) == 1
    assert all(a.get("alt") for a in parsed.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in parsed.all("svg"))
    assert all(a.get("scope") for a in parsed.all("th"))
    assert all(a.get("tabindex") == "0" for _, a in parsed.tags if a.get("role") == "region")
    labelled = {a["for"] for a in parsed.all("label") if "for" in a}
    assert {a["id"] for a in parsed.all("input") if a["type"] == "range"} <= labelled


def test_what_users_write_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<title>Few cells &lt;turned&gt;</title>" in text
    assert "SRE &amp; friends" in text
    assert "<turned>" not in text
    assert "no &lt;good&gt;" in text


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
    assert plain.runs[0].confusion["upright"].tolist() == confusion
    assert plain.runs[0].confusion["rotated"].sum().item() == 36 * 40


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
    gathered = replace(gathered, entries={"cells": results, "again": results})
    _, plain, same = results
    assert plain.mean("upright") > same.mean("upright")
    drawn = ranking(gathered, "upright")
    assert drawn is not None
    assert drawn["ranks"][1] == drawn["ranks"][2]
    two = replace(gathered, entries={"cells": results[1:]})
    assert [row["lead"] for row in best_of_each(two)] == [0.0, 0.0]


def test_verdicts(toml: Path, runs: Path) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    (row,) = headline(gathered)
    assert (row["data"], row["a"].contestant, row["b"].contestant) == ("cells", "sre", "plain-4")
    difference = row["a"].mean("rotated_mean") - row["b"].mean("rotated_mean")
    assert row["rotated"].mean == pytest.approx(difference)
    counts = tally([row], "rotated")
    assert counts["won"] + counts["lost"] + counts["undecided"] == 1
    assert len(pairs(gathered)) == 6
    among_all = next(each for each in pairs(gathered) if (each["a"], each["b"]) == (row["a"], row["b"]))
    assert among_all["rotated"].p >= row["rotated"].p
    assert among_all["rotated"].mean == row["rotated"].mean
    assert ranking(gathered, "rotated") is None  # only one contestant is on both data sets


def test_tables(page: Path, tmp_path: Path) -> None:
    with (tmp_path / "report-runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["data"], r["contestant"], r["seed"]) for r in rows] == [
        ("cells", "sre", "0"),
        ("cells", "plain", "0"),
        ("cells", "plain", "1"),
        ("cells", "plain-4", "0"),
        ("cells", "plain-4", "1"),
        ("cells", "plain-36", "0"),
        ("cells", "plain-36", "1"),
        ("cells3d", "sre", "0"),
    ]
    assert rows[0]["command"].startswith("isoconv train --data cells --model sre_resnet18")
    with (tmp_path / "report-pairs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    text = (tmp_path / "report.md").read_text()
    assert "| plain, 4 turns | 2 |" in text
    assert "40 test images: one is 2.50 points." in text


def test_conditions_beyond_rotation(toml: Path, runs: Path, tmp_path: Path) -> None:
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
    page = Page((tmp_path / "report.html").read_text())
    assert page.text.count("protocol disturbed") == 4  # a chart and a table on each of two data sets
    assert page.text.count("seen through the inscribed disc") == 4
    assert page.text.count("not measured") == 3 * 10  # plain and its two averages
    text = (tmp_path / "report.md").read_text()
    assert f"| SRE & friends | 1 | {100 * summary['rotated_mean']:.1f} | {100 * summary['zoomed']:.1f} |" in text
    assert "| plain | 2 | not measured |" in text


def test_who_saw_the_mask_is_said(toml: Path, runs: Path, tmp_path: Path) -> None:
    """A study may have networks of both kinds; each is shown what it was trained on, and old results are left out."""
    study = replace(load_study(toml), protocols=("official", "disturbed"))
    for seed in (0, 1):
        path = runs / f"cells-plain-s{seed}"
        info = RunDir(path).model_info
        (path / "model.json").write_text(json.dumps({**info, "masked": False}))
    for protocol in study.protocols:
        write_report(study, runs, tmp_path / "report.html", protocol)
        page = Page((tmp_path / "report.html").read_text()).text
        everyone = "plain, plain, 4 turns, plain-36 whole images"
        if protocol == "official":
            assert page.count(f"each as in its training: SRE & friends through the inscribed disc, {everyone}") == 2
            assert page.count("not measured") == 3 * 10
        else:
            assert "plain" not in {e.contestant for e in gather(study, runs, protocol).entries["cells"]}
    assert "Protocol disturbed, seen through the inscribed disc:" in (tmp_path / "report.md").read_text()


def test_no_table_of_conditions_that_a_study_does_not_have(page: Path, tmp_path: Path) -> None:
    assert "disturbed" not in Page(page.read_text()).text
    assert "disturbed" not in (tmp_path / "report.md").read_text()


def test_the_protocol_of_disturbances_by_itself(toml: Path, runs: Path, tmp_path: Path) -> None:
    study = replace(load_study(toml), protocols=("disturbed",))
    gathered = gather(study, runs, "disturbed")
    assert [len(point) for point in curve(gathered.entries["cells"][0])] == [4] * 13
    write_report(study, runs, tmp_path / "report.html")
    assert "plain, 4 turns" in Page((tmp_path / "report.html").read_text()).text
    assert "plain-36" not in Page((tmp_path / "report.html").read_text()).text  # there are 12 turns
    ninth = replace(study, averaged=(replace(study.averaged[0], turns=9),))  # 40 degrees are not among them
    assert [e.contestant for e in gather(ninth, runs, "disturbed").entries["cells"]] == ["sre", "plain"]


def test_it_says_what_is_missing_and_small(page: Path) -> None:
    text = " ".join(Page(page.read_text()).text.split())
    assert "4 of 8 runs are finished" in text
    assert "one image is 2.50 points" in text
    assert "1 against 2" in text  # seeds
    assert "4 done, 0 running, 0 stopped, 1 failed, 3 missing." in text


def test_turning_images(page: Path) -> None:
    match = re.search(r'<script type="application/json" id="turn-json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match is not None
    turning: dict[str, Any] = json.loads(match[1])
    assert list(turning) == ["cells"]  # of the volumes only one of the two contestants has run
    cells = turning["cells"]
    assert len(cells["positions"]) == 36
    assert cells["positions"][3] == "30°"
    for example in cells["examples"]:
        for strip in (example["strip"], *example["maps"]):
            assert strip.startswith("data:image/webp;base64,")
        assert len(example["maps"]) == 2
        for chances, decisions in zip(example["probabilities"], example["decisions"], strict=True):
            assert np.shape(chances) == (36, len(cells["labels"]))
            assert np.sum(chances, axis=1) == pytest.approx(1, abs=0.01)
            decided = np.take_along_axis(np.array(chances), np.array(decisions)[:, None], 1)[:, 0]
            assert (decided == np.max(chances, axis=1)).all()


def examples_of(text: str) -> dict[str, int]:
    match = re.search(r'<script type="application/json" id="turn-json">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return {data: len(it["examples"]) for data, it in json.loads(match[1]).items()}


def test_images_that_turn_keep_to_what_the_page_may_take(
    toml: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out, sizes = load_study(toml), tmp_path / "report.html", []
    for budget, examples in ((10**9, 4), (-1, 3), (0, 1)):
        monkeypatch.setattr(page_module, "BUDGET", budget if budget >= 0 else sizes[-1] - 1)
        write_report(study, runs, out)
        sizes.append(out.stat().st_size)
        assert examples_of(out.read_text()) == {"cells": examples}
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("protocol", "dims", "words"),
    [
        ("standard", 2, ["0°", "10°"]),
        ("standard", 3, ["0°, rotation 0 of the cube", "random rotation 31"]),
        ("official", 3, ["30° about the depth axis", "360° about the width axis"]),
    ],
)
def test_positions_in_words(protocol: str, dims: int, words: list[str]) -> None:
    shown = [_words(p) for p in conditions(protocol, dims) if p.group in ("rotation", "cube")]
    assert [word for word in words if not any(word in each for each in shown)] == []


def test_other_protocol_and_no_headline_pair(toml: Path, runs: Path, tmp_path: Path) -> None:
    for cell in ("cells-plain-s0", "cells-plain-s1"):
        shutil.rmtree(runs / cell)
    write_report(load_study(toml), runs, tmp_path / "report.html", "official")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "sre and plain-4, have no data set in common yet" in text
    assert "protocol official" in text
    assert "Turn an image" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda runs, out: shutil.rmtree(runs), r"no run of study few in .* is finished; give --runs"),
        (lambda runs, out: out.parent.rmdir(), r"out is not a writable folder"),
    ],
)
def test_impossible_reports(toml: Path, runs: Path, tmp_path: Path, damage: Callable, message: str) -> None:
    out = tmp_path / "out" / "report.html"
    out.parent.mkdir()
    damage(runs, out)
    with pytest.raises(FileNotFoundError, match=message):
        write_report(load_study(toml), runs, out)


def test_a_protocol_that_the_study_lacks(toml: Path, runs: Path, tmp_path: Path) -> None:
    study = replace(load_study(toml), protocols=("official",))
    with pytest.raises(ValueError, match="study few is evaluated by official, not by standard"):
        write_report(study, runs, tmp_path / "report.html", "standard")


def test_a_report_is_html(toml: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is an HTML file, name it so: --out .*report.html, got .*report.md"):
        write_report(load_study(toml), runs, tmp_path / "report.md")


def test_other_test_images_are_refused(toml: Path, runs: Path, tmp_path: Path) -> None:
    path = runs / "cells-plain-s1" / "predictions.npz"
    arrays = dict(np.load(path))
    arrays["standard_labels"] = arrays["standard_labels"][::-1].copy()
    np.savez(path, **arrays)
    message = r"plain-s1 was evaluated on other test images than .* of cells; do it, or them, again: isoconv evaluate"
    with pytest.raises(ValueError, match=message):
        write_report(load_study(toml), runs, tmp_path / "report.html")


def test_command_line(toml: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["study", "report", str(toml), "--runs", str(runs), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report.html"] == str(out)
    assert main(["study", "report", str(toml), "--runs", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: no run of study few in ")


def test_p_never_seems_to_say_other_than_its_verdict() -> None:
    assert [page_module._p(p) for p in (1e-5, 0.0496, 0.0504, 0.2)] == ["< 0.0001", "0.0496", "0.0504", "0.20"]


def test_titles_do_not_break_tables(toml: Path, runs: Path) -> None:
    toml.write_text(STUDY.replace("SRE & friends", "SRE | friends"))
    assert "| SRE \\| friends | 1 |" in page_module.markdown(gather(load_study(toml), runs, "standard"))


def test_ranks_are_told_to_those_who_do_not_see_them() -> None:
    svg = rank_diagram([(0, "a"), (1, "b & c")], [1.75, 1.25], [], 0.98)
    assert 'aria-label="Average ranks over data sets: b &amp; c 1.25, a 1.75; critical difference 0.98"' in svg
    assert "more than the axis" not in svg
    assert "more than the axis" in rank_diagram([(0, "a"), (1, "b")], [1, 2], [(1, 2)], 1.13)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_texts_stand_out_from_what_is_behind_them() -> None:
    """4.5 : 1, as WCAG 2 asks of small text, light and dark."""
    css = files("isoconv.report").joinpath("report.css").read_text("utf-8")
    themes = re.findall(r":root\{([^}]*)\}", css)
    assert len(themes) == 3
    for theme in themes:
        colour = dict(re.findall(r"--(\w+):(#\w+)", theme))
        colour = {name: c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for name, c in colour.items()}
        heat = [int(c) for c in re.findall(r"--heat:(\d+),(\d+),(\d+)", theme)[0]]
        behind = [int(colour["bg"][i : i + 2], 16) for i in (1, 3, 5)]
        colour["hot"] = "#" + "".join(f"{round(0.6 * h + 0.4 * b):02x}" for h, b in zip(heat, behind, strict=True))
        series = [(f"c{i}", "bg") for i in range(7)]
        texts = [(text, back) for text in ("fg", "soft", "link") for back in ("bg", "panel")]
        for text, back in [*series, *texts, ("soft", "win"), ("soft", "loss"), ("fg", "hot")]:
            low, high = sorted((_luminance(colour[text]), _luminance(colour[back])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


# In a browser

ACT = """
<pre id="outcome"></pre><script>
addEventListener("load", () => {
  const outcome = {};
  const $ = (id) => document.getElementById(id);
  const shift = () => $("turn-frame").style.backgroundPositionX;
  const state = () => [$("turn-where").textContent, shift(), $("turn-bars").textContent];
  const send = (it, type) => it.dispatchEvent(new Event(type, {bubbles: true}));
  outcome.first = state();
  $("turn-angle").value = 13;
  send($("turn-angle"), "input");
  outcome.turned = state();
  outcome.maps = [...document.querySelectorAll("#turn-bars .map")].map((map) => [
    map.style.backgroundImage.slice(0, 27),
    map.style.backgroundPositionX,
  ]);
  outcome.strip = $("turn-frame").style.backgroundImage.slice(0, 27);
  $("turn-image").value = 1;
  send($("turn-image"), "change");
  outcome.image = state();
  const table = document.querySelector("#cells table.sortable");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const values = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.v);
  table.tHead.querySelectorAll("button")[3].click();
  outcome.down = values(3).map(Number);
  table.tHead.querySelectorAll("button")[3].click();
  outcome.up = values(3).map(Number);
  outcome.sorted = table.tHead.rows[0].cells[3].getAttribute("aria-sort");
  table.tHead.querySelectorAll("button")[7].click();
  outcome.flips = [values(7)];
  table.tHead.querySelectorAll("button")[7].click();
  outcome.flips.push(values(7));
  const line = () => getComputedStyle(document.querySelector("#cells figure > svg .series.s0")).display;
  outcome.line = [line()];
  document.querySelector("[data-series='0']").click();
  outcome.line.push(line());
  outcome.captions = [...document.querySelectorAll("caption")].map((it) => it.offsetWidth < innerWidth);
  outcome.wide = document.documentElement.scrollWidth > innerWidth;
  $("outcome").textContent = JSON.stringify(outcome);
});
</script>
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on this machine: the page is tested by its structure only")
    return found


@pytest.mark.parametrize("width", [390, 1200])
def test_in_chromium(page: Path, tmp_path: Path, chromium: str, width: int) -> None:
    """The slider moves, numbers change, tables sort, lines hide, nothing is wider than the screen, no message."""
    (tmp_path / "acted.html").write_text(page.read_text().replace("</body>", ACT + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    result = subprocess.run(
        [
            chromium,
            *flags.split(),
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--dump-dom",
            (tmp_path / "acted.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    match = re.search(r'<pre id="outcome">(.+?)</pre>', result.stdout)
    assert match is not None
    outcome = json.loads(match[1].replace("&amp;", "&"))
    assert outcome["first"][:2] == ["0°", "0px"]
    assert outcome["turned"][:2] == ["130°", f"{-160 * 13}px"]
    assert outcome["turned"][2] != outcome["first"][2]
    assert outcome["image"][2] != outcome["turned"][2]
    assert outcome["strip"].startswith('url("data:image/webp')
    assert outcome["maps"] == [[outcome["strip"], f"{-96 * 13}px"]] * 2
    assert outcome["down"] == sorted(outcome["down"], reverse=True)
    assert outcome["up"] == sorted(outcome["down"])
    assert outcome["sorted"] == "ascending"
    for values in outcome["flips"]:  # the averaged have none
        assert values[2:] == ["", ""]
        assert "" not in values[:2]
    assert outcome["line"][0] != "none"
    assert outcome["line"][1] == "none"
    assert all(outcome["captions"])
    assert not outcome["wide"]
