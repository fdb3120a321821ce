"""Files that belong together: whenever the process that writes them is killed, all of them are there or none."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from isoconv.deploy import hub
from isoconv.deploy.export import export_run
from isoconv.evaluation import evaluate
from isoconv.evaluation.prediction import write_predictions
from isoconv.figures import save
from isoconv.models import create_model
from isoconv.runs import RunDir, atomic_write, settle, whole_folder, write_json, write_set

Evaluated = Callable[[str], RunDir]
CALLS = ("replace", "fsync", "mkdir", "rmdir")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def killed(work: Callable[[], object], at: int) -> bool:
    """Do some work in a process that is killed just before its ``at``-th call to the system; whether it got there."""
    if (child := os.fork()) == 0:
        calls = 0

        def counted(call: Callable) -> Callable:
            def do(*args: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls > at:
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(60)
                return call(*args, **options)

            return do

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def put(text: str) -> Callable:
    return lambda file: file.write(text.encode())


def visible(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("before", [{}, {"a": "old a", "b": "old b"}])
def test_a_set_whenever_it_is_killed(tmp_path: Path, before: dict[str, str]) -> None:
    after, seen = {"a": "new a", "b": "new b"}, set()

    def work(folder: Path) -> None:
        write_set({folder / name: put(text) for name, text in after.items()})

    for at in range(100):
        folder = tmp_path / str(at)
        folder.mkdir()
        for name, text in before.items():
            (folder / name).write_text(text)
        if not killed(lambda folder=folder: work(folder), at):
            break
        settle(folder / "a")
        seen.add(tuple(sorted(visible(folder).items())))
        assert visible(folder) in (before, after), at
        work(folder)
        assert visible(folder) == after
        assert len(list(folder.iterdir())) == 2, at
    assert at > 5
    assert len(seen) == 2
    assert visible(folder) == after


def test_two_processes_settle_at_once(tmp_path: Path) -> None:
    ready = tmp_path / ".a.set"
    for _ in range(50):
        ready.mkdir()
        for name in "abcdefgh":
            (ready / name).write_text("new")
        children = [os.fork() for _ in range(2)]
        if 0 in children:
            try:
                settle(tmp_path / "a")
                os._exit(0)
            finally:
                os._exit(1)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert visible(tmp_path) == dict.fromkeys("abcdefgh", "new")
        assert not ready.exists()


def test_a_folder_whenever_it_is_killed(tmp_path: Path) -> None:
    def work() -> None:
        with whole_folder(tmp_path / "made") as made:
            for name in "ab":
                (made / name).write_text("new")

    for at in range(100):
        if not killed(work, at):
            break
        assert not (tmp_path / "made").exists()
    assert at > 1
    assert visible(tmp_path / "made") == {"a": "new", "b": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise ZeroDivisionError

    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_set({tmp_path / "a": put("new"), tmp_path / "b": fail})
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "c") as made:
        fail(made)
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert visible(tmp_path) == {"a": "old"}


# Where there is no space, or no permission


ERRORS = {errno.ENOSPC: "free disk space", errno.EACCES: "get permission", errno.EROFS: "not read-only"}


def refuse_files(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A system that refuses every file to be written."""
    path_open = Path.open

    def refuse(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        if mode != "rb" and set(mode) & set("wax"):
            raise OSError(number, os.strerror(number))
        return path_open(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)


def masks(path: Path, run: RunDir) -> None:
    row = {"source": "x.png", "index": None, "mask": np.zeros((4, 4), np.uint8), "shares": {}}
    write_predictions(run.task, [row], path)


def figure(path: Path, _: RunDir) -> None:
    save(Figure(), path)


WRITERS: dict[str, Callable[[Path, RunDir], object]] = {
    "model.safetensors": lambda path, run: export_run(run, "safetensors", path),
    "pretrained": lambda path, _: hub.save_pretrained(create_model("resnet18", 1, 2, width=2), path),
    "masks": masks,
    "curve.png": figure,
    "a.json": lambda path, _: write_json(path, {}),
    "set": lambda path, _: write_set({path: put("a"), path.with_name("b"): put("b")}),
}


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("name", WRITERS)
def test_errors_of_the_system_name_file_and_remedy(
    name: str, number: int, tmp_path: Path, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = evaluated("plain"), tmp_path / "out"
    folder.mkdir()
    refuse_files(monkeypatch, number)
    with pytest.raises(OSError, match="cannot write ") as caught:
        WRITERS[name](folder / name, run)
    text = str(caught.value)
    assert str(folder / name) in text
    assert ERRORS[number] in text
    assert "[Errno" not in text
    assert not list(folder.iterdir())


def test_what_was_there_before_is_said_to_be_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a", {})
    refuse_files(monkeypatch, errno.ENOSPC)
    told = (
        r"cannot write .*/a \(No space left on device\); what was there before is intact; free disk space, then go on"
    )
    with pytest.raises(OSError, match=told):
        write_json(tmp_path / "a", {"b": 1})
    assert (tmp_path / "a").read_text() == "{}\n"


# In use


def forked(monkeypatch: pytest.MonkeyPatch, module: str, at: int) -> None:
    """The next :func:`write_set` is killed at its ``at``-th call to the system, and so ends what called it."""

    def die(files: dict) -> None:
        monkeypatch.undo()
        assert killed(lambda: write_set(files), at)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.write_set", die)


@pytest.mark.parametrize("at", [0, 2, 4, 5, 6])
def test_a_killed_export_does_not_hinder_the_next(
    at: int, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = evaluated("plain"), tmp_path / "out"
    folder.mkdir()
    forked(monkeypatch, "isoconv.deploy.export", at)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, "safetensors", folder / "net.safetensors")
    export_run(run, "safetensors", folder / "net.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["net.safetensors", "net.safetensors.md"]
    with pytest.raises(FileExistsError):
        export_run(run, "safetensors", folder / "net.safetensors")


@pytest.mark.parametrize("at", [0, 3, 4, 5])
def test_results_and_predictions_of_a_killed_evaluation_fit(
    at: int, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated("plain")
    old = run.results()["standard"]["data"]["test_images"]
    forked(monkeypatch, "isoconv.runs.rundir", at)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, "standard", limit=old // 2)
    run = RunDir(run.path)
    shown = run.results()["standard"]["data"]["test_images"]
    assert shown in (old, old // 2)
    assert run.arrays("predictions.npz")["standard_labels"].shape == (shown,)
