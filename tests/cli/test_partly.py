"""Commands on many things: what fails is named, the others are done, and the exit status tells."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoconv.cli.main import main
from isoconv.evaluation.prediction import Predictor, predict
from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate("ac"):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def cut(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])


def constant(folder: Path) -> None:
    np.save(folder / "b.npy", np.zeros((16, 16, 3), np.uint8))


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "b.png")


def dangling(folder: Path) -> None:
    (folder / "b.png").symlink_to(folder / "nowhere.png")


def without_its_extra(folder: Path) -> None:
    (folder / "b.dcm").write_bytes(bytes(128) + b"DICM")


BAD = [cut, constant, pipe, dangling, without_its_extra]


@pytest.mark.parametrize("bad", BAD)
def test_the_other_pictures_are_answered(
    bad: Callable[[Path], None],
    pictures: Path,
    evaluated: Evaluated,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad(pictures)
    if bad is without_its_extra:
        monkeypatch.setitem(sys.modules, "pydicom", None)
    run = str(evaluated("plain").path)
    assert main(["predict", run, str(pictures), "--upright-only", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["source"] for row in json.loads(out)] == [str(pictures / "a.png"), str(pictures / "c.png")]
    named, last = err.splitlines()
    assert named.startswith("not read: ")
    assert "b." in named or "pydicom" in named
    assert last == "error: 1 file could not be read, see above; the others are done"


def test_tables_hold_the_others(pictures: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    cut(pictures)
    run, paths = str(evaluated("plain").path), [str(pictures), str(tmp_path / "gone.png")]
    for name in ("rows.csv", "rows.json"):
        assert main(["predict", run, *paths, "--upright-only", "--out", str(tmp_path / name)]) == 1
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [Path(row["source"]).name for row in csv.DictReader(file)] == ["a.png", "c.png"]
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2


def test_where_nothing_can_be_read_nothing_is_written(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(evaluated("plain").path), tmp_path / "rows.csv"
    assert main(["predict", run, "gone.png", "--out", str(out)]) == 1
    assert capsys.readouterr().err == "error: there is no file or folder gone.png\n"
    assert main(["predict", run, "gone.png", "lost.png", "--out", str(out)]) == 1
    assert capsys.readouterr().err.endswith("error: 2 files could not be read, see above\n")
    assert not out.exists()


def test_a_program_is_told_or_stopped(pictures: Path, evaluated: Evaluated) -> None:
    cut(pictures)
    predictor, told = Predictor(evaluated("plain")), []
    names, images = predictor.read(pictures, lambda path, error: told.append((path.name, type(error))))
    assert [Path(name).name for name in names] == ["a.png", "c.png"]
    assert len(images) == 2
    assert [name for name, _ in told] == ["b.png"]
    with pytest.raises(ValueError, match=r"cannot read .*b\.png"):
        predictor.read(pictures)
    assert predict(predictor.run, [pictures / "b.png"], onerror=lambda *_: None) == []


def test_a_folder_that_cannot_be_listed(pictures: Path, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scandir = pictures / "closed", os.scandir
    closed.mkdir()

    def refuse(path: Path) -> Iterator:  # as the system does for all but root
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told: list[Path] = []
    assert len(predict(evaluated("plain"), pictures, rotations=False, onerror=lambda path, _: told.append(path))) == 2
    assert told == [closed]


def test_other_data_sets_are_fetched(few_cells: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "breastmnist.npz").write_bytes(b"damaged")
    assert main(["data", "fetch", "breastmnist", "cells", "--data-root", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"cells": "synthetic seed=0"}
    named, last = err.splitlines()
    assert named.startswith("not fetched: ")
    assert "breastmnist" in named
    assert last == "error: 1 data set could not be fetched, see above; the others are done"
