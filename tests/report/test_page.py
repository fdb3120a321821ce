"""The page: one file that needs nothing else, and that can be read by everyone."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoconv.cli.main import main
from isoconv.report import page as page_module
from isoconv.report import write_report
from isoconv.study.plan import load_study

Parsed = Callable[[str], Any]


def test_files_beside_each_other(toml: Path, runs: Path, tmp_path: Path) -> None:
    names = [path.name for path in write_report(load_study(toml), runs, tmp_path / "report.html")]
    assert names == ["report.html", "report.md", "report-runs.csv", "report-pairs.csv"]
    assert all((tmp_path / name).stat().st_size for name in names)


def test_nothing_from_outside(page: Path, parsed: Parsed) -> None:
    text = page.read_text()
    seen = parsed(text)
    addresses = [v for _, a in seen.tags for k in ("src", "href", "xlink:href", "srcset") if (v := a.get(k))]
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    assert re.findall(r"https?://|@import|url\((?!\$)", text) == []
    (policy,) = [a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def test_structure_is_accessible(page: Path, parsed: Parsed) -> None:
    seen = parsed(page.read_text())
    identities = [a["id"] for _, a in seen.tags if "id" in a]
    assert len(identities) == len(set(identities))
    anchors = [a["href"] for a in seen.all("a") if (a.get("href") or "").startswith("#")]
    assert {anchor[1:] for anchor in anchors if anchor} <= set(identities)
    assert seen.all("html")[0]["lang"] == "en"
    assert len(seen.all("h1")) == len(seen.all("main")) == 1
    assert all(a.get("alt") for a in seen.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in seen.all("svg"))
    assert all(a.get("scope") for a in seen.all("th"))
    assert all(a.get("tabindex") == "0" for _, a in seen.tags if a.get("role") == "region")
    labelled = {a["for"] for a in seen.all("label") if "for" in a}
    assert {a["id"] for a in seen.all("input") if a["type"] == "range"} <= labelled


def test_what_users_write_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<title>Few cells &lt;turned&gt;</title>" in text
    assert "SRE &amp; friends" in text
    assert "<turned>" not in text
    assert "no &lt;good&gt;" in text


def test_it_says_what_is_missing_and_small(page: Path, parsed: Parsed) -> None:
    text = " ".join(parsed(page.read_text()).text.split())
    assert "4 of 8 runs are finished" in text
    assert "one image is 2.50 points" in text
    assert "1 against 2" in text  # seeds
    assert "4 done, 0 running, 0 stopped, 1 failed, 3 missing." in text


def test_other_protocol_and_no_headline_pair(toml: Path, runs: Path, tmp_path: Path, parsed: Parsed) -> None:
    for cell in ("cells-plain-s0", "cells-plain-s1"):
        shutil.rmtree(runs / cell)
    write_report(load_study(toml), runs, tmp_path / "report.html", "official")
    text = parsed((tmp_path / "report.html").read_text()).text
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


def test_command_line(toml: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["study", "report", str(toml), "--runs", str(runs), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report.html"] == str(out)
    assert main(["study", "report", str(toml), "--runs", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: no run of study few in ")


def test_p_never_seems_to_say_other_than_its_verdict() -> None:
    assert [page_module._p(p) for p in (1e-5, 0.0496, 0.0504, 0.2)] == ["< 0.0001", "0.0496", "0.0504", "0.20"]


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
