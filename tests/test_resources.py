"""What is beyond the machine is refused in one line, before it ends the process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isoconv import _checks
from isoconv._checks import check_memory, check_threads, memory
from isoconv.cli.main import main
from isoconv.data import DeviceBatches, Split, load
from isoconv.training import TrainConfig, train

Failure = Callable[..., str]
SMALL = ["--data", "cells", "--model", "resnet18", "--device", "cpu", "--epochs", "1"]


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failure:
    """The one line of a command that is refused; it leaves no file."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> str:
        capsys.readouterr()
        assert main(list(map(str, args))) == 1
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = [line for line in told.err.splitlines() if line.startswith("error")]
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        return line

    return run


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checks, "memory", lambda: 20_000_000)


def test_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (total,) = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert 0 < memory() <= int(total) * 1024
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("12345\n")
    monkeypatch.setattr(_checks, "_CONTAINER", (str(tmp_path / "max"), str(tmp_path / "none")))
    assert memory() > 12345
    monkeypatch.setattr(_checks, "_CONTAINER", (str(tmp_path / "max"), str(tmp_path / "limit")))
    assert memory() == 12345


def test_memory_of_a_user_with_a_limit() -> None:
    code = "import resource; from isoconv._checks import memory\n"
    code += "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); print(memory() <= 2**33)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_bounds() -> None:
    check_memory(memory(), "all of it", "go on")
    with pytest.raises(ValueError, match=r"^it would take [\d,.]+ GB of memory, this process can have .* GB; stop$"):
        check_memory(memory() + 1, "it", "stop")
    cores = os.cpu_count()
    check_threads(64)
    check_threads(4 * cores)
    for threads in (max(64, 4 * cores) + 1, 10**6, 10**9, 0, -1):
        with pytest.raises(ValueError, match=f"which has {cores} CPU cores, got {threads}"):
            check_threads(threads)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train", *SMALL, "--out", "x", "--threads", 4096], "threads must be 1 to "),
        (["demo", "--threads", 4096], "threads must be 1 to "),
        (["bench", "ops", "--threads", 10**6], "threads must be 1 to "),
        (["bench", "models", "--threads", 10**9], "threads must be 1 to "),
        (["doctor", "torch.nn:Identity", "--input", "1x3x1000000x1000000"], "an input of 1x3x1000000x1000000 would"),
        (["data", "check", "cells", "--size", 100000], "cells at 100000 pixels would take"),
        (["data", "fetch", "cells", "--size", 100000], "cells at 100000 pixels would take"),
    ],
)
def test_beyond_any_machine(failure: Failure, line: list, words: str) -> None:
    assert words in failure(*line)


@pytest.mark.parametrize("option", ["--threads", "--size", "--width", "--batch-size"])
@pytest.mark.parametrize("value", [10**6 + 10**9, -1])
def test_beyond_any_training(option: str, value: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", *SMALL, "--out", "x", option, str(value)])
    assert stop.value.code == 2
    name = option[2:].replace("-", "_")
    assert f"{name} must be a whole number" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        TrainConfig("cells", "resnet18", Path("x"), **{name: value})


@pytest.mark.usefixtures("little_memory", "few_cells")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 512}, "of memory, this process can have"),
        ({"size": 16, "width": 256}, "the weights, with gradients and momentum, of resnet18 of width 256 would take"),
        ({"size": 128, "width": 8, "batch_size": 60}, "a batch of 60 images of 128 pixels with their first feature"),
    ],
)
def test_beyond_this_machine(failure: Failure, options: dict, words: str, tmp_path: Path) -> None:
    line = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert words in failure("train", *SMALL, "--out", "x", *line)
    with pytest.raises(ValueError, match=words):
        train(TrainConfig("cells", "resnet18", tmp_path / "x", device="cpu", **options))
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("little_memory")
def test_data_and_batches() -> None:
    with pytest.raises(ValueError, match="vessels3d at 200 pixels would take"):
        load("vessels3d", 200)
    split = Split(torch.zeros(100, 1, 64, 64, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64))
    DeviceBatches(split, 100, device="cpu", seed=0, shuffle=False)
    with pytest.raises(ValueError, match="a batch of 100 images would take .* use a smaller batch size"):
        DeviceBatches(split, 100, device="cpu", seed=0, shuffle=False, resize=256)


def test_sizes_that_are_none() -> None:
    for size in (0, -28, 1.5):
        with pytest.raises(ValueError, match="size must be a whole number of at least 1"):
            load("cells", size)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out(error: Exception, failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("isoconv.models.list_models", fail)
    assert failure("models").startswith("error: there is not enough memory; use a smaller size, batch or width")
