"""Every failure is one line: what someone foresaw says what to do, the rest how to see and report it."""

import io
import json
import logging
from pathlib import Path

import pytest

from isoconv.cli.main import main
from isoconv.runs import TrainConfig
from isoconv.study import __main__ as worker


def _failing(error: Exception) -> object:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such\n  thing"), "error: no such thing"),
        (OSError(28, "No space left"), "error: cannot write a file (No space left); free disk space"),
        (
            KeyError("masked"),
            "error: unexpected KeyError ('masked'), a defect of isoconv; the same command with --debug",
        ),
        (IndexError(), "error: unexpected IndexError, a defect of isoconv; the same command with --debug shows where"),
        (AssertionError(), "error: unexpected AssertionError, a defect of isoconv; the same"),
    ],
)
def test_the_command_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("isoconv.models.list_models", _failing(error))
    assert main(["models"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith(line)
    assert ("Please report it: the traceback" in told.err) == ("defect" in line)
    with pytest.raises(type(error)):
        main(["models", "--debug"])


def test_the_worker_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"config": TrainConfig("cells", "resnet18", tmp_path).to_json(), "protocols": []}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(worker, "work", _failing(KeyError("masked")))
    assert worker.main() == 1
    *traceback, line = capsys.readouterr().err.splitlines()
    assert traceback[0] == "Traceback (most recent call last):"
    told = (
        "error: unexpected KeyError ('masked'), a defect of isoconv; the log of the cell shows where. Please report it"
    )
    assert line.startswith(told)
