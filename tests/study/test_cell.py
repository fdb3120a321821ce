"""One cell: what is left of the work, and the process that does it."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import joblib
import pytest

from isoconv import evaluation
from isoconv.runs import RunDir
from isoconv.runs.lock import lock
from isoconv.study.__main__ import main
from isoconv.study.cell import BUSY, Outcome, run_cell, work
from isoconv.study.plan import load_study
from isoconv.study.status import state, study_status

Write = Callable[[str], Path]


def test_a_cell_is_trained_once_and_evaluated_once(
    write: Write, tiny: str, tmp_path: Path, few_cells: None, no_figures: None
) -> None:
    study = load_study(write(tiny))
    config = study.config(study.cells[0], tmp_path, device="cpu")
    work(config, study.protocols)
    assert study_status(study, tmp_path)[0]["state"] == "done"
    files = ("model.safetensors", "results.json", "environment.json")
    before = {name: (config.out / name).stat().st_mtime_ns for name in files}
    work(config, study.protocols)
    assert before == {name: (config.out / name).stat().st_mtime_ns for name in files}
    assert list(tmp_path.glob("*.lock*")) == []


def test_a_start_that_was_cut_before_the_config_is_no_obstacle(
    write: Write, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(tiny))
    config = study.config(study.cells[0], tmp_path)
    (config.out / "checkpoints").mkdir(parents=True)
    (config.out / "environment.json").write_text("{}")
    monkeypatch.setattr("isoconv.training.loop.train", lambda config, resume: RunDir.create(config))
    work(config, [])
    assert RunDir(config.out).config == config
    (config.out / "config.json").unlink()
    (config.out / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        work(config, [])


def test_a_protocol_that_a_study_gains_needs_no_training(
    write: Write, tiny: str, tmp_path: Path, few_cells: None, no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(tiny))
    config = study.config(study.cells[0], tmp_path, device="cpu")
    work(config, study.protocols)
    trained = {path: path.read_bytes() for path in config.out.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    earlier = RunDir(config.out).results()
    more = replace(study, protocols=(*study.protocols, "disturbed"))
    row = study_status(more, tmp_path)[0]
    assert (row["state"], row["detail"]) == ("stopped", "not evaluated by protocol disturbed")
    monkeypatch.setattr(evaluation, "evaluate", Mock(wraps=evaluation.evaluate))
    work(config, more.protocols)
    assert [call.args[1] for call in evaluation.evaluate.call_args_list] == ["disturbed"]
    assert study_status(more, tmp_path)[0]["state"] == "done"
    assert trained == {path: path.read_bytes() for path in trained}
    assert RunDir(config.out).results() == {**earlier, "disturbed": RunDir(config.out).results()["disturbed"]}


def test_another_process_at_work_is_left_alone(write: Write, tiny: str, tmp_path: Path) -> None:
    study = load_study(write(tiny))
    config = study.config(study.cells[0], tmp_path)
    with lock(config.out, "training"):
        assert run_cell(config, study.protocols) == Outcome("cells-sre-s0", "left")
    assert list(tmp_path.glob("*.log")) == []


def test_its_process_says_that_the_cell_is_taken(
    write: Write, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(tiny))
    config, statuses = study.config(study.cells[0], tmp_path), []
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"config": config.to_json(), "protocols": []})))
    monkeypatch.setattr("isoconv.study.__main__._end_with_parent", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    process = threading.Thread(target=lambda: statuses.append(main()))
    with lock(config.out, "training"):
        process.start()
        process.join()
    assert statuses == [BUSY]


def test_its_process_ends_with_the_one_that_started_it(write: Write, tiny: str, tmp_path: Path) -> None:
    """Closed is what it reads from, as when the other was killed; what it has trained stays for whoever continues."""
    study = load_study(write(tiny))
    config = replace(study.config(study.cells[0], tmp_path), epochs=1000)
    job = json.dumps({"config": config.to_json(), "protocols": list(study.protocols)})
    with subprocess.Popen(
        [sys.executable, "-m", "isoconv.study"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        process.stdin.write(job + "\n")
        process.stdin.flush()
        end = time.monotonic() + 120
        while not (config.out / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        process.stdin.close()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert state(config, study.protocols)[0] == "stopped"


def test_who_waits_does_what_another_process_has_left(write: Write, tiny: str, tmp_path: Path) -> None:
    study = load_study(write(tiny))
    config, outcomes = study.config(study.cells[0], tmp_path), []
    waiting = threading.Thread(target=lambda: outcomes.append(run_cell(config, study.protocols, wait=True)))
    with lock(config.out, "training"):
        waiting.start()
        waiting.join(1)
        assert not outcomes
    waiting.join()
    assert [(each.cell, each.state) for each in outcomes] == [("cells-sre-s0", "done")]


def test_it_runs_in_the_processes_of_another_pool(write: Write, tiny: str, tmp_path: Path) -> None:
    """As in those of a cluster: function, arguments and outcome go there and back."""
    study = load_study(write(tiny))
    config = replace(study.config(study.cells[0], tmp_path), model="resnet")
    with joblib.parallel_config(backend="loky", n_jobs=2):
        (outcome,) = joblib.Parallel()([joblib.delayed(run_cell)(config, study.protocols)])
    assert (outcome.cell, outcome.state) == ("cells-sre-s0", "failed")
    assert outcome.reason.startswith("unknown model 'resnet'")
    assert (tmp_path / "cells-sre-s0.failed").read_text() == f"{outcome.reason}\n"
