"""Steerable networks leave isoconv as all others do: as exported programs, ONNX, plain weights and saved folders."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import isoconv
from isoconv import nn as iso
from isoconv.deploy.export import export_run
from isoconv.models import create_model, model_config
from isoconv.nn import Fields
from isoconv.runs import OnImages, RunDir

Evaluated = Callable[[str], RunDir]
RUNS = {
    "steerable_resnet18": "sre",
    "steerable_resnet18_3d": "volumes",
    "steerable_unet": "masks/sre",
    "steerable_unet_3d": "masks/volumes",
}
DROPPED = {"form": "dropped", "orders": 1, "reflections": False}
CASES = [(name, options) for name in RUNS for options in ({}, {"orders": 1, "reflections": False}, DROPPED)]
EXPORTED = [*((name, {}) for name in RUNS), CASES[2], CASES[7]]


def trained(name: str, in_channels: int, classes: int, options: dict) -> nn.Module:
    """A step away from its initial state, in eval mode."""
    net = create_model(name, in_channels, classes, width=4, **options)
    optimiser = torch.optim.SGD(net.parameters(), 0.02)
    net(torch.randn(3, in_channels, *[9] * net.dims)).square().mean().backward()
    optimiser.step()
    return net.eval()


@pytest.fixture
def run(evaluated: Evaluated, request: pytest.FixtureRequest) -> RunDir:
    """A run directory whose best network is the steerable one asked for."""
    name, options = request.param
    run = evaluated(RUNS[name])
    net = trained(name, run.task.info.channels, run.task.info.num_outputs, options)
    run.save_model(net, {**run.model_info, "model": model_config(net)})
    return run


WITHOUT_ISOCONV = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("isoconv", "numba"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file
cases, program = load_file(sys.argv[2]), torch.export.load(sys.argv[1]).module()
for i in range(len(cases) // 2):
    torch.testing.assert_close(program(cases[f"x{i}"]), cases[f"y{i}"], rtol=1e-4, atol=1e-4)
sys.stdout.write(f"{len(cases) // 2} alike")
"""


def check_without_isoconv(network: nn.Module, program: Path, images: list[torch.Tensor]) -> None:
    """The ``program`` gives the outputs of the ``network`` in a process that cannot import isoconv."""
    cases = {}
    for i, x in enumerate(images):
        cases |= {f"x{i}": x, f"y{i}": network(x).detach()}
    save_file(cases, program.with_name("cases.safetensors"))
    command = [sys.executable, "-c", WITHOUT_ISOCONV, program, program.with_name("cases.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=program.parent, check=False)
    assert done.stdout == f"{len(images)} alike", done.stderr


def images(run: RunDir) -> list[torch.Tensor]:
    """Batches of several sizes, odd and even ones, square and not."""
    dims, channels = run.task.info.dims, run.task.info.channels
    return [torch.rand(batch, channels, *range(16, 16 + step * dims, step)) for batch, step in ((3, 1), (1, 2))]


def stack(dims: int) -> nn.Module:
    """A layer of every kind."""
    conv = {2: iso.SteerableConv2d, 3: iso.SteerableConv3d}[dims]
    pool, upsample = (getattr(iso, f"Symmetric{kind}{dims}d")() for kind in ("AvgPool", "Upsample"))
    one, two = Fields("2x0 + 2x1 + 2x2", dims), Fields("3x0 + 2x1", dims)
    gate = iso.FieldGate(two)
    layers = [conv(1, one, 3, padding=1), iso.FieldNorm(one), iso.FieldReLU(one), iso.FieldDropout(one), pool]
    layers += [conv(one, two, 3, padding=1), iso.FieldNorm(two, "instance"), gate, upsample]
    layers += [
        conv(gate.out_fields, two, 3, padding=1),
        iso.FieldMagnitudes(two),
        iso.InvariantPool(Fields("5x0", dims)),
    ]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_program_of_every_layer_runs_where_isoconv_is_not(dims: int, tmp_path: Path) -> None:
    net = stack(dims)
    sizes = (dict.fromkeys((0, *range(2, 2 + dims)), torch.export.Dim.AUTO),)
    program = torch.export.export(isoconv.fuse(net), (torch.randn(2, 1, *[12, 14, 16][:dims]),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "net.pt2")
    check_without_isoconv(
        net, tmp_path / "net.pt2", [torch.randn(3, 1, *[8, 9, 11][:dims]), torch.randn(1, 1, *[9] * dims)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", EXPORTED, indirect=True, ids=str)
def test_the_program_runs_where_isoconv_is_not(run: RunDir, tmp_path: Path) -> None:
    check_without_isoconv(run.load_model(), export_run(run, "pt2", tmp_path / "net.pt2").path, images(run))


@pytest.mark.slow
@pytest.mark.parametrize("run", EXPORTED, indirect=True, ids=str)
def test_onnx_runtime_computes_the_same(run: RunDir) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'isoconv[onnx]'")
    import onnxruntime

    session = onnxruntime.InferenceSession(export_run(run, "onnx").path, providers=["CPUExecutionProvider"])
    for x in images(run):
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), run.load_model()(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("run", CASES, indirect=True, ids=str)
def test_safetensors_are_the_weights_of_the_plain_network(run: RunDir) -> None:
    net = isoconv.fuse(create_model(**run.model_info["model"]))
    net.load_state_dict(load_file(export_run(run, "safetensors").path))
    x = images(run)[0]
    plain = OnImages(net, run.model_info["masked"]).eval()
    torch.testing.assert_close(plain(x), run.load_model()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_network_comes_back(tmp_path: Path, name: str, options: dict) -> None:
    net = trained(name, 1, 3, options)
    again = isoconv.from_pretrained(isoconv.save_pretrained(net, tmp_path / "net"))
    x = torch.randn(2, 1, *[9] * net.dims)
    assert torch.equal(again(x), net(x))
    assert model_config(again) == model_config(net)
    turns = "quarter turns" if net.dims == 2 else "the 24 rotations of the cube"
    mirrors = " and mirror images" * options.get("reflections", True)
    card = (tmp_path / "net" / "README.md").read_text()
    assert f"| symmetry kept exactly | {turns}{mirrors}, to rounding |" in card
