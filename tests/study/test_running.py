"""Running a study: a pool of processes whose failures stay their own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoconv.runs.lock import lock
from isoconv.study import cell
from isoconv.study.plan import load_study
from isoconv.study.running import run_study
from isoconv.study.status import study_status

Pretend = Callable[[str], None]
Write = Callable[[str], Path]


def _states(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["cell"].removeprefix("cells-"): row["state"] for row in rows}


def test_failures_stay_their_own_and_are_tried_again(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    study, folder = load_study(write(tiny)), tmp_path / "runs"
    pretend(
        """
        if out.name == "cells-sre-s0":
            sys.stderr.write("error: no good\\n")
            sys.exit(1)
        if out.name == "cells-plain-s0":
            os.kill(os.getpid(), signal.SIGKILL)
        if out.name == "cells-sre-s1":
            sys.exit("oops")
        finish()
        """
    )
    rows = run_study(study, folder)
    assert _states(rows) == {"sre-s0": "failed", "plain-s0": "failed", "sre-s1": "failed", "plain-s1": "done"}
    assert [row["detail"] for row in rows] == [
        "no good",
        "killed by SIGKILL, perhaps for memory: use fewer --jobs",
        "oops",
        "",
    ]
    (folder / "calls").unlink()
    pretend("finish()")
    assert set(_states(run_study(study, folder)).values()) == {"done"}
    assert (folder / "calls").read_text().split() == ["cells-sre-s0", "cells-plain-s0", "cells-sre-s1"]
    assert list(folder.glob("*.failed")) == []
    (folder / "calls").unlink()
    run_study(study, folder)
    assert not (folder / "calls").exists()


def test_a_killed_worker_takes_no_other_along(
    write: Write, tiny: str, tmp_path: Path, pretend: Pretend, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three cells two at a time; the first is killed while the second works, the third comes after."""
    caplog.set_level("INFO", "isoconv")
    study, folder = load_study(write(tiny)), tmp_path / "runs"
    chosen = ("*-s0", "*sre-s1")
    pretend(
        """
        (out.parent / f"{out.name}.here").touch()
        if out.name == "cells-sre-s0":
            wait_for("cells-plain-s0.here")
            os.kill(os.getpid(), signal.SIGKILL)
        if out.name == "cells-plain-s0":
            wait_for("cells-sre-s0.failed")
        finish()
        """
    )
    rows = run_study(study, folder, jobs=2, only=chosen)
    assert _states(rows) == {"sre-s0": "failed", "plain-s0": "done", "sre-s1": "done"}
    assert rows[0]["detail"] == "killed by SIGKILL, perhaps for memory: use fewer --jobs"
    assert "[1/3] cells-sre-s0: failed: killed by SIGKILL, perhaps for memory: use fewer --jobs" in caplog.messages
    assert sorted((folder / "calls").read_text().split()) == ["cells-plain-s0", "cells-sre-s0", "cells-sre-s1"]
    (folder / "calls").unlink()
    pretend("finish()")
    assert set(_states(run_study(study, folder, jobs=2, only=chosen)).values()) == {"done"}
    assert (folder / "calls").read_text().split() == ["cells-sre-s0"]


def test_jobs_run_at_once_and_share_the_gpus(
    write: Write, tiny: str, tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "_gpus", lambda: ["3", "5"])
    pretend(
        """
        twin = out.name.replace("sre", "x").replace("plain", "sre").replace("x", "plain")
        (out.parent / f"{out.name}.gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        wait_for(f"{twin}.gpu")
        finish()
        """
    )
    study, folder = load_study(write(tiny)), tmp_path / "runs"
    assert set(_states(run_study(study, folder, jobs=2)).values()) == {"done"}
    for seed in (0, 1):
        assert {(folder / f"cells-{name}-s{seed}.gpu").read_text() for name in ("sre", "plain")} == {"3", "5"}


