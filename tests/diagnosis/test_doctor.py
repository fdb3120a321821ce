"""The doctor: what it measures, what it blames, and what it says."""

import html
import json
import math
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv
from isoconv.cli.main import main
from isoconv.diagnosis.result import Diagnosis, Finding, LayerDiagnosis
from isoconv.evaluation.measuring import multiply_adds

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md"


def layer(diagnosis: Diagnosis, name: str) -> LayerDiagnosis:
    (found,) = (row for row in diagnosis.layers if row.name == name)
    return found


def finding(diagnosis: Diagnosis, symmetry: str) -> Finding:
    (found,) = (f for f in diagnosis.findings if f.symmetry == symmetry)
    return found


def pooled(*body: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


class Coded(nn.Module):
    """Isotropic layers, with code of a forward() between or after them."""

    def __init__(self, between: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second = isoconv.SREConv2d(1, 4, 5, padding=2), isoconv.SREConv2d(4, 4, 3, padding=1)
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.second(self.between(self.first(x))))


# What it measures


def test_the_first_layer_that_breaks_a_symmetry_is_named_with_its_remedy() -> None:
    net = pooled(isoconv.SREConv2d(1, 4, 5), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), channels=4)
    diagnosis = isoconv.doctor(net, (2, 1, 16, 16))
    assert [f.symmetry for f in diagnosis.findings] == ["rot90", "flip", "rot30"]
    for found in diagnosis.findings:
        assert (found.holds, found.layer, found.where) == (False, "2", "in 2 (Conv2d)")
        assert (found.reason, found.remedy) == ("its kernel is not isotropic", "convert(net)")
        assert found.sizes == diagnosis.sizes == ((16, 16), (17, 17))
    assert finding(diagnosis, "flip").error > 1e-3 > 1e-5 > finding(diagnosis, "flip").converted
    assert [row.name for row in diagnosis.layers if row.breaks] == ["2", "3"]
    relu = layer(diagnosis, "1")
    assert relu.own["rot90"] == 0
    assert relu.total["rot90"] < 1e-5
    assert relu.reason == relu.remedy == ""
    assert layer(diagnosis, "4").own["rot90"] < 1e-5 < 1e-3 < layer(diagnosis, "4").total["rot90"]


@pytest.mark.parametrize("profile", ["hard", "gaussian"])
def test_an_isotropic_network_keeps_everything(profile: str) -> None:
    net = isoconv.create_model("sre_resnet18", 1, 2, width=4, profile=profile)
    diagnosis = isoconv.doctor(net, (1, 1, 16, 16))
    assert all(found.holds for found in diagnosis.findings)
    assert [row.name for row in diagnosis.layers if row.breaks] == []
    assert max(row.own["flip"] for row in diagnosis.layers) < 1e-5
    assert "30°: kept approximately, error" in str(diagnosis)


def test_errors_are_those_of_equivariance_error() -> None:
    net, x = pooled(nn.Conv2d(1, 4, 3), channels=4), torch.randn(2, 1, 16, 16, dtype=torch.float64)
    net.double()
    diagnosis = isoconv.doctor(net[:1], x)
    expected = isoconv.equivariance_error(net[:1], x, angles=(90, 30), flips=False)
    at_16 = isoconv.equivariance_error(net[:1], F.interpolate(x, (17, 17), mode="bilinear"), (90, 30), flips=False)
    for symmetry, error in expected.items():
        assert finding(diagnosis, symmetry).error == pytest.approx(max(error, at_16[symmetry]))
        assert layer(diagnosis, "0").own[symmetry] == layer(diagnosis, "0").total[symmetry]


def test_a_symmetry_that_holds_at_one_size_only() -> None:
    diagnosis = isoconv.doctor(pooled(nn.MaxPool2d(2), channels=1), (1, 1, 16, 16))
    pool, flip = layer(diagnosis, "0"), finding(diagnosis, "flip")
    assert pool.sizes == flip.sizes == ((17, 17),)
    assert flip.layer == "0"
    assert "off centre at some input sizes" in flip.reason
    assert "flips: lost first in 0 (MaxPool2d), at 17x17 only: strided" in str(diagnosis).replace("\n  ", "")


