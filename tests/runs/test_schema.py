"""What files of a run may hold: all that isoconv writes, and nothing that it could not have written."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import isoconv
from isoconv.evaluation.comparison import compare
from isoconv.evaluation.protocols import PROTOCOLS
from isoconv.runs import RunDir, TrainConfig
from isoconv.runs.network import sha256
from isoconv.runs.reading import JSON_LIMIT

Evaluated = Callable[[str], RunDir]
READ: dict[str, Callable[[RunDir], Any]] = {
    "config.json": lambda run: run.config,
    "environment.json": lambda run: run.environment,
    "model.json": lambda run: run.model_info,
    "results.json": lambda run: run.results(),
}


def put(value: Any, *keys: Any) -> Callable[[Any], object]:
    """A change: ``value`` at the place that the keys lead to."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[Any], object]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["sre", "volumes"])
def test_what_is_written_is_read_back_as_it_is(evaluated: Evaluated, name: str) -> None:
    run = evaluated(name)
    content = {file: json.loads((run.path / file).read_text()) for file in READ}
    assert run.config.to_json() == content["config.json"]
    for file in ("environment.json", "model.json", "results.json"):
        again = READ[file](run)
        assert json.dumps(again) == json.dumps(content[file])  # in the same order, too
    assert [json.dumps(line) for line in run.metrics()] == (run.path / "metrics.jsonl").read_text().splitlines()
    with np.load(run.path / "predictions.npz") as archive:
        arrays = run.arrays("predictions.npz")
        assert arrays.keys() == set(archive)
        assert all(np.array_equal(arrays[key], archive[key]) for key in archive)
    assert len(arrays) == 3 * len(PROTOCOLS)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", put([501] * 4, "kernel_sizes"), "kernel_sizes must be a whole number from 1 to 31, got 501"),
        ("config.json", put(["5"], "kernel_sizes"), r"'kernel_sizes\[0\]' must be a valid integer, got '5'"),
        ("config.json", put(-3, "epochs"), "epochs must be a whole number from 1 to 1000000, got -3"),
        ("config.json", put(2.0, "epochs"), "'epochs' must be a valid integer, got 2.0"),
        ("config.json", put(float("nan"), "lr"), "lr must be finite .*, got nan"),
        ("config.json", put(1, "rotate"), "'rotate' must be a valid boolean, got 1"),
        ("config.json", put("oficial", "recipe"), "'recipe' must be 'standard', 'official' or 'modern', got 'oficial'"),
        ("config.json", put(10**9, "size"), "size must be a whole number from 1 to 4096, got 1000000000"),
        ("config.json", put(5, "flip"), "has an unknown entry 'flip'"),
        ("config.json", lambda c: c.update(modle=c.pop("model")), "lacks the entry 'model'; did you mean 'modle'"),
        ("environment.json", put(["a"], "data"), r"'data' must be an object, got \['a'\]"),
        ("environment.json", put(-1, "threads"), "'threads' must be greater than or equal to 0, got -1"),
        ("environment.json", drop("torch"), "lacks the entry 'torch'"),
        ("model.json", put("nix", "task", "kind"), "'task.kind' must be 'multiclass', .*, got 'nix'"),
        ("model.json", put("oval", "task", "labels", 1), None),
        ("model.json", put("round", "task", "labels", 1), "'task.labels' must differ .*, got 'round' more than once"),
        ("model.json", put(7, "task", "labels", 1), r"'task.labels\[1\]' must be a valid string, got 7"),
        ("model.json", drop("task", "labels", 1), "must have a network with num_classes 4, as its task has, got 5"),
        ("model.json", put(4, "task", "dims"), "'task.dims' must be 2 or 3, got 4"),
        ("model.json", put([501] * 4, "model", "kernel_sizes"), "'model.kernel_sizes' must be .* from 1 to 31, .*501"),
        (
            "model.json",
            put(10**12, "model", "more"),
            "must have text, a number up to 16,384 or .* as 'more', got 10000",
        ),
        ("model.json", put({"a": 1}, "model", "more"), "must have text, a number up to .* as 'more', got {'a': 1}"),
        ("model.json", put(-1, "epoch"), "'epoch' must be greater than or equal to 0, got -1"),
        ("model.json", put(10**9, "input_size"), "'input_size' must be less than or equal to 4096, got 1000000000"),
        ("model.json", put("abc", "sha256"), "'sha256' must match pattern"),
        ("model.json", put({"shift": [0.0] * 5, "scale": [1.0] * 5}, "outputs"), None),
        ("model.json", put({"shift": [0.0], "scale": [1.0] * 5}, "outputs"), "must have 5 numbers as outputs.shift"),
        ("results.json", put({}, "oficial"), "'oficial.*' must be 'standard', 'official' or 'disturbed'"),
        ("results.json", put("official", "standard", "protocol"), "must hold the results of protocol 'standard' under"),
        (
            "results.json",
            put(float("nan"), "standard", "summary", "upright"),
            "a finite number or null as 'upright', g",
        ),
        ("results.json", put("0.3", "standard", "summary", "upright"), "a finite number or null as 'upright', got '0."),
        (
            "results.json",
            put([0.3], "standard", "summary", "upright_ci"),
            r"\[low, high\] or null as 'upright_ci', got",
        ),
        ("results.json", put(0.3, "standard", "summary", "any_measure"), None),
        ("results.json", put(None, "standard", "summary", "upright_auc"), None),
        ("results.json", put("x", "standard", "conditions", 3, "recall", 0), "'standard.conditions' must hold finite"),
        ("results.json", drop("standard", "conditions", 3, "auc"), "same entries in all positions, got 'auc' in some"),
        ("results.json", put("rot0", "standard", "conditions", 3, "name"), "must differ from .*, got 'rot0' more than"),
        (
            "results.json",
            put(None, "standard", "conditions", 3, "angle"),
            "must have an angle .*, got none for 'rot30'",
        ),
        ("results.json", put([], "standard", "conditions"), "'standard.conditions' must have at least 1 item"),
        ("results.json", put(0, "standard", "data", "test_images"), "'standard.data.test_images' must be greater than"),
        (
            "results.json",
            put(1e400, "standard", "upright", "auc"),
            "must hold finite numbers .* inf",
        ),
    ],
)
def test_json(evaluated: Evaluated, file: str, change: Callable[[Any], object], words: str | None) -> None:
    """``words`` None: the change is of what depends on the task, and is taken."""
    run = evaluated("sre")
    edit(run.path / file, change)
    if words is None:
        assert READ[file](run) == json.loads((run.path / file).read_text())
        return
    with pytest.raises(ValueError, match=rf"{file}(: | ).*{words}") as caught:
        READ[file](run)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(run.path))) < 400
    assert "; " in str(caught.value)  # and then what to do


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"epoch": 1, "lr": 0.1}', r"line 2 lacks the entry 'train_loss'"),
        ("null", "line 2 must be an object, got None"),
        ("", "line 2 is not valid JSON"),
    ],
)
def test_metrics(evaluated: Evaluated, line: str, words: str) -> None:
    run = evaluated("sre")
    path = run.path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {words}.*--resume, which writes it anew"):
        run.metrics()
    path.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl must have a line for each epoch in their order"):
        run.metrics()
    path.write_text("\n".join(lines).replace('"val_acc": ', '"val_acc": Infinity, "val_acc2": '))
    with pytest.raises(ValueError, match=r"line 1 must hold finite numbers or null, got inf"):
        run.metrics()


