"""A study on a Dask cluster: all cells are done, though a worker is killed in the middle of one."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isoconv.study.plan import load_study
from isoconv.study.running import run_study
from isoconv.study.status import study_status

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

Write = Callable[[str], Path]
DASK = [sys.executable, "-m", "dask"]


def test_no_scheduler(write: Write, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at tcp://127.0.0.1:1 .*start one with: dask"):
        run_study(load_study(write(tiny)), tmp_path, scheduler="tcp://127.0.0.1:1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a scheduler, and two workers of a thread each, which look after themselves: no nanny."""
    place = tmp_path / "scheduler.json"
    started = [subprocess.Popen([*DASK, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", place])]
    try:
        for _ in range(2):
            worker = ["worker", "--scheduler-file", place, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
            started.append(subprocess.Popen([*DASK, *worker], cwd=tmp_path))
        end = time.monotonic() + 60
        while not place.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        yield json.loads(place.read_text())["address"], started[1:]
    finally:
        for process in reversed(started):  # a worker that looks for its scheduler would not end of itself
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_killed_worker_costs_no_cell(
    cluster: tuple[str, list[subprocess.Popen]], write: Write, tiny: str, tmp_path: Path
) -> None:
    address, workers = cluster
    file, folder = write(tiny.replace("epochs = 1", "epochs = 4")), tmp_path / "runs"
    study, command = load_study(file), [sys.executable, "-m", "isoconv", "study", "run", str(file)]
    with subprocess.Popen([*command, "--runs", str(folder), "--scheduler", address]) as process:
        end = time.monotonic() + 300
        while not list(folder.glob("*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        workers[0].kill()
        assert process.wait(600) == 0
    assert {row["state"] for row in study_status(study, folder)} == {"done"}
