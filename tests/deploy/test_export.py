"""Exported networks compute what the run computes, for any batch and size, without isoconv."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import isoconv
from isoconv import fuse
from isoconv import nn as iso
from isoconv.cli.main import main
from isoconv.deploy import export
from isoconv.deploy.export import export_run
from isoconv.models import create_model, model_config
from isoconv.runs import OnImages, RunDir, write_json

Evaluated = Callable[[str], RunDir]
Exported = Callable[[str, str], tuple[RunDir, Path]]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"


def onnxruntime() -> ModuleType:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'isoconv[onnx]'")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'isoconv[onnx]'")


def images(run: RunDir, batch: int, *size: int) -> Tensor:
    return torch.rand(batch, run.model_info["task"]["channels"], *size)


@pytest.fixture(scope="module")
def exported(_evaluated_once: Path, _segmented_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run and its file in a format, each exported once: ``sre``, ``plain``, ``volumes``, the same in ``masks``, or
    ``sre_strided`` and ``plain_strided``, whose last map is a single pixel."""
    folder = tmp_path_factory.mktemp("exported")
    for once in (_evaluated_once, _segmented_once):
        shutil.copytree(once, folder, dirs_exist_ok=True)
    for name in ("sre", "plain"):
        strided = RunDir(shutil.copytree(folder / name, folder / f"{name}_strided"))
        net = create_model(**strided.model_info["model"], stem_stride=2)
        strided.save_model(net, {**strided.model_info, "model": model_config(net)})

    def export(name: str, format: str) -> tuple[RunDir, Path]:
        path = folder / name / "export" / f"model.{format}"
        if not path.exists():
            export_run(folder / name, format)
        return RunDir(folder / name), path

    return export


# What is written