def test_a_file_that_is_too_large_is_not_read(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    os.truncate(run.path / "results.json", JSON_LIMIT + 1)
    with pytest.raises(ValueError, match=r"results\.json has 67,108,865 bytes, expected at most 67,108,864; delete it"):
        run.results()


def test_a_network_larger_than_the_memory_is_not_built(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    edit(run.path / "model.json", put(8192, "model", "width"))
    with pytest.raises(ValueError, match=r"model\.json describes a network of [\d,]{14,} parameters, expected at most"):
        run.load_model()
    run = evaluated("sre")
    edit(run.path / "model.json", lambda info: info["model"].update(width=128, kernel_sizes=[31] * 4))
    with pytest.raises(
        ValueError, match=r"a network of [\d,]+ weights in the dense kernel of layer4\S+, expected at mo"
    ):
        run.load_model()


def test_a_network_of_other_dims_than_its_task(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    edit(run.path / "model.json", put("sre_resnet18_3d", "model", "name"))
    with pytest.raises(ValueError, match=r"model\.json describes a network for 3D images, its task has 2D ones"):
        run.load_model()


def test_data_in_another_size_than_that_of_the_training(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    edit(run.path / "config.json", put(4000, "size"))
    with pytest.raises(ValueError, match=r"config\.json makes images of 4000 pixels, \S+model\.json of 16; restore it"):
        run.check_has_data()


# Weights


def rewrite(run: RunDir, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights, and the checksum with them."""
    path = run.path / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    edit(run.path / "model.json", put(sha256(path.read_bytes()), "sha256"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"fc.bias": s["fc.bias"].long()}), r"fc.bias is torch.int64, expected torch.float32"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].double()}), "of one dtype, got torch.float32, torch.float64"),
        (lambda s: s["fc.bias"].fill_(torch.nan), "fc.bias must hold finite numbers, got NaN or infinity"),
        (lambda s: s["bn1.running_var"].fill_(torch.inf), "bn1.running_var must hold finite numbers"),
        (lambda s: s.pop("fc.bias"), "fc.bias is missing"),
        (lambda s: s.update({"fc.bais": s.pop("fc.bias")}), "fc.bias is missing; did you mean 'fc.bais'"),
    ],
)
def test_weights_that_no_training_gives(
    evaluated: Evaluated, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    run = evaluated("plain")
    rewrite(run, lambda state: state["fc.bias"].add_(1))
    run.load_model()
    rewrite(run, change)
    with pytest.raises(ValueError, match=rf"model\.safetensors.* {words}"):
        run.load_model()


def test_a_flipped_bit_in_the_weights(evaluated: Evaluated) -> None:
    path = evaluated("plain").path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.safetensors has another checksum than model\.json beside it notes; copy"
    ):
        RunDir(path.parent).load_model()


@pytest.mark.parametrize("step", ["atomic_write", "write_json", "replace"])
def test_a_kill_between_weights_and_description(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whenever saving is cut, a network is there: the old one, or the new one as soon as model.json is its."""
    run = evaluated("plain")
    info, old = run.model_info, run.load_model().state_dict()
    net = isoconv.create_model(**info["model"])
    new = {f"net.{name}": value for name, value in net.state_dict().items()}

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr("isoconv.runs.rundir.os", SimpleNamespace(replace=cut))
        else:
            patch.setattr(f"isoconv.runs.rundir.{step}", cut)
        with pytest.raises(KeyboardInterrupt):
            run.save_model(net, {**info, "epoch": 2})
    kept, epoch = (new, 2) if step == "replace" else (old, info["epoch"])
    assert run.model_info["epoch"] == epoch
    assert all(torch.equal(value, kept[name]) for name, value in run.load_model().state_dict().items())
    run.save_model(net, {**info, "epoch": 3})
    assert run.model_info["epoch"] == 3
    assert all(torch.equal(value, new[name]) for name, value in run.load_model().state_dict().items())
    assert not (run.path / "model.safetensors.new").exists()


# Arrays


def test_predictions_that_are_not_finite(evaluated: Evaluated) -> None:
    runs = [evaluated(name) for name in ("sre", "plain")]
    arrays = runs[0].arrays("predictions.npz")
    arrays["official_logits"][3, 2, 1] = np.nan
    np.savez(runs[0].path / "predictions.npz", **arrays)
    with pytest.raises(ValueError, match=r"predictions\.npz: official_logits must hold finite numbers, got NaN"):
        compare(runs)


def test_an_array_that_declares_more_than_is_there_is_not_allocated(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    path = run.path / "predictions.npz"
    np.savez(path, standard_logits=np.zeros((37, 40, 5), np.float32))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(37, 40, 5), }" + b" " * 9, b"(99999999999, 40, 5), }"))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=r"is damaged \(standard_logits\.npy declares 79999999999200 bytes, 29600 are"):
        run.arrays("predictions.npz")
    np.savez_compressed(path, standard_logits=np.zeros((37, 40, 5), np.float32))
    with pytest.raises(ValueError, match=r"is damaged \(standard_logits\.npy is compressed"):
        run.arrays("predictions.npz")


def test_a_flipped_bit_in_an_array(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    path = run.path / "predictions.npz"
    with zipfile.ZipFile(path) as archive:
        where = archive.getinfo("standard_logits.npy").header_offset + 5000
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged \(Bad CRC-32 for file 'standard_logits\.npy'\)"):
        run.arrays("predictions.npz")


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    net = isoconv.create_model("sre_resnet18", 1, 3, width=1, kernel_sizes=(33, 3, 3, 3))
    with pytest.raises(ValueError, match=r"the network: 'model\.kernel_sizes' must be a whole number from 1 to 31"):
        isoconv.save_pretrained(net, tmp_path / "net")
    run = RunDir.create(TrainConfig("cells", "sre_resnet18", tmp_path / "run"))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(ValueError, match=r"the network lacks the entry 'model'"):
        run.save_model(net, {"epoch": 0})
    assert sorted(run.path.rglob("*")) == before
