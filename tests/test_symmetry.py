"""Group actions, rotations, and the public measure of equivariance, which must be able to fail."""

import math

import pytest
import torch
from torch import nn

import isoconv
from isoconv.models.group import RegularFields
from isoconv.nn import Fields
from isoconv.symmetry import (
    GridGroup,
    Scalars,
    circular_mask,
    plane_rotation,
    quarter_turn,
    random_rotations,
    resample,
    rotate,
    symmetry_group,
    turned,
)


@pytest.mark.parametrize(("dims", "order"), [(1, 2), (2, 8), (3, 48)])
def test_the_group_has_the_right_order_and_is_closed(dims: int, order: int) -> None:
    group = symmetry_group(dims)
    x = torch.randn(3, *range(4, 4 + dims)) if dims == 1 else torch.randn(3, *[4] * dims)
    images = {tuple(g(x).flatten().tolist()) for g in group}
    assert len(group) == len(images) == order
    assert sum(g.proper for g in group) == order // 2
    assert torch.equal(group[0](x), x)
    for g in group[:: max(1, order // 8)]:
        for h in group[:: max(1, order // 8)]:
            assert tuple(g(h(x)).flatten().tolist()) in images


def test_quarter_turns_are_exact_and_other_angles_agree_with_them() -> None:
    x = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    for plane in ((-3, -2), (-3, -1), (-2, -1)):
        assert torch.equal(rotate(x, 90, plane), torch.rot90(x, 1, plane))
        assert torch.equal(rotate(x, -90, plane), torch.rot90(x, -1, plane))
        torch.testing.assert_close(resample(x, plane_rotation(3, 90, plane)), torch.rot90(x, 1, plane))


def test_rotation_of_a_rectangle_keeps_lengths() -> None:
    """A disc on a wide image stays a disc."""
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(65.0) - 32, indexing="ij")
    disc = ((x**2 + y**2) < 100).double()[None, None]
    assert (rotate(disc, 30) - disc).abs().mean() < 0.02
    assert rotate(disc, 90).shape == disc.shape


@pytest.mark.parametrize("plane", [(0, 1), (1, 2), (2, 2), (-1, 3)])
def test_a_plane_is_two_spatial_axes(plane: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="plane must be two of the spatial axes"):
        rotate(torch.zeros(1, 1, 4, 4), 30, plane)


def test_outside_of_the_image_is_filled() -> None:
    image = rotate(torch.zeros(1, 1, 9, 9), 45, fill=0.7)
    assert image[0, 0, 0, 0] == pytest.approx(0.7)
    assert image[0, 0, 4, 4] == pytest.approx(0)


def test_random_rotations_are_rotations() -> None:
    matrices = random_rotations(200, torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(200, dtype=torch.float64))
    assert matrices.mean(dim=0).abs().max() < 0.2
    assert torch.equal(matrices, random_rotations(200, torch.Generator().manual_seed(0)))


def test_the_mask_stays_in_view() -> None:
    mask = circular_mask((28, 28))[None, None].double()
    assert (rotate(mask, 45, mode="nearest") - mask).abs().sum() < 30
    assert circular_mask((8, 8, 8)).sum() == pytest.approx(4 / 3 * math.pi * 4**3, rel=0.1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 5])
def test_quarter_turns_are_those_of_rot90(dims: int, quarters: int) -> None:
    x = torch.randn(2, *[4, 5, 6][:dims])
    for plane in [(-2, -1), (-1, -2), (-dims, -1)]:
        assert torch.equal(quarter_turn(dims, quarters, plane)(x), torch.rot90(x, quarters, plane))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_matrix_of_a_symmetry_moves_points_as_the_symmetry_moves_pixels(dims: int) -> None:
    for g in symmetry_group(dims):
        point = torch.tensor([1.0, -2.0, 3.0][:dims], dtype=torch.float64)
        image = torch.zeros([7] * dims)
        image[tuple((point + 3).int())] = 1
        (found,) = g(image).nonzero()
        assert torch.equal(found.double() - 3, g.matrix @ point)
        assert torch.linalg.det(g.matrix).item() == (1 if g.proper else -1)


class Turning(nn.Module):
    """Fields over the four quarter turns."""

    def __init__(self, **fields: RegularFields) -> None:
        super().__init__()
        vars(self).update(fields)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TestEquivarianceError:
    def test_what_does_not_act_on_the_input_is_left_out(self) -> None:
        c4 = RegularFields("c4")
        errors = isoconv.equivariance_error(Turning(in_fields=c4, out_fields=c4), torch.randn(1, 4, 5, 5), (90, 30))
        assert errors == {"rot90": 0}

    def test_what_acts_on_the_input_and_not_on_the_output_is_broken(self) -> None:
        errors = isoconv.equivariance_error(Turning(out_fields=RegularFields("c4")), torch.randn(1, 4, 5, 5), (90, 30))
        assert 0 < errors["rot90"] < math.inf
        assert errors["rot30"] == errors["flip"] == math.inf

    def test_isotropic_convolution_is_exact_at_quarter_turns_and_flips(self) -> None:
        layer = isoconv.SREConv2d(2, 3, 5, padding=2, dtype=torch.float64)
        errors = isoconv.equivariance_error(layer, torch.randn(1, 2, 9, 12, dtype=torch.float64))
        assert set(errors) == {"rot90", "rot180", "rot270", "flip"}
        assert max(errors.values()) < 1e-14

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_plain_convolution_fails(self, dims: int) -> None:
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](2, 3, 3, padding=1)
        errors = isoconv.equivariance_error(conv, torch.randn(1, 2, *[8] * dims))
        assert min(errors.values()) > 0.1

    @pytest.mark.parametrize(
        "module",
        [
            nn.MaxPool2d(3, 2, 1),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 12, 4)),
        ],
        ids=["strided pooling", "ceil pooling", "flatten"],
    )
    def test_layers_that_break_the_symmetry_fail(self, module: nn.Module) -> None:
        size = 11 if isinstance(module, nn.AvgPool2d) else 12
        assert max(isoconv.equivariance_error(module, torch.randn(4, 2, size, size)).values()) > 1e-2

    def test_floor_pooling_of_odd_sizes_fails(self) -> None:
        assert isoconv.equivariance_error(nn.AvgPool2d(2), torch.randn(1, 2, 9, 9))["rot180"] > 0.1

    def test_free_angles_are_measured_within_the_disc(self) -> None:
        x = nn.functional.avg_pool2d(torch.randn(2, 2, 40, 40), 9, 1)
        iso = isoconv.equivariance_error(
            isoconv.SREConv2d(2, 3, 5, padding=2, bias=False), x, angles=(30,), flips=False
        )
        plain = isoconv.equivariance_error(nn.Conv2d(2, 3, 5, padding=2, bias=False), x, angles=(30,), flips=False)
        assert set(iso) == {"rot30"}
        assert 0 < iso["rot30"] < 0.3 * plain["rot30"]

    def test_invariant_outputs(self) -> None:
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))
        assert max(isoconv.equivariance_error(net, torch.randn(2, 2, 8, 8)).values()) < 1e-6

    def test_the_mode_of_the_module_is_restored(self) -> None:
        net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).train()
        net[1].eval()
        before = net[1].running_mean.clone()
        isoconv.equivariance_error(net, torch.randn(2, 2, 8, 8))
        assert (net.training, net[0].training, net[1].training) == (True, True, False)
        assert torch.equal(net[1].running_mean, before)

    def test_an_output_that_is_no_number_is_no_small_error(self) -> None:
        class Fragile(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x if x[0, 0, 0, 0] < x[0, 0, -1, -1] else x * math.nan

        errors = isoconv.equivariance_error(Fragile(), torch.arange(9.0).view(1, 1, 3, 3), angles=(90, 180))
        assert errors == {"rot90": 0, "rot180": math.inf, "flip": math.inf}

    @pytest.mark.parametrize(
        ("module", "shape", "error", "message"),
        [
            (nn.Identity(), (2, 3), ValueError, "expected an input"),
            (nn.Flatten(2), (1, 2, 4, 4), ValueError, r"expected an output \(N, features\) or"),
            (nn.MaxPool2d(2, return_indices=True), (1, 2, 4, 4), TypeError, "one tensor, got tuple"),
            (nn.Threshold(100, 0), (1, 2, 4, 4), ValueError, "zero everywhere"),
            (torch.relu, (1, 2, 4, 4), TypeError, "expected a torch.nn.Module and a tensor, got builtin"),
        ],
    )
    def test_bad_input_is_refused_with_a_reason(
        self, module: nn.Module, shape: tuple, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            isoconv.equivariance_error(module, torch.randn(shape))


@pytest.mark.parametrize(("dims", "sizes"), [(1, (1, 2, 1, 2)), (2, (1, 4, 4, 8)), (3, (1, 8, 24, 48))])
def test_grid_groups(dims: int, sizes: tuple[int, ...]) -> None:
    """Each is closed, and of the order that it has in the books: C4 and D4, O and O_h."""
    image = torch.arange(3.0**dims).reshape([3] * dims)
    assert tuple(len(group.elements(dims)) for group in GridGroup) == sizes
    for group in GridGroup:
        orbit = {tuple(g(image).flatten().tolist()) for g in group.elements(dims)}
        assert orbit == {
            tuple(g(h(image)).flatten().tolist()) for g in group.elements(dims) for h in group.elements(dims)
        }
        assert ("mirror" in group.words(dims)) == any(not g.proper for g in group.elements(dims))


def test_turned_moves_pixels_as_rotate_does_and_mixes_channels_as_fields_do() -> None:
    vectors = Fields("2x1", 2)
    for shape in ((6, 6), (6, 8)):
        x = torch.randn(1, 4, *shape)
        for degrees in (0, 30, 90, 180, -90, 360):
            torch.testing.assert_close(turned(x, degrees, Scalars()), rotate(x, degrees), atol=1e-5, rtol=1e-5)
            moved = rotate(x, degrees)
            matrix = plane_rotation(2, degrees).float()
            mixed = torch.einsum("ij,ncjhw->ncihw", matrix, moved.unflatten(1, (2, 2))).flatten(1, 2)
            torch.testing.assert_close(turned(x, degrees, vectors), mixed, atol=1e-5, rtol=1e-5)
    groups = RegularFields("c4")  # which 30 degrees do not act on
    torch.testing.assert_close(turned(x, 30, groups), rotate(x, 30))