def test_code_between_layers_is_found_by_its_place() -> None:
    half = Coded(lambda x: x[..., ::2, ::2])
    for found in isoconv.doctor(half, (1, 1, 16, 16)).findings:
        assert (found.holds, found.layer, found.where) == (False, None, "after first, before second")
        assert "forward()" in found.reason
    assert isoconv.doctor(half, (1, 1, 16, 16)).layers[1].breaks == ()


def test_code_before_and_after_all_layers() -> None:
    end = Coded(lambda x: x, lambda x: x[..., 0, 0])
    assert finding(isoconv.doctor(end, (1, 1, 16, 16)), "flip").where == "after second, at the end"
    start = nn.Module()
    start.conv = isoconv.SREConv2d(1, 1, 3)
    start.forward = lambda x: start.conv(F.pad(x, (1, 0)))
    assert finding(isoconv.doctor(start, (1, 1, 16, 16)), "flip").where == "before conv"


class Code(nn.Module):
    """A layer that no rule knows."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shifted(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1, 0, 1))[..., 1:, 1:]


class TestSaturatingLayers:
    """They hide errors and enlarge them: only the own error of a layer, or of code, says whose it is."""

    @pytest.mark.parametrize("last", [nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh()], ids=repr)
    def test_a_layer_whose_error_is_hidden_is_still_the_first(self, last: nn.Module) -> None:
        body = isoconv.SREConv2d(1, 4, 3, padding=1), Code(lambda x: shifted(x) + 30), last
        net = nn.Sequential(*body, isoconv.SREConv2d(4, 1, 3), Coded(shifted)).double()
        diagnosis = isoconv.doctor(net, (1, 1, 16, 16))
        assert [found.layer for found in diagnosis.findings[:2]] == ["1", "1"]
        assert layer(diagnosis, "3").total["flip"] < 1e-2

    @pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh()], ids=repr)
    def test_code_is_told_from_the_layer_behind_it(self, layer: nn.Module) -> None:
        net = Coded(lambda x: layer(1e3 * shifted(x)))
        net.layer = layer
        for found in isoconv.doctor(net.double(), (1, 1, 16, 16)).findings:
            assert (found.layer, found.where) == (None, "after first, before layer")

    @pytest.mark.parametrize("last", [nn.Softmax(1), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LogSoftmax(1)])
    def test_what_reveals_an_error_is_not_blamed_for_it(self, last: nn.Module) -> None:
        """Beside an offset that all channels share, the error is within the tolerance."""
        conv = nn.Conv2d(1, 4, 3, padding=1)
        conv.bias.data[:] = 1e5
        net = nn.Sequential(conv, last, nn.InstanceNorm2d(4), isoconv.SREConv2d(4, 2, 3)).double()
        diagnosis = isoconv.doctor(net, (1, 1, 16, 16))
        assert 0 < layer(diagnosis, "0").own["flip"] < 1e-4
        for found in diagnosis.findings[:2]:
            assert found.error > 1e-2
            assert (found.layer, found.where) == (None, "little by little, most in 0 (Conv2d)")
            assert (found.reason, found.remedy) == ("its kernel is not isotropic", "convert(net)")

    def test_rounding_that_is_enlarged_is_called_so(self) -> None:
        net = nn.Sequential(isoconv.SREConv2d(1, 4, 5, padding=2), Code(lambda x: torch.sin(1e6 * x)), nn.ReLU())
        found = finding(isoconv.doctor(net, (1, 1, 16, 16)), "rot90")
        assert found.where == "little by little, most in 0 (SREConv2d)"
        assert "enlarge" in found.reason
        assert "net.double()" in found.remedy
        assert finding(isoconv.doctor(net.double(), (1, 1, 16, 16)), "rot90").holds

    def test_an_error_that_the_output_hides_is_noted(self) -> None:
        for hiding in (
            nn.Threshold(1e9, 1.0),
            Code(lambda x: x * 0),
            nn.Sequential(Code(lambda x: x + 99), nn.Sigmoid()),
        ):
            net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), hiding, nn.Softmax(1))
            diagnosis = isoconv.doctor(net, (1, 1, 16, 16))
            assert all(found.holds for found in diagnosis.findings)
            assert diagnosis.notes[:2] == tuple(
                f"{symmetry}: kept by the output, though 0 (Conv2d) breaks it: what follows hides or undoes that, on "
                "this input at least."
                for symmetry in ("90°", "flips")
            )

    def test_code_behind_a_broken_layer_is_no_longer_blamed_for_it(self) -> None:
        """Only what it does to the output that the layer should have had counts: none, so the repaired network is
        clean."""
        net = Coded(lambda x: x * 2)
        net.first = nn.Conv2d(1, 4, 5, padding=2)
        assert {found.layer for found in isoconv.doctor(net, (1, 1, 16, 16)).findings} == {"first"}


def test_infinite_errors_are_explained_wherever_they_are_shown() -> None:
    for net in (Coded(lambda x: x / 0), nn.Sequential(nn.Conv3d(1, 1, 1, (1, 2, 2)), nn.ReLU()), nn.AvgPool2d((2, 1))):
        dims = 3 if isinstance(net, nn.Sequential) else 2
        diagnosis = isoconv.doctor(net, (1, 1, *[8] * dims))
        for shown in (str(diagnosis), html.unescape(diagnosis.to_html())):
            assert " inf" in shown or ">inf" in shown
            assert "inf: an output of another shape, no number" in " ".join(shown.split())
    assert "inf:" not in str(isoconv.doctor(nn.ReLU(), (1, 1, 8, 8)))


def test_a_map_that_is_flattened() -> None:
    net = nn.Sequential(isoconv.SREConv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 16, 3))
    diagnosis = isoconv.doctor(net, (2, 1, 4, 4))
    assert {f.layer for f in diagnosis.findings} == {"1"}
    assert "one pixel per channel" in diagnosis.findings[0].reason
    assert diagnosis.sizes == ((4, 4),)
    assert any("size is left out" in note and "(2, 1, 5, 5)" in note for note in diagnosis.notes)


def test_channels_last_between_layers() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.norm(x.movedim(1, -1))).movedim(-1, 1)

    diagnosis = isoconv.doctor(nn.Sequential(isoconv.SREConv2d(1, 8, 3, padding=1), Last()), (1, 1, 8, 8))
    assert all(found.holds for found in diagnosis.findings)
    assert {row.own["rot90"] < 1e-5 for row in diagnosis.layers} == {True}


def test_layers_after_a_break_are_not_blamed_for_it() -> None:
    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(x.movedim(1, -1)).movedim(-1, 1)

    body = [nn.Conv2d(1, 8, 4, 4), Norm(8), Last(), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for seed in range(5):
        diagnosis = isoconv.doctor(nn.Sequential(*body), (1, 1, 32, 32), seed=seed)
        assert [row.name for row in diagnosis.layers if row.breaks] == ["0"]


def test_a_layer_that_mixes_positions_is_not_taken_for_channels_last() -> None:
    net = nn.Sequential(isoconv.SREConv1d(1, 4, 3, padding=1), nn.Linear(12, 12))
    diagnosis = isoconv.doctor(net, (1, 1, 12))
    assert [(found.symmetry, found.layer) for found in diagnosis.findings] == [("flip", "1")]


def test_tokens_are_not_measured_but_the_network_is() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = isoconv.SREConv2d(1, 8, 3, padding=1)
            self.position = nn.Parameter(torch.randn(1, 64, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.patch(x).flatten(2).mT + self.position).mean(1))

    diagnosis = isoconv.doctor(Tokens(), (1, 1, 8, 8))
    assert layer(diagnosis, "block.linear1").own == {"rot90": None, "flip": None, "rot30": None}
    found = finding(diagnosis, "rot90")
    assert (found.holds, found.layer) == (False, None)
    assert found.where == "after patch, before head"
    assert re.search(r"linear1 +Linear +1x64x8 +- +- +-", str(diagnosis))


@pytest.mark.parametrize(
    ("make", "shape", "symmetries"),
    [
        (lambda: nn.Conv1d(1, 2, 3), (1, 1, 16), ["flip"]),
        (lambda: nn.Conv3d(1, 2, 3), (1, 1, 6, 6, 6), ["rot90", "flip", "rot30"]),
        (lambda: nn.ConvTranspose2d(1, 2, 2, 2), (1, 1, 6, 6), ["rot90", "flip", "rot30"]),
        (lambda: nn.Conv2d(1, 2, 3, 2), (1, 1, 7, 9), ["rot90", "flip", "rot30"]),
    ],
)
def test_any_number_of_axes(make: Callable[[], nn.Module], shape: tuple[int, ...], symmetries: list[str]) -> None:
    diagnosis = isoconv.doctor(make(), shape)
    assert [(f.symmetry, f.holds, f.layer) for f in diagnosis.findings] == [(s, False, "") for s in symmetries]
    assert "in (root) (Conv" in diagnosis.findings[0].where
    assert max(f.converted for f in diagnosis.findings if f.symmetry != "rot30") < 1e-5


def test_only_what_a_symmetry_breaks_is_blamed_for_it() -> None:
    net = nn.Conv2d(1, 1, 3)
    kernel = torch.tensor([[1.0, 2.0, 1.0], [5.0, 0.0, 5.0], [1.0, 2.0, 1.0]])
    net.weight.data[:] = kernel
    diagnosis = isoconv.doctor(net, (1, 1, 16, 16))
    assert finding(diagnosis, "flip").holds
    assert layer(diagnosis, "").breaks == ("rot90", "rot30")


def test_options_that_differ_between_the_axes() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    first = isoconv.doctor(net, (1, 1, 8, 8, 8)).layers[0]
    assert "differs between the axes" in first.reason
    assert first.remedy.startswith("convert(net), and use the same along every axis")
    grid, conv, relu, pool = isoconv.doctor(isoconv.convert(net), (1, 1, 8, 8, 8)).layers
    assert grid.breaks == conv.breaks == ("rot90", "rot30")
    assert grid.own["rot90"] == math.inf
    assert grid.reason == "measured; its options, or its input, differ between the axes"
    assert relu.breaks == pool.breaks == ()


def test_a_module_with_parameters_of_its_own_is_not_blamed_for_its_layers() -> None:
    class Scaled(nn.Module):
        def __init__(self, kernel: nn.Module) -> None:
            super().__init__()
            self.conv, self.scale = kernel, nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.conv(x)

    net = nn.Sequential(Scaled(nn.Conv2d(1, 1, 3)), Scaled(isoconv.SREConv2d(1, 1, 3)))
    conv, first, _, second = isoconv.doctor(net, (1, 1, 8, 8)).layers
    assert (conv.reason, first.reason) == ("its kernel is not isotropic", "0.conv in it does")
    assert second.breaks == ()


def test_layers_used_twice_or_never_and_any_kind_of_output() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.idle = isoconv.SREConv2d(2, 2, 3, padding=1), nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> dict[str, object]:
            y = self.conv(x)
            return {"map": y, "more": (self.conv(y).mean((2, 3)), None, "text")}

    diagnosis = isoconv.doctor(Net(), (1, 2, 8, 8))
    assert all(found.holds for found in diagnosis.findings)
    assert [row.name for row in diagnosis.layers] == ["conv"]
    assert layer(diagnosis, "conv").multiply_adds == 2 * (2 * 8 * 8) * 2 * 2
    assert diagnosis.notes == ("Layers that did not run: idle.",)


def test_a_network_that_draws_at_random_is_noted() -> None:
    noisy = Coded(lambda x: x + torch.randn_like(x))
    assert "changes from run to run" in isoconv.doctor(noisy, (1, 1, 8, 8)).notes[0]


def test_infinite_errors_are_errors() -> None:
    diagnosis = isoconv.doctor(Coded(lambda x: x, lambda x: x / 0), (1, 1, 8, 8))
    assert diagnosis.notes == ("The output holds NaN or infinity: no error of it is finite.",)
    assert diagnosis.findings[0].error == math.inf
    assert diagnosis.to_dict()["findings"][0]["error"] == "inf"
    assert json.loads(diagnosis.to_json()) == diagnosis.to_dict()


def test_an_output_of_zeros_tells_nothing_of_the_network() -> None:
    """As many networks give when they are new."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    nn.init.zeros_(net[2].weight), nn.init.zeros_(net[2].bias)
    diagnosis = isoconv.doctor(net, (1, 1, 8, 8))
    assert diagnosis.notes[0].startswith("The output is zero everywhere, which tells nothing")
    for found in diagnosis.findings:
        assert (found.holds, found.error, found.layer) == (False, None, "0")
    kept = isoconv.doctor(isoconv.convert(net), (1, 1, 8, 8))
    assert [found.holds for found in kept.findings] == [None] * 3


