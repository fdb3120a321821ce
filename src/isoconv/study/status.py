"""How far the cells of a study are.

Beside the run directory of a cell, `breastmnist-sre-s0`, lie

```
breastmnist-sre-s0.log     what its processes said
breastmnist-sre-s0.failed  one line, if the last of them failed
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoconv._checks import count_of
from isoconv.evaluation.comparison import results_by
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.runs.lock import holder
from isoconv.study.plan import Cell, Study, command

__all__ = ["STATES", "beside", "is_evaluated", "row", "state", "study_status"]

STATES = ("done", "running", "stopped", "failed", "missing")
"""What a cell of a study can be."""
_RESOLVED = ("task", "width", "size", "loss", "lr", "batch_size", "precondition", "balance", "norm")
"""What the training decides where a study leaves it open."""


def study_status(study: Study, folder: Path) -> list[dict[str, Any]]:
    """A row per cell, plain JSON values: ``cell``, ``data``, ``contestant``, ``seed``, ``state`` (one of
    ``STATES``), the ``epochs`` that are done, ``detail`` in words, and the ``command`` that trains it."""
    return [row(study, cell, folder) for cell in study.cells]


def row(study: Study, cell: Cell, folder: Path) -> dict[str, Any]:
    """That of :func:`study_status` for one cell."""
    config = study.config(cell, folder)
    name, epochs, detail = state(config, study.protocols)
    about = {"cell": cell.name, "data": cell.data, "contestant": cell.contestant, "seed": cell.seed}
    return {**about, "state": name, "epochs": epochs, "detail": detail, "command": command(config)}


def state(config: TrainConfig, protocols: Sequence[str]) -> tuple[str, int, str]:
    """State, finished epochs and detail of the cell that ``config`` trains."""
    failed = beside(config.out, "failed")
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
    if (who := holder(config.out)) is not None:
        return "running", epochs, who
    if run is not None and epochs < config.epochs:
        todo = f"{epochs} of {count_of(config.epochs, 'epoch')}"
    elif run is not None:
        missing = [protocol for protocol in protocols if not is_evaluated(run, protocol)]
        if not missing:
            return "done", epochs, ""
        todo = f"not evaluated by protocol {' and '.join(missing)}"
    if failed.exists():
        return "failed", epochs, failed.read_text().strip()
    return ("missing" if run is None else "stopped"), epochs, todo


def is_evaluated(run: RunDir, protocol: str) -> bool:
    """Whether a report could show what the evaluation of ``run`` by ``protocol`` found."""
    try:
        results_by(run, protocol)
    except (FileNotFoundError, ValueError):
        return False
    return (run.path / "predictions.npz").exists()


def beside(out: Path, suffix: str) -> Path:
    """A file of the cell whose run directory is ``out``."""
    return out.with_name(f"{out.name}.{suffix}")
