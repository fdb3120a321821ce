"""Layers that say how they transform: found exact by their own action, and broken without it."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv
from isoconv.models.group import GroupConv2d, RegularFields
from isoconv.symmetry import Action, GridGroup, Scalars, Symmetry, acts, symmetry_group


@dataclass(frozen=True)
class Vectors:
    """One vector along the axes of the image."""

    dims: int

    def act(self, g: Symmetry | Tensor, x: Tensor) -> Tensor:
        if x.shape[1] != self.dims:
            raise ValueError("not one vector")
        matrix = g.matrix if isinstance(g, Symmetry) else g
        return torch.einsum("ij,nj...->ni...", matrix.to(x), Scalars().act(g, x))


class Gradient(nn.Module):
    """Symmetric differences along every axis of an image of one channel."""

    def __init__(self, dims: int, declared: bool = True) -> None:
        super().__init__()
        self.dims = dims
        if declared:
            self.in_fields: Action = Scalars()
            self.out_fields: Action = Vectors(dims)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, (1, 1) * self.dims, mode="replicate")
        centre = [slice(1, -1)] * self.dims
        parts = []
        for axis in range(self.dims):
            ends = []
            for end in (slice(2, None), slice(None, -2)):
                where = [slice(None)] * 2 + centre
                where[2 + axis] = end
                ends.append(y[tuple(where)])
            parts.append((ends[0] - ends[1]) / 2)
        return torch.cat(parts, 1)


class Length(nn.Module):
    def __init__(self, dims: int, declared: bool = True) -> None:
        super().__init__()
        if declared:
            self.in_fields: Action = Vectors(dims)

    def forward(self, x: Tensor) -> Tensor:
        return (x.square().sum(1, keepdim=True) + 1e-3).sqrt()


def network(dims: int, declared: bool = True) -> nn.Sequential:
    """Scalars, vectors, vectors on a coarser grid, their lengths, logits."""
    conv, pool = (
        (isoconv.SREConv2d, isoconv.nn.SymmetricAvgPool2d)
        if dims == 2
        else (isoconv.SREConv3d, isoconv.nn.SymmetricAvgPool3d)
    )
    head = (nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d)(1), nn.Flatten(), nn.Linear(1, 3)
    return nn.Sequential(conv(1, 1, 3, padding=1), Gradient(dims, declared), pool(), Length(dims, declared), *head)


@pytest.mark.parametrize("dims", [2, 3])
class TestVectors:
    def test_equivariance_error_turns_them(self, dims: int) -> None:
        x = torch.randn(2, 1, *[7, 8, 7][:dims], dtype=torch.float64)
        assert max(isoconv.equivariance_error(Gradient(dims), x).values()) < 1e-14
        assert max(isoconv.equivariance_error(Length(dims), torch.cat([x] * dims, 1)).values()) < 1e-14

    def test_by_free_angles_too(self, dims: int) -> None:
        axes = torch.meshgrid(*[torch.linspace(-1, 1, 33, dtype=torch.float64)] * dims, indexing="ij")
        bump = torch.exp(-8 * ((axes[0] - 0.2) ** 2 + sum(axis**2 for axis in axes[1:])))[None, None]
        error = isoconv.equivariance_error(Gradient(dims), bump, angles=(30,), flips=False)["rot30"]
        apart = isoconv.equivariance_error(Gradient(dims, declared=False), bump, angles=(30,), flips=False)["rot30"]
        assert error < 0.02 < 0.4 < apart

    def test_without_a_declaration_the_layer_is_broken(self, dims: int) -> None:
        errors = isoconv.equivariance_error(Gradient(dims, declared=False), torch.randn(1, 1, *[8] * dims))
        assert min(errors["rot90"], errors["flip"]) > 0.5

    def test_the_doctor_finds_the_network_exact(self, dims: int) -> None:
        diagnosis = isoconv.doctor(network(dims), (1, 1, *[8] * dims))
        assert [found.holds for found in diagnosis.findings[:2]] == [True, True]
        assert all(layer.own[s] < 1e-5 for layer in diagnosis.layers for s in ("rot90", "flip"))
        assert max(layer.total["flip"] for layer in diagnosis.layers) < 1e-5

    def test_the_doctor_finds_it_broken_without_declarations(self, dims: int) -> None:
        diagnosis = isoconv.doctor(network(dims, declared=False), (1, 1, *[8] * dims))
        layers = {layer.name: layer for layer in diagnosis.layers}
        assert "rot90" in layers["1"].breaks
        assert layers["1"].own["rot90"] > 0.5

    def test_a_map_of_vectors_may_be_the_output(self, dims: int) -> None:
        body = network(dims)[:2]
        for net in (body, body[1]):
            assert [f.holds for f in isoconv.doctor(net, (1, 1, *[8] * dims)).findings[:2]] == [True, True]
        broken = isoconv.doctor(network(dims, declared=False)[:2], (1, 1, *[8] * dims)).findings[0]
        assert (broken.holds, broken.layer) == (False, "1")

    def test_conversion_leaves_such_layers(self, dims: int) -> None:
        net = network(dims)
        rows = {row.name: row.status for row in isoconv.conversion_report(net).rows}
        assert rows["1"] == rows["3"] == "equivariant"
        undeclared = isoconv.conversion_report(network(dims, False)).rows[1:4:2]
        assert all(" breaks by " in row.reason for row in undeclared)  # as channels that are images of their own
        assert isinstance(isoconv.convert(net)[1], Gradient)


def test_a_false_declaration_is_found_out() -> None:
    liar = Gradient(2)
    liar.out_fields = Scalars()
    found = isoconv.doctor(nn.Sequential(liar, nn.AdaptiveAvgPool2d(1)), (1, 1, 9, 9)).layers[0]
    assert found.breaks == ("rot90", "flip", "rot30")
    assert found.reason == "measured; its output does not turn as its fields say"


class TestGroups:
    def test_d4_is_exact(self) -> None:
        diagnosis = isoconv.doctor(isoconv.create_model("d4_resnet18", 1, 3, width=8), (1, 1, 16, 16))
        assert [found.holds for found in diagnosis.findings[:2]] == [True, True]
        assert [layer.name for layer in diagnosis.layers if {"rot90", "flip"} & set(layer.breaks)] == []
        assert sum(layer.type == "GroupConv2d" for layer in diagnosis.layers) == 20
        assert max(layer.own[s] for layer in diagnosis.layers for s in ("rot90", "flip")) < 1e-5
        assert diagnosis.parameters[0] == diagnosis.parameters[1]  # convert leaves its layers

    def test_c4_is_exact_to_quarter_turns_and_loses_flips_where_its_fields_begin(self) -> None:
        diagnosis = isoconv.doctor(isoconv.create_model("c4_resnet18", 1, 3, width=8), (1, 1, 16, 16))
        turns, flips, _ = diagnosis.findings
        assert turns.holds
        assert max(layer.own["rot90"] for layer in diagnosis.layers) < 1e-5
        assert (flips.holds, flips.layer) == (False, "conv1")
        assert flips.error > 1e-2
        assert "does not act on the fields" in flips.reason
        assert [layer.name for layer in diagnosis.layers if "flip" in layer.breaks] == ["conv1"]
        assert "inf: an output of another shape" in str(diagnosis)

    def test_the_report_says_which_mirrors_nothing(self) -> None:
        rows = {
            group: isoconv.conversion_report(isoconv.create_model(f"{group}_resnet18", width=8)).rows[0]
            for group in ("c4", "d4")
        }
        assert {row.status for row in rows.values()} == {"equivariant"}
        assert (rows["c4"].reason, rows["d4"].reason) == ("keeps rotations, not mirror images", "")

    def test_a_stride_is_centred_by_convert(self) -> None:
        net = nn.Sequential(GroupConv2d(1, 8, 3, 2, 1, group="d4", scalar=True))
        assert isoconv.conversion_report(net).rows[0].status == "convertible"
        converted = isoconv.convert(net).double()
        x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
        converted.out_fields = net[0].out_fields
        assert max(isoconv.equivariance_error(converted, x).values()) < 1e-14
        net.out_fields = net[0].out_fields
        assert max(isoconv.equivariance_error(net.double(), x).values()) > 0.1


@pytest.mark.parametrize(("group", "grid"), [("c4", GridGroup.ROTATIONS), ("d4", GridGroup.FULL)])
def test_regular_fields_are_a_representation(group: str, grid: GridGroup) -> None:
    fields = RegularFields(group)
    assert [g for g in symmetry_group(2) if acts(fields, g)] == list(grid.elements(2))
    assert not acts(fields, torch.eye(2, dtype=torch.float64))
    for x in (torch.randn(1, 16, 3, 3), torch.randn(1, 16)):
        for g in grid.elements(2):
            for h in grid.elements(2):
                product = next(k for k in grid.elements(2) if torch.equal(k.matrix, g.matrix @ h.matrix))
                assert torch.equal(fields.act(g, fields.act(h, x)), fields.act(product, x))


def test_fields_refuse_what_they_are_not() -> None:
    mirror = next(g for g in symmetry_group(2) if not g.proper)
    with pytest.raises(ValueError, match="fields over c4 have no action of Symmetry"):
        RegularFields("c4").act(mirror, torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match="a multiple of 8 channels for fields over d4, got 4"):
        RegularFields("d4").act(mirror, torch.zeros(1, 4, 3, 3))