def test_costs_before_and_after_conversion() -> None:
    net, x = isoconv.create_model("resnet18", 1, 2, width=4), torch.randn(1, 1, 16, 16)
    diagnosis, converted = isoconv.doctor(net, x), isoconv.convert(net)
    assert diagnosis.parameters == tuple(sum(p.numel() for p in n.parameters()) for n in (net, converted))
    counts = [multiply_adds(n, x)["multiply_adds_banded"] for n in (net, converted)]
    assert diagnosis.multiply_adds == tuple(counts)
    up = isoconv.doctor(nn.ConvTranspose2d(3, 2, 2, 2, groups=1), (1, 3, 5, 5))
    assert up.multiply_adds[0] == 5 * 5 * 3 * 2 * 2 * 2


def test_network_and_random_numbers_stay_as_they_were() -> None:
    net = pooled(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True), channels=4)
    net[1].eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(2, 1, 8, 8)
    torch.set_rng_state(random)
    kept = x.clone()
    one = isoconv.doctor(net, x)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert one == isoconv.doctor(net, x)
    assert isoconv.doctor(net, (1, 1, 8, 8)) == isoconv.doctor(net, (1, 1, 8, 8))
    assert isoconv.doctor(net, (1, 1, 8, 8), seed=1) != isoconv.doctor(net, (1, 1, 8, 8))


