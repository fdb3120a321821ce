"""The run directory: what it refuses, what survives a failed write, and what it gives back."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import isoconv
from isoconv.runs import RunDir, atomic_write, resolve_device, write_json
from isoconv.runs.config import TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig("cells", "sre_resnet18", tmp_path / "run", width=2, kernel_sizes=(5, 5, 3, 3))


@pytest.fixture
def run(config: TrainConfig) -> RunDir:
    """A run whose best network is an untrained one."""
    run = RunDir.create(config)
    net = isoconv.create_model("sre_resnet18", 1, 3, width=2, kernel_sizes=(5, 5, 3, 3))
    labels = {"kind": "multiclass", "dims": 2, "channels": 1, "labels": ["a", "b", "c"]}
    task = {"name": "cells", "title": "Cells", **labels}
    info = {
        "model": isoconv.models.model_config(net),
        "task": task,
        "input_size": 28,
        "masked": False,
        "outputs": None,
        "epoch": 0,
    }
    run.save_model(net, info)
    return run


def test_config_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert RunDir.create(config).config == config


def test_config_from_before_an_option_existed(config: TrainConfig) -> None:
    values = config.to_json()
    del values["downsample"]
    assert TrainConfig.from_json(values) == config


def test_config_of_texts_numpy_numbers_and_a_list_survives_json(config: TrainConfig) -> None:
    numbers = {"seed": np.int64(3), "lr": np.float32(0.5), "kernel_sizes": [np.int64(3)]}
    ours = replace(config, out=str(config.out), data_root="data", **numbers)  # type: ignore[arg-type]
    assert (ours.out, ours.data_root, ours.seed, ours.lr) == (config.out, Path("data"), 3, 0.5)
    assert ours.kernel_sizes == (3,)
    assert RunDir.create(ours).config == ours


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, 0) for name in ("epochs", "width", "batch_size", "threads", "size", "lr")),
        *((name, 1.5) for name in ("epochs", "width", "batch_size", "threads", "size", "seed", "bands")),
        *((name, "1") for name in ("epochs", "seed", "lr")),
        *(("lr", value) for value in (-1.0, 1e-7, True, float("nan"), float("inf"))),
        ("epochs", True),
        ("seed", -1),
        ("seed", 2**32),
        ("size", 2**12 + 1),
        *(("kernel_sizes", value) for value in (3, (3, 501), ("3",), (3,) * 17)),
        *(("fields", value) for value in (3, (1, -1), ("1",), (1,) * 10)),
        *(("orders", value) for value in (-1, 9, True)),
        ("recipe", "oficial"),
        ("precision", "16"),
        ("device", "gpu"),
    ],
)
def test_impossible_option_is_refused(config: TrainConfig, option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*, got "):
        replace(config, **{option: value})


def test_every_option_has_help() -> None:
    source = Path(sys.modules[TrainConfig.__module__].__file__).read_text()
    for field in fields(TrainConfig):
        assert f"    {field.name}: " in source
        assert source.split(f"    {field.name}: ")[1].splitlines()[1].startswith('    """'), field.name


