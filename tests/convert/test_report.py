"""conversion_report(): what was converted, what was not and why, and what still breaks the symmetry."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import isoconv
from isoconv import conversion_report, convert
from isoconv import nn as iso
from isoconv.convert.report import Row


def only(layer: nn.Module) -> Row:
    (row,) = conversion_report(layer).rows
    return row


def error(layer: nn.Module, size: int) -> float:
    dims = 3 if "3d" in type(layer).__name__ else 2
    x = torch.randn(1, 4, *[size] * dims, dtype=torch.float64)
    return max(isoconv.equivariance_error(layer.double(), x).values())


class Scaled(nn.Module):
    """A layer that holds a parameter beside its children."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.conv(x)


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


CONVERTIBLE = [
    (nn.Conv2d(4, 4, 3), ""),
    (nn.ConvTranspose2d(4, 4, 4, 2, 1), ""),
    (nn.Conv2d(4, 4, 3, 2), "strided"),
    (nn.Conv3d(4, 4, 1, 2), "strided"),
    (nn.MaxPool2d(3, 2, 1), "strided"),
    (nn.AvgPool3d(2), "strided"),
    (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
    (nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), "output_padding"),
    (iso.SREConv2d(4, 4, 3, 2), "strided"),
]
UNAFFECTED = [
    nn.ReLU(),
    nn.BatchNorm2d(4),
    nn.InstanceNorm3d(4),
    nn.GroupNorm(2, 4),
    nn.Dropout2d(),
    nn.Identity(),
    nn.Sequential(),
    nn.Conv2d(4, 4, 1),
    nn.MaxPool2d(3, 1, 1),
    nn.AdaptiveAvgPool2d(1),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True),
    nn.Upsample(size=(7, 7), mode="bilinear"),
    nn.ReflectionPad2d(2),
    nn.Softmax(1),
    nn.LayerNorm((4, 8, 8), elementwise_affine=False),
    nn.ConvTranspose2d(4, 4, 1, 2),
    iso.SymmetricAvgPool2d(),
    iso.SymmetricUpsample3d(),
]
BREAKS = [
    (nn.Conv2d(4, 4, 1, (1, 2)), "differs between the axes"),
    (iso.SREConv2d(4, 4, (3, 5)), "differs between the axes"),
    (iso.SREConv2d(4, 4, 3, spacing=(2, 1)), "differs between the axes"),
    (iso.SREConv2d(4, 4, 2, padding="same"), "pads one side more"),
    (iso.SREConvTranspose2d(4, 4, 3, 2, 1, 1), "output_padding"),
    (nn.ConvTranspose2d(4, 4, 1, 2, 0, 1), "output_padding"),
    (nn.AvgPool2d(3, 2, ceil_mode=True), "ceil_mode"),
    (nn.MaxPool2d((1, 2), 1), "differs between the axes"),
    (nn.LPPool2d(2, 3, 2), "strided"),
    (nn.AdaptiveAvgPool2d((1, 2)), "differs between the axes"),
    (nn.Upsample(scale_factor=1.5), "repeats samples unevenly"),
    (nn.Upsample(scale_factor=(2, 1)), "differs between the axes"),
    (nn.ZeroPad2d((0, 1, 0, 1)), "pads one side more"),
    (nn.ZeroPad2d((1, 1, 0, 0)), "differs between the axes"),
    (nn.PixelShuffle(2), "mixes channels with positions"),
    (nn.PixelUnshuffle(2), "mixes channels with positions"),
]
DEPENDS = [
    (nn.Linear(4, 4), "pooled features"),
    (nn.Flatten(), "one pixel per channel"),
    (nn.LayerNorm(4), "last axis is that of the channels"),
    (nn.Upsample(size=(7, 7)), "its output is a whole multiple"),
    (nn.Upsample(scale_factor=1.5, mode="bilinear"), "scale_factor is whole"),
    (nn.Softmax(-1), "along axis -1"),
    (nn.GLU(), "along axis -1"),
    (nn.MultiheadAttention(4, 2), "positional embedding"),
]


@pytest.mark.parametrize(("layer", "reason"), CONVERTIBLE, ids=repr)
def test_what_convert_will_do(layer: nn.Module, reason: str) -> None:
    row = only(layer)
    assert row.status == "convertible"
    assert row.reason.startswith(reason)
    assert {r.status for r in conversion_report(convert(layer)).rows} <= {"isotropic", "unaffected"}


