"""A tiny study, and a pool whose workers only pretend."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from isoconv.study import cell

PRETEND = """
import json, os, pathlib, shutil, signal, sys, time
job = json.loads(sys.stdin.readline())
config, out = job["config"], pathlib.Path(job["config"]["out"])
with (out.parent / "calls").open("a") as calls:
    calls.write(out.name + "\\n")
def finish():
    shutil.copytree({done!r}, out)
    (out / "config.json").write_text(json.dumps(dict(config, lr=0.1, precondition=True)))
def wait_for(name):
    end = time.monotonic() + 30
    while not (out.parent / name).exists():
        if time.monotonic() > end:
            sys.exit("alone")
        time.sleep(0.01)
"""


@pytest.fixture
def tiny() -> str:
    """Four cells: two networks, two seeds."""
    return """
data = ["cells"]
seeds = [0, 1]
[options]
width = 2
epochs = 1
size = 16
batch_size = 8
[[contestant]]
name = "sre"
model = "sre_resnet18"
kernel_sizes = [3, 3, 3, 3]
[[contestant]]
name = "plain"
model = "resnet18"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the file of a study."""

    def write(text: str) -> Path:
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _evaluated_once: Path) -> Callable[[str], None]:
    """Lets the workers do this instead of training; `finish()` puts a run there that is done."""

    def pretend(code: str) -> None:
        (tmp_path / "worker.py").write_text(PRETEND.format(done=str(_evaluated_once / "plain")) + textwrap.dedent(code))
        monkeypatch.setattr(cell, "_WORKER", [sys.executable, str(tmp_path / "worker.py")])

    return pretend


@pytest.fixture
def own_data() -> Callable[[Path], Path]:
    """Makes a folder of users' own images, one of each class in each split."""

    def make(folder: Path) -> Path:
        for split in ("train", "val", "test"):
            for label in ("round", "square"):
                (folder / split / label).mkdir(parents=True)
                Image.new("L", (16, 16)).save(folder / split / label / "0.png")
        return folder

    return make
