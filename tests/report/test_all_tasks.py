"""All 18 tasks through the whole study, on generated files of the published layout: one epoch, narrow networks."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoconv import data
from isoconv.data import MEDMNIST, Task
from isoconv.report import write_report
from isoconv.report.page import BUDGET
from isoconv.study.cell import work
from isoconv.study.plan import load_study
from isoconv.study.status import study_status

STUDIES = Path(__file__).parents[2] / "studies"
COUNTS = {"train": 12, "val": 6, "test": 7}


def _write(folder: Path, task: Task) -> str:
    """Write a file of the task's layout and return its MD5. Few images: most classes are absent from most splits."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in COUNTS.items():
        shape = (n, *(28,) * task.dims, *((3,) if task.channels == 3 else ()))
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        multilabel = task.kind == "multilabel"
        labels = rng.integers(0, 2 if multilabel else len(task.labels), (n, len(task.labels) if multilabel else 1))
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    path = folder / task.filename(28)
    np.savez(path, **arrays)
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "standard"])
def test_every_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None) -> None:
    """The committed studies, with the two contestants of the headline, made small."""
    for task in MEDMNIST.values():
        own = replace(task, md5={28: _write(tmp_path, task)})
        for table in (data.TASKS, data.MEDMNIST):
            monkeypatch.setitem(table, task.name, own)
    text = (STUDIES / f"{name}.toml").read_text()
    (tmp_path / f"{name}.toml").write_text(
        text.replace("epochs = 100", "epochs = 1").replace("width = 64", "width = 1")
    )
    study = load_study(tmp_path / f"{name}.toml")
    study = replace(
        study,
        seeds=(0,),
        protocols=study.protocols[:1],
        contestants=tuple(c for c in study.contestants if c.name in study.headline),
    )
    assert len(study.data) == 18
    runs = tmp_path / "runs"
    for cell in study.cells:
        work(study.config(cell, runs, device="cpu", data_root=tmp_path), study.protocols)
    assert {row["state"] for row in study_status(study, runs)} == {"done"}
    write_report(study, runs, tmp_path / "report.html", data_root=tmp_path)
    table = (tmp_path / "report-runs.csv").read_text().splitlines()
    assert len(table) == 1 + 18 * 2 + 12 * 2  # plain, averaged over turns: images only
    page = (tmp_path / "report.html").read_text()
    assert len(page.encode()) < BUDGET
    assert all(f"<h2>{task.title}</h2>" in page for task in MEDMNIST.values())
    assert page.count('<table class="matrix">') == 18 * 2 * 2
