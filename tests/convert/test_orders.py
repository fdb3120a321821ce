"""``convert(net, orders=...)``: convolutions that see directions, in any network."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import isoconv


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Conv2d(3, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()


def test_half_of_the_channels_are_as_without_orders_and_the_rest_are_lengths() -> None:
    net = network().eval()
    before = copy.deepcopy(net.state_dict())
    seeing, isotropic = isoconv.convert(net, orders=2), isoconv.convert(net)
    first, plain = seeing[0][1], isotropic[0][1]
    assert (first.orders, first.in_channels, first.out_channels) == (2, 3, 8)
    assert torch.equal(first.weight, plain.weight[:4])
    assert torch.equal(first.bias, plain.bias[:4])
    assert seeing[3].orders == 2
    assert seeing[3].bias is None
    # in groups, of too few channels, pointwise
    assert [seeing[4].orders, seeing[5].orders] == [0, 0]
    assert isinstance(seeing[6], nn.Conv2d)
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    assert seeing(x).shape == net(x).shape
    assert max(isoconv.equivariance_error(seeing, x).values()) <= 1e-12
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_mirror_images_can_be_told_apart() -> None:
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    errors = isoconv.equivariance_error(isoconv.convert(network().eval(), orders=1, reflections=False), x)
    assert errors["rot90"] <= 1e-12
    assert errors["flip"] > 1e-3


def test_it_trains_and_can_be_fused() -> None:
    net = isoconv.convert(network(), orders=1, profile="gaussian")
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    net(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    fused = isoconv.fuse(net.eval())
    torch.testing.assert_close(fused(x), net(x))
    assert not any(type(m).__module__.startswith("isoconv") for m in fused.modules())


def test_frozen_layers_stay_frozen_and_shared_ones_shared() -> None:
    shared = nn.Conv2d(8, 8, 3).requires_grad_(False)
    seeing = isoconv.convert(nn.Sequential(shared, shared), orders=2)
    assert seeing[0] is seeing[1]
    assert not any(p.requires_grad for p in seeing.parameters())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="orders must be a whole number of at least 0, got 'two'"):
        isoconv.convert(network(), orders="two")
    with pytest.raises(ValueError, match="reflections=False takes orders of at least 1"):
        isoconv.convert(network(), reflections=False)


class TestReport:
    def test_says_what_convert_does(self) -> None:
        net = network()
        report, seeing = isoconv.conversion_report(net, orders=2), isoconv.convert(net, orders=2)
        assert report.parameters == sum(p.numel() for p in net.parameters())
        assert report.parameters_converted == sum(p.numel() for p in seeing.parameters())
        rows = {row.name: row for row in report.rows}
        assert {name: row.orders for name, row in rows.items() if row.retained is not None} == {
            "0": 2,
            "3": 2,
            "4": 0,
            "5": 0,
        }
        assert rows["0"].reason.startswith("strided")
        assert "half of its channels become magnitudes of fields, whose weights are new" in rows["0"].reason
        assert rows["4"].reason == "sees no directions, for it works in groups"
        assert rows["5"].reason == "sees no directions, for it has less than 4 output channels"
        kept = seeing[3].weight @ torch.from_numpy(seeing[3].plan.basis).flatten(1)
        assert rows["3"].retained == pytest.approx((kept.square().sum() / net[3].weight.square().sum()).item())

    def test_weights_are_those_of_the_converted_network(self) -> None:
        net = network()
        report, after = (
            isoconv.conversion_report(net, orders=2),
            isoconv.conversion_report(isoconv.convert(net, orders=2)),
        )
        assert (report.dense_weights, report.banded_weights) == (after.dense_weights, after.banded_weights)
        assert after.parameters == after.parameters_converted == report.parameters_converted
        assert [row.orders for row in after.rows if row.status == "isotropic"] == [2, 2, 0, 0]

    @pytest.mark.parametrize(
        ("layer", "why"),
        [
            (nn.Conv1d(4, 4, 3), "it works along one axis"),
            (nn.ConvTranspose2d(4, 4, 4, 2, 1), "it is transposed"),
            (nn.Conv2d(4, 4, 2), "its kernel is too small for orders up to 2"),
        ],
    )
    def test_why_a_layer_sees_no_directions(self, layer: nn.Module, why: str) -> None:
        row = isoconv.conversion_report(layer, orders=2).rows[0]
        assert (row.orders, row.reason) == (0, f"sees no directions, for {why}")
        assert isoconv.convert(layer, orders=2).orders == 0

    def test_the_verdict_is_measured(self) -> None:
        report = isoconv.conversion_report(network(), (1, 3, 13, 13), orders=2)
        assert report.verdict == "symmetric"
        assert "it keeps flips and quarter turns, as measured at 13x13" in str(report)

    def test_without_reflections_it_is_on_rotations_alone(self) -> None:
        report = isoconv.conversion_report(network(), (1, 3, 13, 13), orders=1, reflections=False)
        assert report.verdict == "symmetric"
        assert "it keeps quarter turns, as measured" in str(report)
        converted = isoconv.convert(network(), orders=1, reflections=False)
        assert isoconv.conversion_report(converted, (1, 3, 13, 13)).verdict == "broken"  # mirror images, too
        lopsided = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), network())
        broken = isoconv.conversion_report(lopsided, (1, 3, 13, 13), orders=1, reflections=False)
        assert broken.verdict == "broken"
        assert "it loses quarter turns at" in str(broken)

    def test_one_axis_has_mirror_images_alone(self) -> None:
        net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        assert isoconv.conversion_report(net, (1, 1, 9), orders=1, reflections=False).verdict == "symmetric"

    @pytest.mark.parametrize("call", [isoconv.convert, isoconv.conversion_report])
    def test_what_convert_refuses_the_report_refuses(self, call: Callable[..., object]) -> None:
        with pytest.raises(ValueError, match="layer '1': reflections=False takes a 2D layer, got 3D"):
            call(nn.Sequential(nn.ReLU(), nn.Conv3d(1, 4, 3)), orders=1, reflections=False)
        with pytest.raises(ValueError, match="orders must be a whole number of at least 0, got -1"):
            call(network(), orders=-1)


class TestConvertedLayer:
    """A layer with orders counts as one layer, whatever it is made of."""

    def test_it_is_a_row_and_converting_again_changes_nothing(self) -> None:
        seeing = isoconv.convert(network().eval(), orders=2)
        names = [row.name for row in isoconv.conversion_report(seeing).rows]
        assert [name for name in names if name.startswith("0")] == ["0.0", "0.1"]
        again = isoconv.convert(seeing)
        x = torch.randn(2, 3, 14, 14, dtype=torch.float64)
        assert torch.equal(again(x), seeing(x))
        assert str(again) == str(seeing)

    def test_a_stride_of_its_own_is_centred_as_a_whole(self) -> None:
        layer = isoconv.SREConv2d(2, 8, 3, stride=2, padding=1, orders=1, dtype=torch.float64)
        x = torch.randn(2, 2, 10, 10, dtype=torch.float64)
        assert max(isoconv.equivariance_error(layer, x).values()) > 1e-2
        assert max(isoconv.equivariance_error(isoconv.convert(layer), x).values()) < 1e-12

    def test_the_doctor_examines_it(self) -> None:
        diagnosis = isoconv.doctor(isoconv.convert(network(), orders=2), (1, 3, 13, 13))
        assert [finding.holds for finding in diagnosis.findings[:2]] == [True, True]
        assert [layer.name for layer in diagnosis.layers[:2]] == ["0.0", "0.1"]
        assert diagnosis.multiply_adds[0] == diagnosis.multiply_adds[1]
