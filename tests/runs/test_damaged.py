"""500 damaged files of run directories, saved networks and studies, put before the commands that read them.

No command may end in a traceback or change another file, and every error has to name the file.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isoconv
from isoconv.cli.main import main
from isoconv.runs import RunDir, TrainConfig

READERS = {
    "runs/cells-sre-s0/config.json": ("evaluate", "compare", "predict", "status", "report"),
    "runs/cells-sre-s0/model.json": ("evaluate", "compare", "predict", "export", "status", "report"),
    "runs/cells-sre-s0/environment.json": ("compare", "report"),
    "runs/cells-sre-s0/metrics.jsonl": ("evaluate", "status", "report"),
    "runs/cells-sre-s0/results.json": ("evaluate", "compare", "export", "status", "report"),
    "runs/cells-sre-s0/predictions.npz": ("evaluate", "compare", "report"),
    "runs/cells-sre-s0/model.safetensors": ("evaluate", "predict", "export", "report"),
    "stopped/config.json": ("resume",),
    "stopped/environment.json": ("resume",),
    "stopped/metrics.jsonl": ("resume",),
    "stopped/checkpoints/last.ckpt": ("resume",),
    "saved/config.json": ("from_pretrained",),
    "saved/model.safetensors": ("from_pretrained",),
    "study.toml": ("status", "report"),
}
"""Files of the folder that :func:`whole` makes, and what reads them."""

STUDY = """
data = ["cells"]
[options]
width = 4
epochs = 4
batch_size = 4
size = 16
[[contestant]]
name = "sre"
model = "sre_resnet18"
kernel_sizes = [5, 5, 3, 3]
[[contestant]]
name = "plain"
model = "resnet18"
"""

Evaluated = Callable[[str], RunDir]


@cache
def _stopped(out: Path) -> Path:
    """A run that was stopped in the second of its two epochs."""
    from isoconv.training import loop

    def stop(recorder: Any, trainer: Any, *_: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        start(recorder, trainer)

    start = loop.Recorder.on_train_epoch_start
    config = TrainConfig("cells", "resnet18", out, width=2, epochs=2, batch_size=20, size=16, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Recorder, "on_train_epoch_start", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    return out


@pytest.fixture
def whole(evaluated: Evaluated, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, no_figures: None) -> Path:
    """Two evaluated runs of a study, one run that was stopped, and a saved network, undamaged."""
    folder = tmp_path / "whole"
    for name in ("sre", "plain"):
        shutil.copytree(evaluated(name).path, folder / "runs" / f"cells-{name}-s0")
    shutil.copytree(_stopped(tmp_path_factory.getbasetemp() / "stopped"), folder / "stopped")
    isoconv.save_pretrained(evaluated("plain1"), folder / "saved")
    (folder / "study.toml").write_text(STUDY)
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(folder / "image.png")
    return folder


def read(reader: str, folder: Path) -> int:
    """Exit status of the command that reads; what it says goes to stdout and stderr."""
    sre, plain, study = "runs/cells-sre-s0", "runs/cells-plain-s0", ["study.toml", "--runs", "runs"]
    stopped = "--data cells --model resnet18 --width 2 --epochs 2 --batch-size 20 --size 16 --device cpu --resume"
    commands: dict[str, list[str]] = {
        "evaluate": ["evaluate", sre, "--device", "cpu"],
        "compare": ["compare", sre, plain],
        "predict": ["predict", sre, "image.png", "--upright-only"],
        "export": ["export", sre, "--format", "safetensors"],
        "resume": ["train", "--out", "stopped", *stopped.split()],
        "status": ["study", "status", *study],
        "report": ["study", "report", *study],
    }
    if reader in commands:
        return main(commands[reader])
    try:
        isoconv.from_pretrained("saved")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


# Damages: what each does to a file


def _values(rng: random.Random) -> list[str]:
    """JSON of what may stand where something else should."""
    words = ["null", "true", "-1", "0.5", '"nix"', "[]", "{}", "NaN", "Infinity", "1e999", "9" * 30, "9" * 5000]
    return [*words, "[" * 50 + "]" * 50, "[" * 9999, '"\\ud800"', json.dumps("x\n" * 300), str(rng.randrange(2**40))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    if not isinstance(value, list | dict):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def swap_value(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    values = [json.loads(line) for line in lines]
    container, key = rng.choice(_places(values))
    container[key] = "@"
    path.write_text("\n".join(map(json.dumps, values)).replace('"@"', rng.choice(_values(rng))))


def change_keys(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    values = [json.loads(line) for line in lines]
    container, key = rng.choice([place for place in _places(values) if isinstance(place[0], dict)])
    value = container[key]
    match rng.randrange(3):
        case 0:
            del container[key]
        case 1:
            container[f"{key}s"] = container.pop(key)
        case 2:
            container["surplus"] = value
    path.write_text("\n".join(map(json.dumps, values)))


def change_array(path: Path, rng: random.Random) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    name = rng.choice(list(arrays))
    array = arrays.pop(name)
    match rng.randrange(6):
        case 0:
            pass
        case 1:
            arrays["surplus"] = array
        case 2:
            arrays[name] = array.astype(object)
        case 3:
            arrays[name] = array[:-1]
        case 4:
            arrays[name] = np.full(array.shape, np.nan)
        case 5:
            arrays[name] = np.full(array.shape, 99)
    np.savez(path, **arrays)


def change_line(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines()
    key, equals, value = lines[line := rng.choice([i for i, each in enumerate(lines) if "=" in each])].partition("=")
    values = ["nan", "1e999", "true", "[[1], 2]", "[" * 9999, "1979-05-27", '"nix"', "-1", "9" * 5000, "{a = 1}"]
    lines[line] = rng.choice([f"{key}s{equals}{value}", f"{key}{equals} {rng.choice(values)}"])
    path.write_text("\n".join(lines))


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(2000)))


def other_file(path: Path, rng: random.Random) -> None:
    files = [file for file in Path.cwd().rglob("*") if file.is_file() and file != path]
    path.write_bytes(rng.choice(files).read_bytes())


def directory(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


Damage = Callable[[Path, random.Random], None]
ANY: tuple[Damage, ...] = (truncate, empty, flip_bit, flip_bit, noise, other_file, directory, fifo)
OF_TYPE: dict[str, tuple[Damage, ...]] = {
    ".json": (swap_value,) * 8 + (change_keys,) * 4,
    ".jsonl": (swap_value,) * 6 + (change_keys,) * 3,
    ".npz": (change_array,) * 8,
    ".toml": (change_line,) * 8,
}


def hashes(folder: Path, damaged: Path) -> dict[str, str]:
    """Of all files but the damaged one."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != damaged]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fault(folder: Path, name: str, seed: int, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What was wrong with how a command took a damaged file, or None."""
    rng, path = random.Random(f"{name} {seed}"), folder / name
    damage = rng.choice(ANY + OF_TYPE.get(path.suffix, ()))
    reader = READERS[name][seed % len(READERS[name])]
    damage(path, rng)
    before = hashes(folder, path)
    capsys.readouterr()
    case = f"{reader} after {damage.__name__} of {name}, seed {seed}"
    try:
        status = read(reader, folder)
    except Exception as error:  # noqa: BLE001 - that none comes is what is tested
        return f"{case}: {type(error).__name__}: {error}"
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    if "Traceback" in said.out + said.err or "defect of isoconv" in said.err:
        return f"{case}: {said.err}"
    if status == 0:
        return None
    if len(errors) != 1 or (path.name not in errors[0] and str(path) not in errors[0]):
        return f"{case}: {said.err}"
    if hashes(folder, path) != before:
        return f"{case}: other files are not as they were"
    return None


def check(whole: Path, name: str, seeds: range, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    faults = []
    for seed in seeds:
        folder = shutil.copytree(whole, whole.parent / f"{seed}")
        monkeypatch.chdir(folder)
        faults.append(fault(folder, name, seed, capsys))
        shutil.rmtree(folder)
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    check(whole, name, range(5), monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    check(whole, name, range(5, 36), monkeypatch, capsys)


@pytest.mark.parametrize("reader", sorted({reader for readers in READERS.values() for reader in readers}))
def test_whole_files_are_read(reader: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(whole)
    assert read(reader, whole) == 0, capsys.readouterr().err
