"""The lock on a run directory: who is kept out, who is told whom, and what is left of it."""

import errno
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoconv.cli.main import main
from isoconv.deploy.export import export_run
from isoconv.evaluation.measuring import evaluate
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.runs.lock import BusyError, holder, lock
from isoconv.training.loop import train


@contextmanager
def held(path: Path, until: Callable[[], Any] = lambda: False) -> Iterator[None]:
    """The lock in another thread, which the lock keeps apart as it does processes; given back at the end or before."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(path, "training"):
            taken.set()
            while not (done.wait(0.01) or until()):
                pass

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(30)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory that passes for that of a run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    return tmp_path / "run"


def test_who_comes_second_is_told_who_was_first(run: Path) -> None:
    assert holder(run) is None
    with held(run):
        first = rf"process {os.getpid()} on {platform.node()}, training since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d.*"
        with (
            pytest.raises(BusyError, match=rf"run is in use by {first}; go on when .* --wait"),
            lock(run, "evaluating"),
        ):
            pytest.fail("two at once")
        assert holder(run) is not None
        with lock(run.with_name("other"), "evaluating"):
            pass
    assert holder(run) is None
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.json"]


def test_a_thread_may_take_it_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    with lock(run, "working on a cell"):
        with lock(Path("run"), "training"):
            assert "working on a cell" in str(holder(run))
        assert "working on a cell" in str(holder(run))
    assert holder(run) is None


def test_it_is_given_back_on_failure(run: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(run, "training"):
        _ = 1 / 0
    with held(run):
        pass


def test_it_waits(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isoconv")
    with held(run, until=lambda: caplog.messages), lock(run, "evaluating", wait=True):
        assert [re.sub("process .* since .*;", "...;", message) for message in caplog.messages] == [
            f"{run} is in use by ...; waiting for it"
        ]


def test_one_of_many_gets_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoconv.runs.lock._PATIENCE_S", 0.0)
    for _ in range(20):
        ready, done, won = threading.Barrier(8), threading.Barrier(8), []

        def race(ready: Any = ready, done: Any = done, won: list[bool] = won) -> None:
            ready.wait()
            try:
                with lock(run, "training"):
                    won.append(True)
                    done.wait()
            except BusyError:
                done.wait()

        racers = [threading.Thread(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won == [True]


def test_a_killed_process_holds_it_no_more(run: Path) -> None:
    code = (
        "import sys, pathlib\nfrom isoconv.runs.lock import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'training'):\n    print('held', flush=True)\n    input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {process.pid} on"), lock(run, "evaluating"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert json.loads((run / ".lock.json").read_text())["pid"] == process.pid
    assert holder(run) is None
    with lock(run, "evaluating"):
        assert f"process {os.getpid()}" in str(holder(run))


def test_a_damaged_note_does_no_harm(run: Path) -> None:
    with held(run):
        for text in ("{", "[]", "{}"):
            (run / ".lock.json").write_text(text)
            assert holder(run) == "another process"


def test_a_fresh_directory_is_still_free_for_a_run(tmp_path: Path) -> None:
    config = TrainConfig("cells", "resnet18", tmp_path / "run")
    with lock(config.out, "training"):
        RunDir.create(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with lock(tmp_path / "other", "training"), pytest.raises(FileExistsError, match="exists and is not empty"):
        RunDir.create(replace(config, out=tmp_path / "other"))


def test_nothing_is_left_where_no_run_came_to_be(tmp_path: Path) -> None:
    with lock(tmp_path / "new", "training"):
        assert (tmp_path / "new" / ".lock").exists()
    (tmp_path / "letter.txt").touch()
    with lock(tmp_path, "training"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError, match=r"cannot lock .*/run \(Not a directory\); choose one that you may"),
        lock(tmp_path / "file" / "run", "training"),
    ):
        pass


def test_of_a_medium_that_cannot_be_written_nobody_holds_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock(run, "training"):
        pass

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("filelock.FileLock._acquire", refused)
    assert holder(run) is None
    with pytest.raises(OSError, match="Read-only file system"), lock(run, "evaluating"):
        pass


def test_the_first_process_of_torchrun_holds_it_for_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with held(run):
        with pytest.raises(BusyError), lock(run, "training"):
            pass
        monkeypatch.setenv("RANK", "1")
        with lock(run, "training"):
            pass
    with pytest.raises(ValueError, match="torchrun cannot --wait together"), lock(run, "training", wait=True):
        pass


# Who takes it


def test_what_writes_takes_it(evaluated: Callable[[str], RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated("sre")
    config = replace(run.config, out=run.path)
    with held(run.path):
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        for write in (lambda: train(config, resume=True), lambda: evaluate(run), lambda: export_run(run)):
            with pytest.raises(BusyError, match="sre is in use by process"):
                write()
        assert main(["evaluate", str(run.path)]) == 1
        assert re.fullmatch("error: .*sre is in use by process .* --wait for it\n", capsys.readouterr().err)
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
        export_run(run, out=run.path.with_name("elsewhere.pt2"))


def test_two_evaluations_at_once_keep_what_both_found(
    evaluated: Callable[[str], RunDir], no_figures: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = evaluated("sre")
    (run.path / "results.json").unlink()
    with held(run.path, until=lambda: len(caplog.messages) == 2):
        caplog.set_level(logging.INFO, "isoconv")
        others = [
            threading.Thread(target=evaluate, args=(run, protocol), kwargs={"wait": True})
            for protocol in ("standard", "official")
        ]
        for other in others:
            other.start()
        for other in others:
            other.join()
    assert set(run.results()) == {"standard", "official"}


def test_the_command_line_waits(
    evaluated: Callable[[str], RunDir], no_figures: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = evaluated("sre")
    options = {"width": "4", "epochs": "4", "batch-size": "4", "size": "16", "kernel-sizes": "5 5 3 3", "device": "cpu"}
    line = f"train --data cells --model sre_resnet18 --out {run.path} --resume " + " ".join(
        f"--{name} {value}" for name, value in options.items()
    )
    for command in (f"evaluate {run.path}", line):
        caplog.clear()
        with held(run.path, until=lambda: any("waiting for it" in message for message in caplog.messages)):
            assert main([*command.split(), "--wait", "--json"]) == 0
