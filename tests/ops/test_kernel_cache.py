"""Compiled code on disk: whatever happens to the files, what is computed is right, and users are told once."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import numba
import pytest
from numba import types

from isoconv.ops import _kernel_cache
from isoconv.ops._kernel_cache import compiled

SOURCE = """
def adder(n):
    def add(x):
        return x + n
    return add
"""
SIGNATURE = types.int64(types.int64)
Call = Callable[[int], tuple[int, bool]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """What a compiled function that adds a number to 1 gives, and whether its code was on disk."""
    (tmp_path / "adding.py").write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    _kernel_cache._warn_once.cache_clear()

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("adding", tmp_path / "adding.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "adding", module)
        spec.loader.exec_module(module)
        return module

    def call(n: int) -> tuple[int, bool]:
        code, kept = compiled(load().adder(n), SIGNATURE)
        return code.ctypes(1), kept

    return call


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def test_code_is_kept(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    assert call(2) == (3, False)
    assert call(2) == (3, True)
    assert call(5) == (6, False)
    assert call(2) == (3, True)
    assert caplog.messages == []


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(200))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [empty, cut, half, garbage, one_bit, grown])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_damaged_files(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, damage: Callable[[Path], None]
) -> None:
    call(2)
    path = only(tmp_path, f"*.{kind}")
    damage(path)
    assert call(2) == (3, False)
    assert caplog.messages == [f"the compiled code in {path} is damaged; it is compiled anew"]
    assert call(2) == (3, True)


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_files_that_cannot_be_read(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    call(2)
    path = only(tmp_path, f"*.{kind}")
    path.unlink()
    path.mkdir()
    assert call(2) == (3, False)
    unread, unwritten = caplog.messages
    assert unread == f"the compiled code in {path} cannot be read (Is a directory); it is compiled anew"
    assert "cannot be written" in unwritten
    path.rmdir()
    assert call(2) == (3, False)
    assert call(2) == (3, True)


def test_a_file_that_is_gone(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    call(2)
    only(tmp_path, "*.nbc").unlink()
    assert call(2) == (3, False)
    assert caplog.messages == []


def test_two_processes_that_compile_at_once(call: Call, tmp_path: Path) -> None:
    """Each takes the first free name for its code; the index that stays may name the code of the other."""
    call(2)
    index = only(tmp_path, "*.nbi")
    of_first = index.read_bytes()
    index.unlink()
    call(5)
    index.write_bytes(of_first)
    assert call(2) == (3, False)
    assert call(5) == (6, False)
    assert [call(2), call(5)] == [(3, True), (6, True)]


def test_no_folder(call: Call, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    for _ in range(2):
        assert call(2) == (3, False)
    (message,) = caplog.messages
    assert message.startswith(
        "compiled code cannot be kept, no folder for it can be written: every start takes seconds"
    )
    assert message.endswith("set NUMBA_CACHE_DIR to a folder that you may write to")


def test_a_full_disk(call: Call, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(*_: object) -> Iterator[None]:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(_kernel_cache._Files, "_open_for_write", full)
    caplog.set_level(logging.WARNING, "isoconv")
    for _ in range(2):
        assert call(2) == (3, False)
    (message,) = caplog.messages
    assert "cannot be written (No space left on device)" in message


KERNELS = """
import torch
from isoconv.nn import SREConv2d
torch.manual_seed(0)
layer, x = SREConv2d(4, 6, 5, padding=2), torch.randn(2, 4, 9, 10, requires_grad=True)
results = []
for engine in ("numba", "reference"):
    layer.engine = engine
    results.append([y := layer(x), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
for actual, expected in zip(*results, strict=True):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_processes_that_compile_all_kernels_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", KERNELS]

    def run(processes: int) -> list[str]:
        with ExitStack() as stack:
            started = [
                stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True))
                for _ in range(processes)
            ]
            told = [process.communicate(timeout=300)[1] for process in started]
            assert [process.returncode for process in started] == [0] * processes, told
            return told

    assert run(2) == ["", ""]
    run(1)  # where two indices collided, one of them is completed
    kept = sorted(tmp_path.rglob("*.nb?"))
    assert kept
    assert run(1) == [""]
    assert sorted(tmp_path.rglob("*.nb?")) == kept
