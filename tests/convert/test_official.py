"""load_official_checkpoint(): weights of the official SRE-Conv code, from every kind of file, or a reason."""

import contextlib
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import isoconv
from isoconv import load_official_checkpoint
from isoconv.models import create_model, model_config

Golden = Callable[[str], np.lib.npyio.NpzFile]


class TestGolden:
    """The official network's own weights and numbers."""

    @pytest.fixture
    def case(self, golden: Golden) -> tuple[dict[str, Tensor], nn.Module, Tensor, Tensor]:
        numbers = golden("official_sre_resnet18_narrow")
        meta = json.loads(str(numbers["meta"]))
        state = {key.removeprefix("sd_"): torch.from_numpy(numbers[key]) for key in numbers if key.startswith("sd_")}
        sizes = tuple(meta["sre_conv_size"])
        net = create_model("sre_resnet18", 3, meta["num_classes"], width=meta["inplanes"], kernel_sizes=sizes)
        return state, net.eval(), torch.from_numpy(numbers["x"]), torch.from_numpy(numbers["logits"])

    @pytest.mark.parametrize("source", ["dict", "wrapped", "ddp", ".pt", ".pth", ".safetensors"])
    def test_logits_are_those_of_the_official_network(self, case: tuple, source: str, tmp_path: Path) -> None:
        state, net, x, logits = case
        checkpoint: Any = state
        if source == "wrapped":
            checkpoint = {"epoch": 3, "model": {"state_dict": state}}
        elif source == "ddp":
            checkpoint = {"model_state_dict": {f"module.{key}": value for key, value in state.items()}}
        elif source == ".safetensors":
            checkpoint = tmp_path / "net.safetensors"
            save_file(state, checkpoint)
        elif source != "dict":
            checkpoint = str(tmp_path / f"net{source}")
            torch.save({"state_dict": state, "optimizer": {"lr": 0.1}}, checkpoint)
        assert load_official_checkpoint(checkpoint, net) is net
        torch.testing.assert_close(net(x), logits, atol=1e-4 * logits.abs().max().item(), rtol=0)

    def test_rows_of_unit_norm_take_other_weights_for_the_same_logits(self, case: tuple) -> None:
        state, net, x, logits = case
        unit = create_model(**model_config(net), norm="unit").eval()
        load_official_checkpoint(state, unit)
        torch.testing.assert_close(unit(x), logits, atol=1e-4 * logits.abs().max().item(), rtol=0)
        ring = 2  # of 12 taps
        torch.testing.assert_close(unit.conv1.weight[..., ring], math.sqrt(12) * state["conv1.weight"][..., ring])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bands": 2}, r"layer 'conv1': the checkpoint has 3 bands, the model 2; build the model with other bands"),
            ({"circular": False}, r"layer 'conv1': the checkpoint has 3 bands, the model 4; .* \(or circular\)"),
            ({"profile": "linear"}, "the checkpoint has bands that group the taps otherwise.*profile='hard'"),
            ({"spacing": (2.0, 1.0)}, "the checkpoint has bands that group the taps otherwise"),
            ({"stem_kernel": 9}, r"the checkpoint has kernel_size \(5, 5\), the model \(9, 9\).*stem_kernel"),
            ({"width": 16}, r"does not fit this ResNet.*of another shape: .* instead of"),
            ({"num_classes": 77}, r"2 of another shape: fc.weight"),
            ({"stem_stride": 2}, "missing: conv1.1.weight; .*unexpected: conv1.weight"),
        ],
    )
    def test_another_architecture_is_refused_and_stays_as_it_is(
        self, case: tuple, options: dict[str, Any], message: str
    ) -> None:
        state, net, _, _ = case
        config = {**isoconv.models.model_config(net), **options}
        other = create_model(**config)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=message) as raised:
            load_official_checkpoint(state, other)
        assert "\n" not in str(raised.value)
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())

    def test_a_file_cut_anywhere_is_refused_and_the_model_stays(self, case: tuple, tmp_path: Path) -> None:
        state, net, _, _ = case
        torch.save(state, tmp_path / "whole.pt")
        save_file(state, tmp_path / "whole.safetensors")
        before = {key: value.clone() for key, value in net.state_dict().items()}
        for suffix in (".pt", ".safetensors"):
            data = (tmp_path / f"whole{suffix}").read_bytes()
            cut = tmp_path / f"cut{suffix}"
            for length in (0, 1, 4, 100, len(data) // 2, len(data) - 1):
                cut.write_bytes(data[:length])
                with pytest.raises(ValueError, match=f"cut{suffix} cannot be read: expected a state dict"):
                    load_official_checkpoint(cut, net)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def official(layer: nn.Module) -> dict[str, Tensor]:
    """The state dict of the official layer like ``layer``, in a Sequential."""
    weight = torch.randn_like(layer.weight)
    basis = torch.from_numpy(layer.plan.basis).float().reshape(1, 1, layer.plan.bands, -1)
    return {"0.weight": weight, "0.bias": torch.randn_like(layer.bias), "0.weight_index_mat": basis}


@given(st.integers(1, 3), st.integers(1, 6), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_layers_of_every_dimension(dims: int, size: int, circular: bool, transposed: bool) -> None:
    kind = getattr(isoconv, f"SREConv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(2, 2, size, circular=circular)
    state = official(layer)
    load_official_checkpoint(state, nn.Sequential(layer))
    assert torch.equal(layer.weight, state["0.weight"])
    assert torch.equal(layer.bias, state["0.bias"])


def test_weights_are_copied_in_the_dtype_of_the_model() -> None:
    net = nn.Sequential(isoconv.SREConv2d(2, 2, 5)).double()
    state = official(net[0])
    state["0.weight"] = state["0.weight"].float()
    load_official_checkpoint(state, net)
    assert net[0].weight.dtype == torch.float64
    with torch.no_grad():
        net[0].weight.zero_()
    assert state["0.weight"].any()


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_execute_code_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    net = nn.Sequential(isoconv.SREConv2d(2, 2, 3))
    sprung, file = tmp_path / "sprung", tmp_path / "net.pt"
    torch.save({"state_dict": official(net[0]), "args": Trap(sprung)}, file)
    with pytest.raises(ValueError, match=r"holds more than weights \(.*mkdir\) and is not loaded.*state dict alone"):
        load_official_checkpoint(file, net)
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps(Trap(sprung), protocol))
        with pytest.raises(ValueError, match="is not loaded|cannot be read"):
            load_official_checkpoint(file, net)
    assert not sprung.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"holds more than weights \(torch.nn.modules.linear.Linear\)"):
        load_official_checkpoint(tmp_path / "net.pth", nn.Linear(2, 2))


@given(st.data())
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("damaged") / "net.pt"
    net = nn.Sequential(isoconv.SREConv2d(1, 1, 3))
    torch.save(official(net[0]), file, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(file.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(ValueError):
        load_official_checkpoint(file, net)


NET = nn.Sequential(isoconv.SREConv2d(2, 2, 3))


@pytest.mark.parametrize(
    ("checkpoint", "kind", "message"),
    [
        (
            "no/such/file.pt",
            FileNotFoundError,
            "no checkpoint at no/such/file.pt: expected a .pt, .pth or .safetensors",
        ),
        ({}, ValueError, r"expected a state dict .* got an empty dict"),
        ({"epoch": 3, "lr": 0.1}, ValueError, r"expected a state dict .* got a dict with 'epoch': int, 'lr': float"),
        ({"state_dict": {"weight": [1, 2]}}, ValueError, "got a dict with 'weight': list"),
        ({0: torch.zeros(1)}, ValueError, "got a dict with 0: Tensor"),
        ({"fc.weight": torch.zeros(1)}, ValueError, r"2 missing: 0.weight, 0.bias; 1 unexpected: fc.weight"),
        (NET, TypeError, "expected a path or a state dict as checkpoint, got Sequential"),
        (None, TypeError, "expected a path or a state dict as checkpoint, got NoneType"),
    ],
)
def test_bad_checkpoints_are_refused_with_a_reason(checkpoint: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_official_checkpoint(checkpoint, NET)


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


NOT_DENSE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "meta": (lambda x: x.to("meta"), "on the meta device, without values"),
    "sparse": (lambda x: x.to_sparse(), r"sparse or packed \(torch.sparse_coo\)"),
    "sparse rows": (lambda x: x.view(len(x), -1).to_sparse_csr(), r"sparse or packed \(torch.sparse_csr\)"),
    "packed": (lambda x: x.to_mkldnn(), r"sparse or packed \(torch._mkldnn\)"),
    "quantized": (quantized, r"quantized \(torch.qint8\)"),
    "nested": (lambda x: torch.nested.nested_tensor([x]), "a nested tensor"),
    "lazy": (lambda _: nn.UninitializedParameter(), "a UninitializedParameter"),
    "complex": (lambda x: x.to(torch.complex64), "1 complex: "),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:.*quantiz.*")
class TestTensorsWithoutDenseValues:
    """What cannot be copied is refused before anything is copied, whichever tensor it is."""

    def check(self, net: nn.Module, state: dict[str, Tensor], message: str) -> None:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_official_checkpoint(state, net)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    @pytest.mark.parametrize(("spoil", "message"), NOT_DENSE.values(), ids=NOT_DENSE)
    @pytest.mark.parametrize("place", [0, 60, 120])
    def test_a_weight(self, spoil: Callable[[Tensor], Tensor], message: str, place: int) -> None:
        net = create_model("sre_resnet18", 1, 2, width=2)
        state = {key: torch.randn(value.shape) for key, value in net.state_dict().items()}
        name = [key for key, value in state.items() if value.dim()][place * 2 // 3]
        state[name] = spoil(state[name])
        self.check(net, state, message + name if message.startswith("1 complex") else f"{name} .*{message}")

    @pytest.mark.parametrize(("spoil", "message"), NOT_DENSE.values(), ids=NOT_DENSE)
    def test_the_bands(self, spoil: Callable[[Tensor], Tensor], message: str) -> None:
        net = nn.Sequential(isoconv.SREConv2d(2, 2, 5))
        state = official(net[0])
        state["0.weight_index_mat"] = spoil(state["0.weight_index_mat"])
        self.check(net, state, "0.weight_index_mat .*" + ("complex64" if "complex" in message else message))

    @pytest.mark.parametrize("index", [torch.zeros(()), torch.zeros(9), torch.zeros(2, 2, 9)], ids=["0", "1", "3"])
    def test_bands_of_an_impossible_shape(self, index: Tensor) -> None:
        net = nn.Sequential(isoconv.SREConv2d(2, 2, 3))
        self.check(net, official(net[0]) | {"0.weight_index_mat": index}, r"of shape \(1, 1, bands, taps\), got")

    def test_a_model_without_values(self) -> None:
        with torch.device("meta"):
            net = nn.Sequential(nn.Conv2d(1, 1, 3))
        with pytest.raises(ValueError, match=r"0.weight of the model is on the meta device.*give it dense weights"):
            load_official_checkpoint({"0.weight": torch.zeros(1, 1, 3, 3), "0.bias": torch.zeros(1)}, net)

    def test_files_that_hold_them(self, tmp_path: Path) -> None:
        net = nn.Sequential(isoconv.SREConv2d(2, 2, 3))
        for kind in ("meta", "sparse", "quantized"):
            spoil, message = NOT_DENSE[kind]
            state = official(net[0])
            torch.save(state | {"0.bias": spoil(state["0.bias"])}, tmp_path / "net.pt")
            before = net[0].weight.clone()
            with pytest.raises(ValueError, match=f"0.bias of the checkpoint is {message}"):
                load_official_checkpoint(tmp_path / "net.pt", net)
            assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    "error", [OSError(22, "Invalid argument"), TypeError("no"), OverflowError("no"), MemoryError()]
)
def test_whatever_reading_a_damaged_file_raises_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As which version of PyTorch raises for which half of a file differs."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    (tmp_path / "half.pt").write_bytes(b"half")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match="half.pt cannot be read: expected a state dict"):
        load_official_checkpoint(tmp_path / "half.pt", NET)


def test_a_model_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got str"):
        load_official_checkpoint({"weight": torch.zeros(1)}, "sre_resnet18")  # type: ignore[type-var]


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_official_checkpoint(tmp_path, NET)
