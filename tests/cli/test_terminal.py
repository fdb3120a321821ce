"""What reaches the terminal of names and labels that others chose."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoconv.cli.display import show_table
from isoconv.cli.main import main
from isoconv.deploy.model_card import Usage, model_card
from isoconv.runs import RunDir, write_json

Evaluated = Callable[[str], RunDir]
CLEAR = "\x1b[2J\x1b]0;owned\x07"
SPELT = r"\x1b[2J\x1b]0;owned\x07"


def test_names_of_files(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / f"x{CLEAR}"
    folder.mkdir()
    np.save(folder / "[red]a\n:smile:.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    (folder / f"notes{CLEAR}.txt").touch()
    (folder / f"cut{CLEAR}.png").touch()
    run = str(evaluated("plain").path)
    assert main(["predict", run, str(folder), "--upright-only"]) == 1
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "\x1b" not in text
        assert SPELT in text
    assert r"[red]a\n:smile:.npy" in out
    assert "left out of" in err
    assert "not read: " in err


@pytest.mark.parametrize(
    "line",
    [
        ["evaluate", f"x{CLEAR}"],
        ["predict", "x", f"y{CLEAR}"],
        ["data", "check", f"/x{CLEAR}"],
        ["train", "--data", f"x{CLEAR}", "--model", "resnet18", "--out", "x"],
        ["train", "--data", "cells", "--model", f"resnet{CLEAR}", "--out", "x"],
        ["models", f"x{CLEAR}*"],
    ],
)
def test_errors(
    line: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert err.count("\n") == 1


def test_labels(evaluated: Evaluated, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = evaluated("plain")
    info = run.model_info
    info["task"]["labels"] = [f"{CLEAR}|<script>\n", *info["task"]["labels"][1:]]
    info["task"]["title"] = "<script>alert(1)</script>\n# Owned"
    write_json(run.path / "model.json", info)
    card = model_card(run, Usage('a"b`\n.pt2', "pt2", 1))
    assert "<script>" not in card
    assert "\x1b" not in card
    assert "\n# Owned" not in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert r"""torch.export.load('a"b`\n.pt2')""" in code
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8))
    assert main(["predict", str(run.path), str(tmp_path / "x.npy"), "--upright-only"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["predict", str(run.path), str(tmp_path / "x.npy"), "--upright-only", "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert list(json.loads(out)[0]["probabilities"]) == info["task"]["labels"]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([{f"[bold]{CLEAR}": f"[link=http://x]a[/link] {CLEAR}", "b": ":skull:"}])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]" in out
    assert ":skull:" in out
