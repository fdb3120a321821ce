"""The tables beside the page."""

import csv
from pathlib import Path

from isoconv.report.scores import gather
from isoconv.report.tables import markdown
from isoconv.study.plan import load_study


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
    assert rows[0]["command"].startswith("isoconv train --data cells --size 16 --model sre_resnet18")
    with (tmp_path / "report-pairs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    text = (tmp_path / "report.md").read_text()
    assert "| plain, 4 turns | 2 |" in text
    assert "40 test images: one image is 2.50 points." in text


def test_titles_do_not_break_tables(toml: Path, runs: Path) -> None:
    toml.write_text(toml.read_text().replace("SRE & friends", "SRE | friends"))
    assert "| SRE \\| friends | 1 |" in markdown(gather(load_study(toml), runs, "standard"))
