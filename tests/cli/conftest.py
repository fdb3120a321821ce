"""The command line in this process, and a picture to give it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from isoconv.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a job that failed."""
        assert self.code == 1
        assert self.out == ""
        *log, error = self.err.splitlines()
        assert error.startswith("error: ")
        assert not any(line.startswith(("error", "Traceback")) for line in log)
        return error


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line in this process, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main(list(map(str, args)))
        except SystemExit as stop:
            code = stop.code
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A stack of two RGB images."""
    np.save(tmp_path / "two.npy", np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    return tmp_path / "two.npy"
