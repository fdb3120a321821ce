"""Running a study: a process per cell, several at once, on several machines.

Beside the directory of a cell, `breastmnist-sre-s0`, lie

```
breastmnist-sre-s0.lock    who works on it: no cell runs twice at once, on however many machines that share the folder
breastmnist-sre-s0.log     what it said
breastmnist-sre-s0.failed  one line, if it failed
```
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoconv._checks import count_of, did_you_mean
from isoconv.data import MEDMNIST, get_task, load
from isoconv.data.medmnist import find
from isoconv.evaluation.comparison import results_by
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.study.plan import Cell, Study, command
from isoconv.tasks import task_of

__all__ = ["STATES", "BusyError", "locked", "run_cell", "run_study", "study_status"]

log = logging.getLogger(__name__)

STATES = ("done", "running", "stopped", "failed", "missing")
"""What a cell of a study can be."""
_BUSY = 3  # exit status of a process that found its cell taken
_HALF_WRITTEN_S = 60  # a lock without content is being written, unless it is older than this
_POLL_S = 0.2
_RESOLVED = ("task", "width", "size", "loss", "lr", "batch_size", "precondition")  # by the training, where left open
_WORKER = [sys.executable, "-m", "isoconv.study.running"]


def study_status(study: Study, folder: Path) -> list[dict[str, Any]]:
    """A row per cell, plain JSON values: ``cell``, ``data``, ``contestant``, ``seed``, ``state`` (one of
    :data:`STATES`), the ``epochs`` that are done, ``detail`` in words, and the ``command`` that trains it."""
    return [_status(study, cell, folder) for cell in study.cells]


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    only: Sequence[str] = (),
    threads: int | None = None,
    device: str = "auto",
    data_root: Path | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate what is not done yet.

    What was stopped goes on after its last finished epoch; what failed is tried again; a cell on which another process
    works is left to it. A cell that fails does not stop the others.

    Args:
        folder: gets the run directories.
        jobs: processes at once, each taking one cell after the other.
        shard: (i, n): only every n-th cell, from the i-th on, i in 1..n.
        only: only cells whose name matches one of these shell patterns.
        threads: CPU threads of a process; None shares those of this process among the jobs.
        device, data_root: as in TrainConfig. Where there are several GPUs the jobs are spread over them.

    Returns:
        Rows of :func:`study_status` for the chosen cells.

    Raises:
        ValueError: no cell is chosen, or a contestant's network cannot be built.
        OSError: the folder cannot be written.
    """
    cells = _chosen(study, shard, only)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if threads is None:
        threads = max(1, _cores() // jobs)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written; choose a --runs folder that you may write to")
    place = {"device": device, "threads": threads, "data_root": data_root}
    work = [study.config(cell, folder, **place) for cell in cells]
    todo = [config for config in work if _state(config, study.protocols)[0] not in ("done", "running")]
    to_do, each = count_of(len(work), "cell"), count_of(threads, "thread")
    log.info("%d of %s to do, %d at once with %s each", len(todo), to_do, jobs, each)
    _check_networks(todo)
    _fetch(todo)
    _Pool(study.protocols, jobs).run(todo)
    return [_status(study, cell, folder) for cell in cells]


class _Pool:
    """Processes that work on cells, ``jobs`` at once."""

    def __init__(self, protocols: Sequence[str], jobs: int) -> None:
        self.protocols, self.jobs, self.gpus = protocols, jobs, _gpus()
        self.active: dict[int, _Job] = {}
        self.ended = 0

    def run(self, configs: Sequence[TrainConfig]) -> None:
        waiting = deque(configs)
        try:
            while waiting or self.active:
                for slot in range(self.jobs):
                    if slot not in self.active and waiting:
                        self._start(slot, waiting.popleft())
                for slot, job in list(self.active.items()):
                    if (status := job.process.poll()) is not None:
                        del self.active[slot]
                        self.ended += 1
                        job.note_end(status, f"[{self.ended}/{len(configs)}] {job.config.out.name}")
                time.sleep(_POLL_S)
        finally:  # stopped by a signal: the cells end after their last finished epoch and are resumed next time
            for job in self.active.values():
                job.process.terminate()
            for job in self.active.values():
                job.process.wait()

    def _start(self, slot: int, config: TrainConfig) -> None:
        if _state(config, self.protocols)[0] in ("done", "running"):  # by another process in the meantime
            self.ended += 1
            return
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
        if config.device != "cpu" and len(self.gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        _beside(config.out, "failed").unlink(missing_ok=True)
        with _beside(config.out, "log").open("ab") as output:
            start = output.tell()
            process = subprocess.Popen(
                _WORKER,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        if process.stdin is not None:
            with process.stdin as pipe, suppress(BrokenPipeError):
                pipe.write(json.dumps({"config": config.to_json(), "protocols": self.protocols}).encode())
        log.info("%s: started, log in %s", config.out.name, _beside(config.out, "log"))
        self.active[slot] = _Job(config, process, start, time.monotonic())


@dataclass(frozen=True)
class _Job:
    config: TrainConfig
    process: subprocess.Popen[bytes]
    log_start: int
    began: float

    def note_end(self, status: int, label: str) -> None:
        if status == 0:
            log.info("%s: done in %.0f s", label, time.monotonic() - self.began)
        elif status == _BUSY:
            log.info("%s: another process works on it", label)
        else:
            reason = self._reason(status)
            _beside(self.config.out, "failed").write_text(reason + "\n")
            log.warning("%s: failed: %s", label, reason)

    def _reason(self, status: int) -> str:
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}{', perhaps for memory: use fewer --jobs' if name == 'SIGKILL' else ''}"
        with _beside(self.config.out, "log").open(errors="replace") as file:
            file.seek(self.log_start)
            lines = [line.strip() for line in file if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or [f"exit status {status} without a word"])[-1]


def run_cell(config: TrainConfig, protocols: Sequence[str]) -> None:
    """Train a cell, or what is left of it, and evaluate it by the protocols by which it was not.

    Raises:
        BusyError: another process works on it.
        ValueError, OSError, FloatingPointError: as `isoconv.training.train` and `isoconv.evaluation.evaluate` do.
    """
    from isoconv.evaluation.measuring import evaluate
    from isoconv.figures import save_all
    from isoconv.training.loop import train

    with locked(config.out):
        run = train(config, resume=(config.out / "config.json").exists())
        for protocol in protocols:
            if not _is_evaluated(run, protocol):
                evaluate(run, protocol, device=config.device)
                save_all(run, protocol)


class BusyError(RuntimeError):
    """Another process works on a cell."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of the cell whose run directory is ``out``. Raises BusyError if another process does.

    The lock of a process of this machine that is dead is taken over. Of a process on another machine nothing is known:
    where that died, delete its lock by hand.
    """
    lock = _beside(out, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    if not _acquire(lock):
        raise BusyError(f"another process works on {out} ({lock.read_text() if lock.exists() else 'it just ended'})")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _acquire(lock: Path) -> bool:
    me = {"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid())}
    try:
        file = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        holder = _holder(lock)
        if holder is None:
            return _acquire(lock)
        if not _is_dead(holder):
            return False
    else:
        with os.fdopen(file, "w") as f:
            json.dump(me, f)
        return True
    # Of several that found the same dead holder, only one may replace its lock: the one that holds the claim on it. Who
    # gets the claim later finds another holder.
    claim = lock.with_name(lock.name + "+")
    if not _acquire(claim):
        return False
    if _holder(lock) == holder:
        os.replace(claim, lock)
        return True
    claim.unlink()
    return False


def _holder(lock: Path) -> dict[str, Any] | None:
    """Content of a lock; None if there is none."""
    try:
        text, written = lock.read_text(), lock.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"half_written": written}


def _is_dead(holder: Mapping[str, Any]) -> bool:
    if "half_written" in holder:
        return time.time() - holder["half_written"] > _HALF_WRITTEN_S
    if holder["host"] != platform.node():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return holder["born"] != _born(holder["pid"])


def _born(pid: int) -> str | None:
    """When a process began, on Linux: process numbers are used again, in a container after every restart. None of one
    that has ended and waits for its parent to notice, which many a container's first process never does."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else numbers[18]


def _status(study: Study, cell: Cell, folder: Path) -> dict[str, Any]:
    config = study.config(cell, folder)
    state, epochs, detail = _state(config, study.protocols)
    row = {"cell": cell.name, "data": cell.data, "contestant": cell.contestant, "seed": cell.seed}
    return {**row, "state": state, "epochs": epochs, "detail": detail, "command": command(config)}


def _state(config: TrainConfig, protocols: Sequence[str]) -> tuple[str, int, str]:
    failed = _beside(config.out, "failed")
    run, epochs, todo = None, 0, "not begun"
    try:
        if (config.out / "config.json").exists():
            run = RunDir(config.out)
            epochs = len(run.metrics())
            old = run.config
            left = [name for name in _RESOLVED if getattr(config, name) is None]
            run.check_same(replace(config, **{name: getattr(old, name) for name in left}))
    except ValueError as error:
        return "failed", epochs, str(error)
    if (holder := _holder(_beside(config.out, "lock"))) and not _is_dead(holder):
        return "running", epochs, f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    if run is not None and epochs < config.epochs:
        todo = f"{epochs} of {count_of(config.epochs, 'epoch')}"
    elif run is not None:
        left = [protocol for protocol in protocols if not _is_evaluated(run, protocol)]
        if not left:
            return "done", epochs, ""
        todo = f"not evaluated by protocol {' and '.join(left)}"
    if failed.exists():
        return "failed", epochs, failed.read_text().strip()
    return ("missing" if run is None else "stopped"), epochs, todo


def _is_evaluated(run: RunDir, protocol: str) -> bool:
    try:
        results_by(run, protocol)
    except (FileNotFoundError, ValueError):
        return False
    return (run.path / "predictions.npz").exists()


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _chosen(study: Study, shard: tuple[int, int], only: Sequence[str]) -> list[Cell]:
    number, count = shard
    if not 1 <= number <= count:
        raise ValueError(f"shard must be i/n with i from 1 to n, got {number}/{count}")
    cells, names = study.cells, [cell.name for cell in study.cells]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no cell of study {study.name} matches {pattern!r}{did_you_mean(pattern, names)}")
    chosen = [cell for cell in cells if not only or any(fnmatch.fnmatchcase(cell.name, each) for each in only)]
    return chosen[number - 1 :: count]


def _check_networks(configs: Sequence[TrainConfig]) -> None:
    """Refuse, before any work, a network that cannot be built."""
    import torch

    from isoconv.training.loop import build

    for config in {replace(config, data="", out=Path(), seed=0): config for config in configs}.values():
        with torch.device("meta"):
            build(config, task_of(get_task(config.data, config.task)))


def _fetch(configs: Sequence[TrainConfig]) -> None:
    """Download once what the cells need; where that fails, they say so themselves."""
    for name, size, root in dict.fromkeys((config.data, config.size or 28, config.data_root) for config in configs):
        if name in MEDMNIST and find(MEDMNIST[name], size, root) is None:
            try:
                load(name, size, root)
            except (OSError, ValueError) as error:
                log.warning("%s: %s", name, error)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _main() -> int:
    """Work on the one cell that stdin describes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    job = json.load(sys.stdin)
    try:
        run_cell(TrainConfig.from_json(job["config"]), job["protocols"])
    except BusyError:
        return _BUSY
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        logging.getLogger("isoconv").debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
