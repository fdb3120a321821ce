"""What macOS and Windows do not have is done without: their absence is simulated here, on Linux."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isoconv import _checks, _files
from isoconv.study import running

WITHOUT = {"os": ["sysconf", "sched_getaffinity", "O_NONBLOCK"], "signal": ["SIGPIPE", "SIGKILL", "SIGHUP"]}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in ((os, WITHOUT["os"]), (signal, WITHOUT["signal"])):
        for name in names:
            monkeypatch.delattr(module, name, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(_checks, "_CONTAINER", ())


def test_memory_and_cores(windows: None) -> None:
    assert _checks.memory() is None  # nothing tells, so nothing is refused
    assert running._cores() == os.cpu_count()


def test_files_are_opened(windows: None, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with _files.open_regular(tmp_path / "x") as file:
        assert file.read() == b"1"


def test_layers_and_commands_start_there() -> None:
    code = f"""
import os, signal, sys
without = {WITHOUT}
for module in (os, signal):
    for name in without[module.__name__]:
        if hasattr(module, name):
            delattr(module, name)
sys.modules.update(resource=None, fcntl=None)
import torch, isoconv
isoconv.SREConv2d(2, 3, 5, padding=2)(torch.randn(1, 2, 8, 8)).sum().backward()
from isoconv.cli.main import main
assert main(["models", "sre_resnet18", "--json"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sre_resnet18" in done.stdout