def test_a_network_that_convert_cannot_take() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

        def __deepcopy__(self, memo: dict) -> nn.Module:
            raise RuntimeError("there is only one of me")

    diagnosis = isoconv.doctor(Single(), (1, 1, 8, 8))
    assert "there is only one of me" in diagnosis.notes[0]
    assert diagnosis.multiply_adds[1] is None
    assert {f.converted for f in diagnosis.findings} == {None}
    assert "converted  -" in str(diagnosis)


# What it says


def test_the_page_needs_nothing_beside_it_and_escapes() -> None:
    class Odd(nn.Conv2d):
        pass

    Odd.__name__ = "<script>alert(1)</script>"
    page = isoconv.doctor(nn.Sequential(Odd(1, 2, 3), nn.Sigmoid()), (1, 1, 8, 8)).to_html()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page)
    assert "its kernel is not isotropic" in page
    assert 'class="n bad"' in page


def test_the_table_names_each_reason_once() -> None:
    text = str(isoconv.doctor(pooled(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), channels=4), (1, 1, 16, 16)))
    table = text.split("\n\n")
    assert re.search(r"^0 +Conv2d +1x4x14x14 .* 1$", table[0], re.MULTILINE)
    assert re.search(r"^1 +Conv2d +1x4x12x12 .* 1$", table[0], re.MULTILINE)
    assert table[1] == " 1 its kernel is not isotropic -> convert(net)"
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3, (1, 1, 8, 8)), TypeError, "torch.nn.Module, got int"),
        ((nn.ReLU(), 224), TypeError, "a tensor of images or a shape such as (1, 3, 224, 224), got 224"),
        ((nn.ReLU(), (1, 8)), ValueError, "such as 1x3x224x224, got (1, 8)"),
        ((nn.ReLU(), (1, 1, 0, 8)), ValueError, "such as 1x3x224x224, got (1, 1, 0, 8)"),
        ((nn.ReLU(), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), ValueError, "floating-point images, got torch.uint8"),
        ((nn.ReLU(), torch.full((1, 1, 8, 8), math.nan)), ValueError, "the images hold NaN or infinity"),
        ((nn.ReLU(), torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 8, 8)), ValueError, "the same at every pixel"),
        ((nn.ReLU(), (1, 1, 1, 1)), ValueError, "the same at every pixel"),
        ((nn.Conv2d(1, 1, 3, device="meta"), (1, 1, 8, 8)), ValueError, "the network is on the meta device"),
        ((nn.Conv2d(3, 1, 3), (1, 1, 8, 8)), ValueError, "Conv2d cannot run on an input of shape (1, 1, 8, 8)"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        isoconv.doctor(*arguments)


def test_bad_angles_and_tolerances_and_networks_without_tensors() -> None:
    for angle in (0, 180, math.nan):
        with pytest.raises(ValueError, match="other than the multiples of 90"):
            isoconv.doctor(nn.ReLU(), (1, 1, 8, 8), angle=angle)
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance must be a relative error from 0 up, got"):
            isoconv.doctor(nn.ReLU(), (1, 1, 8, 8), tolerance=tolerance)
    silent = Coded(lambda x: x, lambda _: "nothing")
    with pytest.raises(TypeError, match="Coded returns no tensor, got str"):
        isoconv.doctor(silent, (1, 1, 8, 8))


# The command

NETWORKS = """
from torch import nn
import isoconv

plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
class Nets:
    @staticmethod
    def isotropic():
        return isoconv.convert(plain)
def broken():
    raise KeyError("no weights here")
def number():
    return 3
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `my_networks` in the current folder, which is no package and not installed."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    (tmp_path / "my_typo.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("my_networks", "my_typo"):
        sys.modules.pop(name, None)


def test_command(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "my_networks:plain", "--input", "1x1x8x8"]) == 0
    assert "lost first in 0 (Conv2d)" in capsys.readouterr().out
    page = networks / "page.html"
    assert main(["doctor", "my_networks:Nets.isotropic", "--input", "1x1x8x8", "--json", "--html", str(page)]) == 0
    result = capsys.readouterr()
    assert [f["holds"] for f in json.loads(result.out)["findings"]] == [True] * 3
    assert str(page) in result.err
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("target", "shape", "words"),
    [
        ("my_networks", "1x1x8x8", "given as MODULE:FACTORY"),
        ("my_networks.py:plain", "1x1x8x8", "cannot import module 'my_networks.py'"),
        ("no_networks:plain", "1x1x8x8", "cannot import module 'no_networks' (ModuleNotFoundError"),
        ("my_typo:plain", "1x1x8x8", "No module named 'no_such_package'"),
        ("my_networks:plane", "1x1x8x8", "there is no 'plane' in 'my_networks'; did you mean 'plain'?"),
        ("my_networks:broken", "1x1x8x8", "fails when called without arguments (KeyError: 'no weights here')"),
        ("my_networks:number", "1x1x8x8", "must be or return a torch.nn.Module, got int"),
        ("my_networks:__name__.x", "1x1x8x8", "there is no 'x' in 'my_networks'"),
        ("my_networks:plain", "1x1x8", "cannot run on an input of shape (1, 1, 8)"),
        ("my_networks:plain", "1x3x8x8", "cannot run on an input of shape (1, 3, 8, 8)"),
        ("my_networks:plain", "8x8", "--input is a shape such as 1x3x224x224"),
        ("my_networks:plain", "1x1xax8", "--input is a shape such as 1x3x224x224"),
    ],
)
def test_command_errors(
    networks: Path, capsys: pytest.CaptureFixture[str], target: str, shape: str, words: str
) -> None:
    assert main(["doctor", target, "--input", shape]) == 1
    result = capsys.readouterr()
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_the_page_is_refused_before_the_work(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page in (networks / "nowhere" / "page.html", networks):
        assert main(["doctor", "my_networks:plain", "--input", "1x1x8x8", "--html", str(page)]) == 1
        assert "--html must be a file in a folder that exists, got" in capsys.readouterr().err


def test_every_snippet_of_the_how_to_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {"__name__": "how_to"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(textwrap.dedent(snippet), str(PAGE), "exec"), names)
    (shown,) = re.findall(r"```\n( +own error.*?)```", PAGE.read_text(), re.DOTALL)
    without_numbers = [re.sub(r"\d\S*\d\b", "0", text).split() for text in (shown, capsys.readouterr().out)]
    assert without_numbers[0] == without_numbers[1]  # the numbers are those of one machine
