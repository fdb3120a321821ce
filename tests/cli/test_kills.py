"""A command that is killed leaves nothing half-written, and the next one works."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoconv.runs import RunDir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

Evaluated = Callable[[str], RunDir]
SCRIPT = Path(__file__).with_name("killing.py")


def status(at: int, *line: object) -> int:
    """Of a command line that is killed just before its ``at``-th change of a folder."""
    command = [sys.executable, str(SCRIPT), str(at), *map(str, line)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def hidden(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name.startswith(".")}


def scores(run: RunDir) -> dict[str, object]:
    """The results by protocol, without what is measured anew each time."""
    return {name: {k: v for k, v in entry.items() if k != "cost"} for name, entry in run.results().items()}


def test_evaluate(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    line = ("evaluate", run.path, "--device", "cpu")
    assert status(10**9, *line) == 0
    whole, kept = scores(run), hidden(run.path)
    kills = 0
    for at in (0, 1, 2, 3, 4, 6, 9, 13):
        others = {name: entry for name, entry in run.results().items() if name != "standard"}
        (run.path / "results.json").write_text(json.dumps(others))
        killed = status(at, *line) != 0
        found = scores(RunDir(run.path))
        assert found in (whole, {name: entry for name, entry in whole.items() if name != "standard"})
        assert killed or found == whole
        for picture in run.path.glob("figures/*.png"):
            assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
        kills += killed
    assert kills >= 4
    assert status(10**9, *line) == 0
    assert (scores(run), hidden(run.path)) == (whole, kept)


def test_export(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("plain")
    kills = 0
    for at in (0, 1, 2, 3, 4, 5):
        folder = tmp_path / str(at)
        folder.mkdir()
        line = ("export", run.path, "--format", "safetensors", "--out", folder / "net.safetensors")
        kills += status(at, *line) != 0
        shown = {path.name for path in set(folder.iterdir()) - hidden(folder)}
        assert shown in (set(), {"net.safetensors"}, {"net.safetensors", "net.safetensors.md"})
        if "net.safetensors.md" not in shown:
            assert status(10**9, *line) == 0
        assert sorted(path.name for path in folder.iterdir()) == ["net.safetensors", "net.safetensors.md"]
    assert kills >= 4