SIZES = {
    "sre": [(16, 16), (17, 22), (34, 21)],
    "masks/sre": [(16, 16), (17, 22), (34, 9)],
    "volumes": [(16, 16, 16), (17, 24, 20)],
    "masks/volumes": [(16, 16, 16), (17, 12, 20)],
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("volumes" in n)) for n in SIZES])
def test_pt2_takes_any_batch_and_size(exported: Exported, name: str) -> None:
    run, path = exported(name, "pt2")
    program, network = torch.export.load(path).module(), run.load_model()
    for batch, size in enumerate(SIZES[name], 1):
        x = images(run, batch, *size)
        logits = network(x)
        assert logits.shape == (batch, len(run.task.info.labels), *(size if name.startswith("masks") else ()))
        assert logits.std() > 0.05
        torch.testing.assert_close(program(x), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain_strided", pytest.param("sre_strided", marks=pytest.mark.slow)])
def test_where_a_map_shrinks_to_a_pixel_the_size_is_fixed(exported: Exported, name: str) -> None:
    run, path = exported(name, "pt2")
    program, network = torch.export.load(path).module(), run.load_model()
    for batch in (1, 3):
        x = images(run, batch, 16, 16)
        torch.testing.assert_close(program(x), network(x), rtol=1e-4, atol=1e-5)
    assert "16x16 pixels, as trained and tested; no other" in Path(f"{path}.md").read_text()


@pytest.mark.slow
def test_the_fixed_size_of_onnx(exported: Exported) -> None:
    ort = onnxruntime()
    _, path = exported("plain_strided", "onnx")
    assert ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape[2:] == [16, 16]
    assert "16x16 pixels, as trained and tested; no other" in Path(f"{path}.md").read_text()


WITHOUT_ISOCONV = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("isoconv", "numba", "lightning"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file
cases = load_file(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
torch.testing.assert_close(program(cases["x"]), cases["y"], rtol=1e-4, atol=1e-5)
sys.stdout.write("the same")
"""


def test_pt2_runs_where_isoconv_is_not(exported: Exported, tmp_path: Path) -> None:
    run, path = exported("sre", "pt2")
    x = images(run, 3, 18, 18)
    save_file({"x": x, "y": run.load_model()(x).detach()}, tmp_path / "cases.safetensors")
    command = [sys.executable, "-c", WITHOUT_ISOCONV, path, tmp_path / "cases.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "the same", done.stderr


@pytest.mark.parametrize("name", ["plain", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sre", "masks/sre"))])
def test_onnx_takes_any_batch_and_size(exported: Exported, name: str) -> None:
    ort = onnxruntime()
    run, path = exported(name, "onnx")
    session, network = ort.InferenceSession(path, providers=["CPUExecutionProvider"]), run.load_model()
    for x in (images(run, 1, 16, 16), images(run, 4, 19, 16)):
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(x).detach(), rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["isoconv.json"])["input_size"] == 16


@pytest.mark.parametrize("name", ["sre", "masks/sre", "masks/volumes"])
def test_safetensors_are_the_weights_of_the_plain_network(exported: Exported, name: str) -> None:
    run, path = exported(name, "safetensors")
    net = isoconv.fuse(create_model(**run.model_info["model"]))
    net.load_state_dict(load_file(path))
    x = images(run, 2, *[16] * run.task.info.dims)
    torch.testing.assert_close(
        OnImages(net, run.model_info["masked"]).eval()(x), run.load_model()(x), rtol=1e-4, atol=1e-4
    )
    if name == "sre":
        assert load_file(path)["layer1.0.conv1.weight"].shape[2:] == (5, 5)


@pytest.mark.parametrize("format", ["pt2", "safetensors"])
def test_outputs_in_the_unit_of_the_targets(
    evaluated: Evaluated, format: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are part of what runs; weights alone come with the code for it."""
    run, shift, scale = evaluated("plain"), [1.0, 0.0, -1.0, 2.0, 3.0], [2.0, 0.2, 1.0, 0.5, 0.3]
    x, bare = images(run, 1, 16, 16), run.load_model()
    write_json(run.path / "model.json", {**run.model_info, "outputs": {"shift": shift, "scale": scale}})
    card = export_run(run, format, tmp_path / f"net.{format}").card
    expected = bare(x) * torch.tensor(scale) + torch.tensor(shift)
    monkeypatch.setattr(torch, "rand", lambda *_: x.clone())  # the images of the card's code
    probabilities = run_code(card, monkeypatch)["probabilities"]
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(probabilities, bare(x).softmax(1), atol=0.01)
    assert "then outputs * scale + shift: " in card.read_text()


def test_every_file_says_what_it_is_and_nothing_of_this_machine(exported: Exported) -> None:
    kept = {"isoconv.json": ""}
    run, pt2 = exported("plain_strided", "pt2")
    expected = {name: run.model_info[name] for name in ("task", "model", "input_size", "masked", "outputs")}
    expected["logits"] = f"(N, {len(run.model_info['task']['labels'])})"
    torch.export.load(pt2, extra_files=kept)
    assert json.loads(kept["isoconv.json"]) == expected
    _, weights = exported("plain_strided", "safetensors")
    with safe_open(weights, "pt") as file:
        assert json.loads(file.metadata()["isoconv.json"]) == expected
    places = [os.fsencode(place) for place in (Path(isoconv.__file__).parent, run.path.parent)]
    for path in pt2.parent.iterdir():
        assert not any(place in path.read_bytes() for place in places), path


def test_what_export_returns(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    done = export_run(run, "safetensors")
    assert done.path == run.path / "export" / "model.safetensors"
    assert done.card == run.path / "export" / "model.safetensors.md"
    assert done.difference < 1e-5
    assert 1 <= done.smallest <= 16


def test_sizes_that_are_not_free() -> None:
    info = {"input_size": 8, "task": {"dims": 2, "channels": 1}}
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    assert export.smallest_size(fixed, info) is None
    assert export.smallest_size(torch.nn.Conv2d(1, 1, 3), info) == 3


RESAMPLING = [*(getattr(iso, f"Symmetric{kind}2d")() for kind in ("AvgPool", "MaxPool", "Upsample"))]
RESAMPLING += [iso.CentreGrid((3, 3), (2, 2), (1, 1), (1, 1), mode) for mode in ("avg", "max")]


@pytest.mark.parametrize("layer", RESAMPLING, ids=repr)
@pytest.mark.parametrize("prepare", [fuse, lambda net: net], ids=["fused", "as it is"])
def test_an_export_at_one_size_is_right_at_every_parity(layer: nn.Module, prepare: Callable) -> None:
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(prepare(layer), (torch.rand(2, 1, 16, 18),), dynamic_shapes=(sizes,)).module()
    for size in ((16, 16), (15, 13), (9, 14)):
        x = torch.randn(3, 1, *size)
        torch.testing.assert_close(program(x), layer(x))


def test_onnx_at_one_size_is_right_at_every_parity() -> None:
    """ONNX keeps no guard: what depended on the example's size would be wrong in silence."""
    runtime = onnxruntime()
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 2, 3, padding=1))
    net = nn.Sequential(isoconv.convert(net), iso.SymmetricUpsample2d(), iso.SymmetricAvgPool2d()).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        program = torch.export.export(fuse(net), (torch.rand(2, 1, 40, 42),), dynamic_shapes=(sizes,))
        file = torch.onnx.export(program, input_names=["images"], dynamo=True, verbose=False).model_proto
    session = runtime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((40, 40), (41, 43), (53, 36)):
        x = torch.randn(3, 1, *size)
        (got,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (9, 14), (5, 6, 7)])
@pytest.mark.parametrize("masked", [True, False])
def test_preparation_is_that_of_the_training(size: tuple[int, ...], masked: bool) -> None:
    prepared = OnImages(torch.nn.Identity(), masked).eval()
    free = (dict.fromkeys(range(2, 2 + len(size)), torch.export.Dim.AUTO),)
    program = torch.export.export(prepared, (torch.rand(2, 1, *[20] * len(size)),), dynamic_shapes=free)
    x = torch.rand(2, 1, *size)
    assert torch.equal(program.module()(x), prepared(x))


def run_code(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that the code of a model card leaves, run beside its file."""
    monkeypatch.chdir(card.parent)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    names: dict = {"__name__": "card"}
    exec(compile(code, "card", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("plain_strided", "pt2"),
        ("plain", "onnx"),
        ("sre", "safetensors"),
        ("masks/sre", "pt2"),
        ("masks/sre", "safetensors"),
        pytest.param("masks/sre", "onnx", marks=pytest.mark.slow),
        ("masks/volumes", "safetensors"),
    ],
)
def test_the_code_of_the_card_runs(exported: Exported, name: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if format == "onnx":
        onnxruntime()
    run, path = exported(name, format)
    names = run_code(Path(f"{path}.md"), monkeypatch)
    result = names["logits"] if format == "onnx" else names["probabilities"]
    pixels = [16] * run.task.info.dims if name.startswith("masks") else []
    assert list(result.shape) == [1, len(run.task.info.labels), *pixels]


# What is refused


def test_nothing_is_overwritten(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("plain")
    file, card = tmp_path / "net.safetensors", tmp_path / "net.safetensors.md"
    for there in (file, card):
        there.write_text("mine")
        with pytest.raises(FileExistsError, match=re.escape(str(there))):
            export_run(run, "safetensors", file)
        assert there.read_text() == "mine"
        there.unlink()
    export_run(run, "safetensors", file)
    with pytest.raises(FileExistsError, match="is not overwritten; choose another --out"):
        export_run(run, "safetensors", file)


def test_bad_names(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("plain")
    with pytest.raises(ValueError, match="one of pt2, onnx, safetensors, got 'onx'; did you mean 'onnx'"):
        export_run(run, "onx")
    with pytest.raises(ValueError, match=r"ends in \.pt2, got .*net\.pt"):
        export_run(run, "pt2", tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        export_run(run, "pt2", tmp_path / "nowhere" / "net.pt2")
    with pytest.raises(FileNotFoundError, match="no run at"):
        export_run(tmp_path / "nowhere")
    assert not (run.path / "export").exists()


def test_a_file_that_computes_something_else_is_not_put_in_place(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated("plain")
    write, read = export._FORMATS["safetensors"]
    wrong = (write, lambda payload, info: lambda x: read(payload, info)(x) + 0.1)
    monkeypatch.setitem(export._FORMATS, "safetensors", wrong)
    with pytest.raises(ValueError, match=r"differs from the network by 0\.1.*nothing is written"):
        export_run(run, "safetensors")
    assert not (run.path / "export").exists()


def test_a_disk_that_is_full_leaves_nothing(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fsync = evaluated("plain"), os.fsync

    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith(".md"):
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*model\.safetensors\.md \(No space left"):
        export_run(run, "safetensors", run.path.parent / "model.safetensors")
    assert not list(run.path.parent.glob("*model.safetensors*"))


def test_onnx_without_its_extra(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated("plain")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'isoconv\[onnx\]'"):
        export_run(run, "onnx")


# The command


def test_command(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated("plain")
    assert main(["export", str(run.path), "--format", "safetensors", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(run.path / "export" / "model.safetensors")
    assert Path(result["card"]).exists()
    assert main(["export", str(run.path), "--format", "safetensors"]) == 1
    result = capsys.readouterr()
    assert result.out == ""
    assert re.fullmatch(r"error: .*model\.safetensors exists and is not overwritten.*\n", result.err)


def test_every_snippet_of_the_how_to_runs(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    evaluated("plain").path.rename(tmp_path / "runs" / "cells")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "how_to"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["labels"][0] in RunDir("runs/cells").model_info["task"]["labels"]
    assert "model.pt2" in capsys.readouterr().out
