"""How far the cells of a study are, told from what lies there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isoconv.evaluation.protocols import PROTOCOLS
from isoconv.runs import RunDir
from isoconv.study.cell import work
from isoconv.study.plan import load_study
from isoconv.study.running import run_study
from isoconv.study.status import state, study_status

Pretend = Callable[[str], None]
Write = Callable[[str], Path]


def test_changed_options_are_found(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    run_study(load_study(write(tiny)), tmp_path, only=["*sre-s0"])
    row = study_status(load_study(write(tiny.replace("width = 2", "width = 3"))), tmp_path)[0]
    assert row["state"] == "failed"
    assert "was started with other options (width 2 -> 3)" in row["detail"]


def test_stopped_and_damaged_runs(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    study = load_study(write(tiny))
    run_study(study, tmp_path)
    (tmp_path / "cells-sre-s0" / "metrics.jsonl").unlink()
    (tmp_path / "cells-plain-s0" / "results.json").unlink()
    (tmp_path / "cells-sre-s1" / "config.json").write_text("{")
    rows = study_status(study, tmp_path)
    assert [row["state"] for row in rows] == ["stopped", "stopped", "failed", "done"]
    assert [row["detail"] for row in rows[:2]] == ["0 of 1 epoch", "not evaluated by protocol standard"]
    assert "is not valid JSON" in rows[2]["detail"]


def test_data_of_ones_own_by_a_relative_path(
    write: Write,
    tiny: str,
    tmp_path: Path,
    pretend: Pretend,
    monkeypatch: pytest.MonkeyPatch,
    own_data: Callable[[Path], Path],
) -> None:
    """A training notes the whole path; the study has to see that it is the same."""
    own_data(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    pretend("finish()")
    study = load_study(write(tiny.replace('"cells"', '"mine"')))
    assert study.config(study.cells[0], Path()).data == str(tmp_path / "mine")
    rows = run_study(study, tmp_path / "runs")
    assert [(row["cell"], row["state"]) for row in rows[:2]] == [("mine-sre-s0", "done"), ("mine-plain-s0", "done")]


def test_what_was_seen_through_another_mask_is_evaluated_again(
    evaluated: Callable[[str], RunDir], write: Write, tiny: str, tmp_path: Path, no_figures: None
) -> None:
    """Of a network trained without the mask, by the protocol that follows the training; by the others not."""
    run, study = evaluated("plain"), replace(load_study(write(tiny)), protocols=PROTOCOLS)
    config = replace(run.config, out=run.path)
    info = json.loads((run.path / "model.json").read_text())
    assert state(config, study.protocols)[0] == "done"
    (run.path / "model.json").write_text(json.dumps({**info, "masked": False}))
    assert state(config, study.protocols)[::2] == ("stopped", "not evaluated by protocol disturbed")
    before = run.results()
    work(config, study.protocols)
    assert state(config, study.protocols)[0] == "done"
    after = run.results()
    assert after["disturbed"]["masked"] is False
    assert {p: after[p] for p in ("standard", "official")} == {p: before[p] for p in ("standard", "official")}
