"""`isoconv study ...`."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoconv.cli.main import main
from isoconv.study import cell

Write = Callable[[str], Path]


def test_command_line(
    write: Write, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real worker in a process of its own, on few images; then the failures that a user sees."""
    (tmp_path / "worker.py").write_text(
        "import sys\nfrom dataclasses import replace\nfrom isoconv import data, figures\n"
        "data.TASKS['cells'] = data.SYNTHETIC['cells'] = replace(data.TASKS['cells'], counts=(16, 8, 8))\n"
        "figures.save_all = lambda *_: []\nfrom isoconv.study.__main__ import main\nsys.exit(main())\n"
    )
    monkeypatch.setattr(cell, "_WORKER", [sys.executable, str(tmp_path / "worker.py")])
    monkeypatch.setenv("COLUMNS", "200")
    path, runs = str(write(tiny)), str(tmp_path / "runs")
    assert main(["study", "run", path, "--runs", runs, "--only", "*plain-s0", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["counts"] == {"done": 1, "running": 0, "stopped": 0, "failed": 0, "missing": 0}
    assert main(["study", "status", path, "--runs", runs]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"cells +│ plain +│ 1 +│ - +│ - +│ - +│ 1 ", shown)
    assert "1 done, 0 running, 0 stopped, 0 failed, 3 missing, of 4 cells" in shown

    (Path(runs) / "cells-sre-s0.failed").write_text("no good\n")
    assert main(["study", "status", path, "--runs", runs]) == 0
    assert "cells-sre-s0: failed, no good" in capsys.readouterr().out
    monkeypatch.setattr(cell, "_WORKER", [sys.executable, "-c", "raise SystemExit('error: broken')"])
    assert main(["study", "run", path, "--runs", runs, "--only", "*sre-s0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == ("error: 1 of 1 cell failed (cells-sre-s0); the logs say more")
    assert main(["study", "run", path, "--shard", "3"]) == 1
    assert capsys.readouterr().err == "error: shard must look like 3/8, got '3'\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["run", "status", "report"]),
        ("run", ["STUDY.toml", "--jobs", "--threads", "--shard", "--only", "--runs", "$ISOCONV_DATA", "--json"]),
        ("status", ["STUDY.toml", "--runs", "--json"]),
        ("report", ["STUDY.toml", "--out", "--protocol", "HTML", "--json"]),
    ],
)
def test_help(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", *command.split(), "--help"])
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []
