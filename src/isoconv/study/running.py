"""Running a study: cells by a pool of joblib, several at once, on several machines.

Each task of the pool is a call of :func:`isoconv.study.run_cell`. With a scheduler of Dask, the tasks go to the workers
of its cluster, on other machines.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoconv._checks import count_of, did_you_mean
from isoconv._extras import require
from isoconv._progress import time_left
from isoconv.data import MEDMNIST, get_task, load
from isoconv.data.medmnist import find
from isoconv.runs import writing
from isoconv.runs.config import TrainConfig
from isoconv.study.cell import Outcome, ending_together, run_cell
from isoconv.study.plan import Cell, Study
from isoconv.study.status import row, state
from isoconv.tasks import task_of

if TYPE_CHECKING:
    import joblib
else:
    joblib = require("joblib", extra="study")

__all__ = ["run_study"]

log = logging.getLogger(__name__)

_PATIENCE_S = 10


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
    scheduler: str | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate what is not done yet.

    What was stopped goes on after its last finished epoch; what failed is tried again; a cell on which another process
    works is left to it. A cell that fails does not stop the others.

    Args:
        folder: gets the run directories.
        jobs: cells at once, each in a process of its own.
        shard: (i, n): only every n-th cell, from the i-th on, i in 1..n.
        only: only cells whose name matches one of these shell patterns.
        threads: CPU threads of a process; None shares those of this process among the jobs.
        device, data_root: as in TrainConfig. Where there are several GPUs the jobs are spread over them.
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``, whose workers do the cells, each as many at
            once as it has threads; they see ``folder`` and the data at the same paths. ``jobs`` then says nothing, and
            ``threads=None`` stands for 1. Needs the extra ``cluster``.

    Returns:
        Rows of :func:`isoconv.study.study_status` for the chosen cells.

    Raises:
        ValueError: no cell is chosen, or a contestant's network cannot be built.
        OSError: the folder cannot be written, or there is no scheduler at the address.
    """
    cells = _chosen(study, shard, only)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if threads is None:
        threads = 1 if scheduler else max(1, _cores() // jobs)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written; choose a --runs folder that you may write to")
    place = {"device": device, "threads": threads, "data_root": data_root}
    work = [study.config(cell, folder, **place) for cell in cells]
    todo = [config for config in work if state(config, study.protocols)[0] not in ("done", "running")]
    to_do, each = count_of(len(work), "cell"), count_of(threads, "thread")
    at_once = f"by {scheduler}" if scheduler else f"{jobs} at once"
    log.info("%d of %s to do, %s with %s each", len(todo), to_do, at_once, each)
    _check_networks(todo)
    _fetch(todo)
    if scheduler is not None:
        folder = folder.absolute()
        todo = [replace(config, out=config.out.absolute()) for config in todo]
    # Threads suffice to watch over processes; and loky, joblib's own choice, drops all cells if one worker is killed.
    local = {"n_jobs": max(1, min(jobs, len(todo))), "prefer": "threads"}
    start = time.monotonic()
    with ending_together(), _cluster(scheduler):
        pool = joblib.Parallel(return_as="generator_unordered", **({"n_jobs": -1} if scheduler else local))
        one = partial(run_cell, protocols=study.protocols, wait=scheduler is not None)
        outcomes = pool(joblib.delayed(one)(config) for config in todo)
        for number, outcome in enumerate(outcomes, 1):
            left = time_left(time.monotonic() - start, number, len(todo))
            _tell(f"[{number}/{len(todo)}] {outcome.cell}", outcome, left)
    return [row(study, cell, folder) for cell in cells]


@contextmanager
def _cluster(scheduler: str | None) -> Iterator[None]:
    """In the block, the tasks of joblib go to the workers of a Dask ``scheduler``."""
    if scheduler is None:
        yield
        return
    distributed = require("distributed", extra="cluster")
    try:
        client = distributed.Client(scheduler, timeout=_PATIENCE_S)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with: dask scheduler"
        ) from None
    with client, joblib.parallel_config(backend="dask"):
        yield


def _tell(label: str, outcome: Outcome, left: str) -> None:
    if outcome.state == "done":
        log.info("%s: done in %.0f s%s", label, outcome.seconds, left)
    elif outcome.state == "failed":
        log.warning("%s: failed: %s", label, outcome.reason)
    elif outcome.state == "stopped":
        log.warning("%s: stopped", label)
    else:
        log.info("%s: another process has done it or works on it", label)


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
