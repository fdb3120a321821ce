"""What people read of the command line: warnings without code, rows that say what they mean, and what is there without
the extras."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import isoconv
from isoconv import __main__ as program
from isoconv.cli.main import main
from isoconv.data.check import check
from isoconv.data.dataset import Dataset, Split
from isoconv.deploy.export import Export
from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]
CORE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in 'tyro rich lightning scipy joblib torchmetrics kornia'.split():
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
from isoconv.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, f"isoconv {isoconv.__version__}\n", ""),
        (["--help"], 0, "the commands come with the extra study, isoconv[study]\n", ""),
        ([], 0, "the commands come with the extra study, isoconv[study]\n", ""),
        (["models"], 1, "", "isoconv[study]"),
    ],
)
def test_without_any_extra(arguments: list[str], code: int, out: str, err: str) -> None:
    done = subprocess.run([sys.executable, "-c", CORE, *arguments], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.endswith(out)
    assert err in done.stderr
    assert done.stderr.count("\n") == (code == 1)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["isoconv", "--version"])
    assert program.main() == 0
    assert capsys.readouterr() == (f"isoconv {isoconv.__version__}\n", "")


def warned(category: type[Warning], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    def warn(_: str) -> list[str]:
        warnings.warn("this is\nodd", category, stacklevel=1)
        return ["resnet18"]

    monkeypatch.setattr("isoconv.models.list_models", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["models", "--json", *arguments]) == 0


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, FutureWarning, DeprecationWarning])
def test_warnings_of_libraries(
    category: type[Warning], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warned(category, monkeypatch)
    out, err = capsys.readouterr()
    assert "resnet18" in json.loads(out)
    assert err == ("warning: this is\\nodd\n" if category is UserWarning else "")


def test_for_programmers_warnings_say_where(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    warned(FutureWarning, monkeypatch, "--debug")
    (warning,) = recwarn.list
    assert (warning.category, warning.filename) == (FutureWarning, __file__)


def test_a_published_set_is_as_it_is(monkeypatch: pytest.MonkeyPatch, few_cells: None) -> None:
    load = isoconv.data.load

    def damaged(*args: object, **options: object) -> Dataset:
        found = load("cells", 16)
        images = found.test.images.clone()
        images[0], images[1] = found.train.images[0], 7
        return Dataset(found.task, 16, found.train, found.val, Split(images, found.test.labels), found.source)

    monkeypatch.setattr("isoconv.data.check.load", damaged)
    report = check("cells", 16)
    assert report.errors == []
    assert report.warnings[:2] == [
        "test[1] is constant, all its pixels are equal",
        "the same image in two splits: train[0] (train), test[0] (test)",
    ]


def test_breastmnist_can_be_used(medmnist_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "breastmnist", "--data-root", str(medmnist_dir)]) == 0
    assert "warning: the same image in two splits: train[115] (train), test[76] (test)\n" in capsys.readouterr().out


def test_own_data_still_fail(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    pixels[5] = pixels[0]
    splits = {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}
    arrays = {f"{name}_images": pixels[list(rows)] for name, rows in splits.items()}
    labels = {f"{name}_labels": np.arange(len(rows)) % 2 for name, rows in splits.items()}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    assert check(str(tmp_path / "x.npz"), 8).errors == [
        "the same image in two splits: train[0] (train), test[1] (test); keep one"
    ]


@pytest.mark.parametrize(("smallest", "words"), [(7, "│ 7 "), (None, "│ those of the training, no others ")])
def test_rows_of_an_export(
    smallest: int | None, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Export(Path("net.pt2"), Path("net.pt2.md"), smallest, 1.5e-6)
    monkeypatch.setattr("isoconv.deploy.export.export_run", lambda *_: done)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["export", "x"]) == 0
    out = capsys.readouterr().out
    (size,) = [line for line in out.splitlines() if "smallest images that it takes, pixels a side" in line]
    assert words in size
    assert "logits differ from those of the network by at most" in out
    assert main(["export", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["smallest"] == smallest