@pytest.mark.parametrize("layer", UNAFFECTED, ids=repr)
def test_what_keeps_the_symmetry_as_it_is(layer: nn.Module) -> None:
    assert (only(layer).status, only(layer).reason) == ("unaffected", "")
    if not isinstance(layer, nn.LayerNorm):
        assert max(error(layer.eval(), size) for size in (8, 9)) < 1e-12


@pytest.mark.parametrize(("layer", "reason"), BREAKS, ids=repr)
def test_what_breaks_the_symmetry_and_what_to_do(layer: nn.Module, reason: str) -> None:
    row = conversion_report(convert(layer)).rows[-1]
    assert row.status == "breaks symmetry"
    assert reason in row.reason
    assert row.remedy
    assert max(error(layer, size) for size in (8, 10)) > 1e-3


def test_parameters_for_every_position_break_the_symmetry() -> None:
    assert only(nn.LayerNorm((4, 8, 8))).status == "breaks symmetry"


@pytest.mark.parametrize(("layer", "reason"), DEPENDS, ids=repr)
def test_what_depends_on_where_it_stands(layer: nn.Module, reason: str) -> None:
    assert only(layer).status == "depends"
    assert reason in only(layer).reason


@pytest.mark.parametrize(
    "layer", [nn.Embedding(2, 3), nn.LSTM(2, 3), nn.MaxUnpool2d(2), nn.Bilinear(2, 2, 2)], ids=repr
)
def test_what_is_not_known_is_called_so(layer: nn.Module) -> None:
    row = conversion_report(nn.Sequential(layer)).rows[0]
    assert (row.status, row.remedy) == ("unknown", "measure with isoconv.equivariance_error")


def test_parameters_beside_children_are_reported() -> None:
    rows = conversion_report(nn.Sequential(Scaled())).rows
    assert [(row.name, row.status) for row in rows] == [("0", "unaffected"), ("0.conv", "convertible")]
    assert rows[0].reason == "measured: keeps"  # once its layers are converted
    assert rows[0].parameters == 4
    assert "holds parameters" in conversion_report(Scaled()).rows[0].reason  # the network itself takes an input


def test_layers_beside_a_parametrised_parameter_are_layers() -> None:
    net = parametrize.register_parametrization(Scaled(), "scale", nn.Softplus())
    rows = conversion_report(net).rows
    assert [(row.name, row.status, row.parameters) for row in rows] == [
        ("", "unknown", 4),
        ("conv", "convertible", 148),
    ]
    assert isinstance(convert(net).conv, iso.SREConv2d)


def test_what_stays_wrong_after_conversion_is_told_before() -> None:
    for layer in (nn.Conv2d(1, 1, (3, 5), 2), nn.MaxPool2d((1, 2)), nn.Conv2d(1, 1, 4, padding="same")):
        before, after = conversion_report(layer).rows[0], conversion_report(convert(layer)).rows[-1]
        assert (before.status, after.status) == ("convertible", "breaks symmetry")
        assert (before.reason, before.remedy) == (after.reason, after.remedy)


def test_a_grid_centres_only_the_layer_that_it_fits() -> None:
    grid = iso.CentreGrid((3, 3), (2, 2), (1, 1), (1, 1))
    for layer, status in ((iso.SREConv2d(1, 1, 3, 2, 1), "isotropic"), (iso.SREConv2d(1, 1, 5, 2, 1), "convertible")):
        assert conversion_report(nn.Sequential(grid, layer)).rows[1].status == status
    apart = conversion_report(nn.ModuleList([grid, iso.SREConv2d(1, 1, 3, 2, 1)]))
    assert apart.rows[1].status == "convertible"