def test_environment_is_recorded(config: TrainConfig) -> None:
    environment = json.loads((RunDir.create(config).path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["isoconv"] == isoconv.__version__
    assert environment["processes"] == 1
    assert environment["seed"] == config.seed
    assert environment["commit"] is None or len(environment["commit"]) == 40


def test_existing_directory_is_refused_and_left_alone(config: TrainConfig) -> None:
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists and is not empty; choose another --out, or .* --resume"):
        RunDir.create(config)
    assert [p.name for p in config.out.iterdir()] == ["thesis.txt"]


def test_file_in_the_place_of_the_directory_is_refused(config: TrainConfig) -> None:
    config.out.write_text("mine")
    with pytest.raises(FileExistsError, match="choose another --out"):
        RunDir.create(config)
    assert config.out.read_text() == "mine"


def test_empty_directory_is_taken(config: TrainConfig) -> None:
    config.out.mkdir()
    assert RunDir.create(config).config == config


def test_a_start_that_was_cut_is_no_run(config: TrainConfig) -> None:
    (config.out / "checkpoints").mkdir(parents=True)
    for name in ("environment.json", ".config.json.tmp"):
        (config.out / name).write_text("{")
    assert RunDir.create(config).config == config
    (config.out / "config.json").unlink()
    (config.out / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(FileExistsError, match="choose another --out"):
        RunDir.create(config)


def test_damaged_metrics_are_named(run: RunDir) -> None:
    (run.path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 lacks the entry 'lr'; .* --resume, which"):
        run.metrics()


def test_parent_that_is_a_file_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot make .* choose an --out that you may write to"):
        RunDir.create(replace(config, out=tmp_path / "file" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_without_write_permission_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="choose an --out that you may write to"):
        RunDir.create(replace(config, out=tmp_path / "locked" / "run"))


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run at .*isoconv train --out"):
        RunDir(tmp_path / "nothing")


def test_results_before_evaluation(run: RunDir) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist; evaluate it first: isoconv evaluate"):
        run.results()


def test_damaged_json_is_named(run: RunDir) -> None:
    (run.path / "config.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        _ = run.config


def test_resuming_names_the_options_that_differ(run: RunDir, config: TrainConfig) -> None:
    run.check_same(replace(config, device="cpu", threads=1, data_root=Path("elsewhere")))
    with pytest.raises(ValueError, match=r"width 2 -> 4, epochs 100 -> 50\); repeat those"):
        run.check_same(replace(config, width=4, epochs=50))


def test_load_model_gives_the_saved_network_on_images_from_0_to_1(run: RunDir) -> None:
    net = run.load_model()
    assert not net.training
    images = torch.rand(2, 1, 12, 12)
    plain = isoconv.create_model(**run.model_info["model"]).eval()
    plain.load_state_dict(load_file(run.path / "model.safetensors"))
    torch.testing.assert_close(net(images), plain(images * 2 - 1))


def test_outputs_are_brought_to_the_unit_of_the_targets(run: RunDir) -> None:
    images, outputs = torch.rand(2, 1, 12, 12), {"shift": [10.0, -1.0, 0.0], "scale": [2.0, 0.5, 1.0]}
    bare = run.load_model()
    write_json(run.path / "model.json", {**run.model_info, "outputs": outputs})
    scaled = run.load_model()
    expected = bare(images) * torch.tensor([2.0, 0.5, 1.0]) + torch.tensor([10.0, -1.0, 0.0])
    torch.testing.assert_close(scaled(images), expected)
    assert (scaled.outputs, bare.outputs) == (outputs, None)
    assert scaled.state_dict().keys() == bare.state_dict().keys()


@pytest.mark.parametrize(
    ("info", "masked"),
    [({"masked": False}, False), ({"masked": True}, True), ({"masked": False, "kind": "segmentation"}, True)],
)
def test_which_networks_know_the_disc(run: RunDir, info: dict, masked: bool) -> None:
    """One that segments has seen it in every second batch."""
    task = {"name": "x", "title": "X", "kind": "multiclass", "dims": 2, "channels": 1, "labels": ["a", "b", "c"]}
    task["kind"] = info.pop("kind", "multiclass")
    write_json(run.path / "model.json", {**run.model_info, **info, "task": task})
    assert run.masked is masked


def test_load_model_before_the_first_epoch(config: TrainConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.json does not exist; .*--resume"):
        RunDir.create(config).load_model()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_cut_short_are_refused(run: RunDir, keep: int) -> None:
    path = run.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete weights file .*copy it again"):
        run.load_model()


def test_weights_of_another_width_are_refused(run: RunDir) -> None:
    path = run.path / "model.safetensors"
    other = isoconv.create_model("sre_resnet18", 1, 3, width=4, kernel_sizes=(5, 5, 3, 3))
    save_file(other.state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit the network: \S+ is \(4, .*, expected \(2, "):
        run.load_model()


def test_weights_of_another_depth_are_refused(run: RunDir) -> None:
    state = load_file(run.path / "model.safetensors")
    save_file({**state, "more": torch.zeros(1)}, run.path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network: more is unknown"):
        run.load_model()


def test_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, lambda f: f.write(b"first"))

    def half(f: object) -> None:
        f.write(b"sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"cannot write .*file \(No space left on device\); .* intact; free disk space"):
        atomic_write(path, half)
    with pytest.raises(OSError, match=r"cannot write .*file \(9 requested and 0 written\)"):  # as NumPy says it
        atomic_write(path, Mock(side_effect=OSError("9 requested and 0 written")))
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"cannot write .*file/within \(Not a directory\); choose another place"):
        atomic_write(path / "within", lambda f: None)


def test_full_disk_keeps_the_previous_file(tmp_path: Path) -> None:
    """A real refusal by the kernel, in the middle of the file: the limit on the size of files is smaller than it."""
    path = tmp_path / "file"
    path.write_bytes(b"first")
    script = (
        "import resource, sys; from pathlib import Path; from isoconv.runs import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "atomic_write(Path(sys.argv[1]), lambda f: f.write(bytes(1 << 20)))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert "(File too large); what was there before is intact" in result.stderr
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})
    assert not list(tmp_path.iterdir())


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch finds no GPU; use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, got 'gpu'"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda", 0)
