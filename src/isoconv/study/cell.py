"""One cell of a study: the work, and a process of its own to do it in.

Whatever kills that process, the pool that runs cells stays whole and learns of it: a task of the pool only watches.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from isoconv.runs.config import TrainConfig
from isoconv.runs.lock import lock
from isoconv.runs.writing import writing
from isoconv.study.status import beside, is_evaluated, state

__all__ = ["BUSY", "Outcome", "ending_together", "run_cell", "work"]

log = logging.getLogger(__name__)

BUSY = 3
"""Exit status of a process that finds another at work on its cell."""
_STOPPED = {status for number in (signal.SIGINT, signal.SIGTERM) for status in (-number, 128 + number)}
_POLL_S = 2.0
_WORKER = [sys.executable, "-m", "isoconv.study"]

_gate = threading.Lock()  # to what follows, which the threads of a pool share
_running: set[subprocess.Popen[str]] = set()
_cells_on: Counter[str] = Counter()  # by GPU
_closed = threading.Event()  # no process starts any more


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: ``done``, ``failed`` for a ``reason``, ``stopped`` by a signal, or ``left`` to another
    process, which has done it or works on it."""

    cell: str
    state: Literal["done", "failed", "stopped", "left"]
    reason: str = ""
    seconds: float = 0.0


def work(config: TrainConfig, protocols: Sequence[str]) -> None:
    """Train a cell, or what is left of it, and evaluate it by the protocols by which it was not.

    Raises:
        BusyError: another process works on it.
        ValueError, OSError, FloatingPointError: as `isoconv.training.train` and `isoconv.evaluation.evaluate` do.
    """
    from isoconv.evaluation import evaluate
    from isoconv.figures import save_all
    from isoconv.training.loop import train

    with lock(config.out, "working on a cell of a study"):
        run = train(config, resume=(config.out / "config.json").exists())
        for protocol in protocols:
            if not is_evaluated(run, protocol):
                evaluate(run, protocol, device=config.device)
                save_all(run, protocol)


def run_cell(config: TrainConfig, protocols: Sequence[str], *, wait: bool = False) -> Outcome:
    """Do the work on a cell in a process of its own, unless it is done or another process works on it.

    What that process says goes to the log of the cell, and if it fails, one line why to the file beside it.

    Args:
        config, protocols: what to train, and by what to evaluate it.
        wait: until another process that works on the cell has ended, and do what it has left.

    Raises:
        OSError: the folder of the cell cannot be written, or no process can be started.
    """
    name = config.out.name
    while (found := state(config, protocols)[0]) == "running" and wait:
        time.sleep(_POLL_S)
    if found in ("done", "running"):
        return Outcome(name, "left")
    failed, log_file = beside(config.out, "failed"), beside(config.out, "log")
    failed.unlink(missing_ok=True)
    log.info("%s: started, log in %s", name, log_file)
    began = time.monotonic()
    with log_file.open("ab") as output, _gpu(config.device) as variables:
        start = output.tell()
        if config.threads is not None:
            variables["OMP_NUM_THREADS"] = str(config.threads)
        job = json.dumps({"config": config.to_json(), "protocols": list(protocols)})
        status = _run_process(job, output, variables)
    if status == 0:
        return Outcome(name, "done", seconds=time.monotonic() - began)
    if status == BUSY:
        return run_cell(config, protocols, wait=True) if wait else Outcome(name, "left")
    if status in _STOPPED:
        return Outcome(name, "stopped")
    reason = _reason(status, log_file, start)
    with writing(failed):
        failed.write_text(reason + "\n")
    return Outcome(name, "failed", reason)


@contextmanager
def ending_together() -> Iterator[None]:
    """What ends the block early, such as Ctrl-C, ends the processes of all cells that threads of this process run."""
    _closed.clear()
    try:
        yield
    except BaseException:
        with _gate:
            _closed.set()
            for process in _running:
                process.terminate()
            ending = list(_running)
        for process in ending:
            process.wait()
        raise


def _run_process(job: str, output: IO[bytes], variables: Mapping[str, str]) -> int:
    """Exit status of a process that gets ``job`` to read, as a line. What it reads from stays open as long as this
    process lives: however that ends, the other learns of it."""
    with _gate:
        if _closed.is_set():
            return -signal.SIGTERM
        process = subprocess.Popen(
            _WORKER,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            text=True,
        )
        _running.add(process)
    stdin = cast(IO[str], process.stdin)
    try:
        with suppress(BrokenPipeError):  # it has ended before it read
            stdin.write(job + "\n")
            stdin.flush()
        process.wait()
    finally:
        process.terminate()  # no more than a word to one that has ended
        status = process.wait()
        with suppress(BrokenPipeError):
            stdin.close()
        with _gate:
            _running.discard(process)
    return status


@contextmanager
def _gpu(device: str) -> Iterator[dict[str, str]]:
    """Variables that show a cell one of several GPUs: the one with the fewest cells of this process."""
    gpus = [] if device == "cpu" else _gpus()
    if len(gpus) < 2:
        yield {}
        return
    with _gate:
        gpu = min(gpus, key=lambda each: _cells_on[each])
        _cells_on[gpu] += 1
    try:
        yield {"CUDA_VISIBLE_DEVICES": gpu}
    finally:
        with _gate:
            _cells_on[gpu] -= 1


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _reason(status: int, log_file: Path, start: int) -> str:
    """Why a process failed: its last error, or its last line."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}{', perhaps for memory: use fewer --jobs' if name == 'SIGKILL' else ''}"
    with log_file.open(errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status} without a word"])[-1]