class TestNumbers:
    def test_weights_and_parameters_are_those_of_the_converted_network(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Conv2d(8, 8, 7, 2, groups=2), nn.ConvTranspose2d(8, 2, 4, 2, 1))
        report, converted = conversion_report(net), convert(net)
        assert report.parameters == sum(p.numel() for p in net.parameters())
        assert report.parameters_converted == sum(p.numel() for p in converted.parameters())
        assert report.dense_weights == sum(m.weight.numel() for m in net)
        after = conversion_report(converted)
        assert after.parameters == after.parameters_converted == report.parameters_converted
        assert (after.dense_weights, after.banded_weights) == (report.dense_weights, report.banded_weights)

    def test_centring_an_isotropic_layer_saves_no_parameters(self) -> None:
        layer = iso.SREConv2d(2, 2, 5, 2)
        report = conversion_report(layer)
        assert report.parameters_converted == report.parameters == sum(p.numel() for p in convert(layer).parameters())

    def test_shared_weights_count_once(self) -> None:
        first, second = nn.Conv2d(2, 2, 3, bias=False), nn.Conv2d(2, 2, 3, dilation=2, bias=False)
        second.weight = first.weight
        net = nn.Sequential(first, nn.Sequential(first, second))
        report = conversion_report(net)
        assert (report.parameters, report.parameters_converted) == (36, 8)
        assert [row.name for row in report.rows] == ["0", "1.1"]
        assert report.parameters_converted == sum(p.numel() for p in convert(net).parameters())

    def test_options_are_those_of_convert(self) -> None:
        net = nn.Conv2d(1, 1, 9)
        for options in ({}, {"bands": 2}, {"circular": False}):
            assert conversion_report(net, **options).banded_weights == convert(net, **options).weight.numel()

    def test_retained_energy(self) -> None:
        isotropic, odd = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
        isotropic.weight = nn.Parameter(iso.SREConv2d(1, 1, 3).kernel().detach())
        odd.weight = nn.Parameter(torch.tensor([[[[0.0, 1, 0], [0, 0, 0], [0, -1, 0]]]]))
        rows = conversion_report(nn.Sequential(isotropic, odd, nn.Conv2d(1, 1, 1))).rows
        assert [row.retained for row in rows] == [pytest.approx(1), pytest.approx(0, abs=1e-12), None]
        layer = nn.Conv2d(3, 4, 5)
        kept = convert(layer).kernel().square().sum() / layer.weight.square().sum()
        assert only(layer).retained == pytest.approx(kept.item(), rel=1e-5)

    def test_a_kernel_of_zeros_loses_nothing(self) -> None:
        layer = nn.Conv2d(1, 1, 3)
        nn.init.zeros_(layer.weight)
        assert only(layer).retained == 1

    def test_meta_device(self) -> None:
        row = only(nn.Conv2d(2, 4, 5, device="meta"))
        assert (row.status, row.dense_weights, row.banded_weights, row.retained) == ("convertible", 200, 24, None)

    def test_layers_without_weights_yet(self) -> None:
        report = conversion_report(nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyLinear(2)))
        assert report.parameters == 0
        assert report.rows[0].status == "left"


class TestPresentation:
    NET = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Flatten(), parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))

    def test_the_table_has_a_line_per_layer_and_every_remark(self) -> None:
        report = conversion_report(self.NET)
        lines = str(report).splitlines()
        assert lines[0].split() == ["layer", "type", "status", "weights", "kept", "note"]
        assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
        assert "216 -> 48" in lines[1]
        words = " ".join(str(report).split())
        for row in report.rows:
            assert f"{row.reason}; {row.remedy}" in words
        assert words.endswith(
            "Not verified: give an input to have it measured, such as conversion_report(net, (1, 3, 64, 64))."
        )
        assert max(map(len, lines)) <= 120

    def test_equal_remarks_are_told_once(self) -> None:
        text = str(conversion_report(nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2))))
        assert text.count("strided") == 1

    def test_the_root_has_a_name(self) -> None:
        assert str(conversion_report(nn.ReLU())).splitlines()[1].startswith("(root)  ReLU  unaffected")

    def test_to_dict_is_ready_for_json(self) -> None:
        report = conversion_report(self.NET)
        told = json.loads(json.dumps(report.to_dict()))
        assert told["status"] == {"convertible": 1, "depends": 1, "left": 1}
        assert [row["name"] for row in told["rows"]] == [row.name for row in report.rows]
        assert told["parameters_converted"] == report.parameters_converted

    def test_nothing_known_is_changed_or_run(self) -> None:
        class Sealed(nn.Conv2d):
            def __call__(self, *args: object) -> Tensor:
                raise RuntimeError("the network was run")

        net = nn.Sequential(Sealed(1, 1, 3))
        assert conversion_report(net).rows[0].status == "convertible"
        assert type(net[0]) is Sealed


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: conversion_report(None), TypeError, "expected a torch.nn.Module, got NoneType"),
        (lambda: conversion_report(nn.Conv2d(1, 1, 3), profile="soft"), ValueError, "unknown profile 'soft'"),
        (lambda: conversion_report(nn.Conv2d(1, 1, 3), bands=5), ValueError, r"layer '\(root\)': bands=5 is too many"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(
    make: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()