def test_threads_are_shared_among_the_jobs(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    pretend("(out.parent / 'seen').write_text(f'{config[\"threads\"]} {os.environ[\"OMP_NUM_THREADS\"]}')")
    run_study(load_study(write(tiny)), tmp_path, only=["*sre-s0"], jobs=1000)
    assert (tmp_path / "seen").read_text() == "1 1"


def test_shards_share_the_cells(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    study = load_study(write(tiny))
    parts = [run_study(study, tmp_path / str(i), shard=(i, 3)) for i in (1, 2, 3)]
    names = [row["cell"] for part in parts for row in part]
    assert sorted(names) == sorted(cell.name for cell in study.cells)
    assert [len(part) for part in parts] == [2, 1, 1]


def test_a_cell_of_another_process_is_left_to_it(write: Write, tiny: str, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    with lock(tmp_path / "cells-sre-s0", "training"):
        rows = run_study(load_study(write(tiny)), tmp_path, only=["*-s0"])
    assert _states(rows) == {"sre-s0": "running", "plain-s0": "done"}
    assert re.match(f"process {os.getpid()} on .*, training since 20", rows[0]["detail"])


@pytest.mark.parametrize("code", ["sys.exit(3)", "sys.exit(143)", "os.kill(os.getpid(), signal.SIGINT)"])
def test_who_finds_its_cell_taken_or_is_stopped_did_not_fail(
    write: Write, tiny: str, tmp_path: Path, pretend: Pretend, code: str
) -> None:
    pretend(code)
    assert set(_states(run_study(load_study(write(tiny)), tmp_path)).values()) == {"missing"}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_workers(
    write: Write, tiny: str, tmp_path: Path, pretend: Pretend, jobs: int, number: int, error: type[BaseException]
) -> None:
    """As Ctrl-C does, and SIGTERM by the handler of the command line; what they worked on counts as stopped."""
    study, folder = load_study(write(tiny)), tmp_path / "runs"
    pretend(
        """
        with (out.parent / "pids").open("a") as pids:
            pids.write(f"{os.getpid()}\\n")
        time.sleep(60)
        """
    )

    def pids() -> list[int]:
        path = folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def send() -> None:
        while len(pids()) < jobs:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    def stop(*_: object) -> None:
        raise error

    before, sender, start = signal.signal(number, stop), threading.Thread(target=send), time.monotonic()
    sender.start()
    try:
        with pytest.raises(error):
            run_study(study, folder, jobs=jobs)
    finally:
        signal.signal(number, before)
    sender.join()
    assert time.monotonic() - start < 50
    for pid in pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    time.sleep(0.5)  # for a thread that would go on with another cell, or note a failure
    assert len(pids()) == jobs
    assert set(_states(study_status(study, folder)).values()) == {"missing"}
    pretend("finish()")
    assert set(_states(run_study(study, folder, jobs=2)).values()) == {"done"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_study_loses_no_cell_and_does_none_twice(
    write: Write, tiny: str, tmp_path: Path, pretend: Pretend
) -> None:
    """What it had started goes on by itself, and the next command does the rest."""
    study, folder = load_study(write(tiny)), tmp_path / "runs"
    pretend("wait_for('go')\nfinish()")
    script = f"""if True:
        from pathlib import Path
        from isoconv.study import cell
        from isoconv.study.plan import load_study
        from isoconv.study.running import run_study
        cell._WORKER = {cell._WORKER!r}
        run_study(load_study({str(tmp_path / "tiny.toml")!r}), Path({str(folder)!r}), jobs=2)
        """
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    calls = folder / "calls"
    while not (calls.exists() and len(calls.read_text().split()) == 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (folder / "go").touch()
    begun = calls.read_text().split()
    while not all((folder / name / "results.json").exists() for name in begun):
        time.sleep(0.01)
    pretend("finish()")
    assert set(_states(run_study(study, folder, jobs=2)).values()) == {"done"}
    assert sorted(calls.read_text().split()) == sorted(cell.name for cell in study.cells)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (0, 2)}, r"shard must be i/n with i from 1 to n, got 0/2"),
        ({"shard": (3, 2)}, r"got 3/2"),
        ({"only": ["cells-plan-s0"]}, r"no cell of study tiny matches 'cells-plan-s0'; did you mean 'cells-plain-s0'"),
        ({"jobs": 0}, r"jobs must be at least 1, got 0"),
    ],
)
def test_impossible_runs(write: Write, tiny: str, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_study(load_study(write(tiny)), tmp_path / "runs", **options)


def test_a_network_that_cannot_be_built_is_refused_before_any_work(write: Write, tiny: str, tmp_path: Path) -> None:
    study = load_study(write(tiny.replace('model = "resnet18"', 'model = "resnet18"\nbands = 3')))
    with pytest.raises(TypeError, match="'resnet18' has no option 'bands'"):
        run_study(study, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
