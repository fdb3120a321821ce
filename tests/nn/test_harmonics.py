"""Bands times harmonics: the kernels between fields, exact under the symmetries of the grid."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoconv.bands import PROFILES, band_plan
from isoconv.nn.harmonics import components, harmonics, kernel_basis, mirror_parity, turning
from isoconv.symmetry import Symmetry, random_rotations, symmetry_group

ORDERS = {2: (0, 1, 2, 3), 3: (0, 1, 2)}


def directions(dims: int, count: int = 50) -> np.ndarray:
    points = np.random.default_rng(1).standard_normal((dims, count))
    return points / np.linalg.norm(points, axis=0)


def matrix(g: Symmetry) -> np.ndarray:
    signs = np.where(g.flips, -1.0, 1.0)
    return np.eye(len(g.perm))[list(g.perm)] * signs[:, None]


def moved(rows: np.ndarray, g: Symmetry) -> np.ndarray:
    """``rows`` (..., *taps) moved as ``g`` moves the pixels of an image."""
    first = rows.ndim - len(g.perm)
    turned = rows.transpose(*range(first), *(first + p for p in g.perm))
    return np.flip(turned, [first + axis for axis, flipped in enumerate(g.flips) if flipped])


@st.composite
def bases(draw: st.DrawFn, profiles: tuple[str, ...] = tuple(PROFILES)):
    dims = draw(st.sampled_from([2, 3]))
    size = draw(st.integers(1, 9 if dims == 2 else 6))
    plan = band_plan((size,) * dims, profile=draw(st.sampled_from(profiles)), circular=draw(st.booleans()))
    source, target = (draw(st.sampled_from(ORDERS[dims])) for _ in range(2))
    return kernel_basis(plan, source, target, max_order=draw(st.integers(0, 4)), reflections=draw(st.booleans()))


def test_harmonics_are_the_known_polynomials() -> None:
    angle = np.linspace(0, 6, 20)
    for order in range(1, 5):
        expected = np.stack([np.cos(order * angle), np.sin(order * angle)])
        np.testing.assert_allclose(harmonics(order, np.stack([np.cos(angle), np.sin(angle)])), expected, atol=1e-12)
    y, z, x = directions(3)
    np.testing.assert_allclose(harmonics(1, np.stack([y, z, x])), [y, z, x])
    second = [3**0.5 * x * y, 3**0.5 * y * z, (3 * z**2 - 1) / 2, 3**0.5 * x * z, 3**0.5 / 2 * (x**2 - y**2)]
    np.testing.assert_allclose(harmonics(2, np.stack([y, z, x])), second, atol=1e-14)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("order", range(6))
def test_harmonics_turn_among_themselves(dims: int, order: int) -> None:
    points = directions(dims)
    values = harmonics(order, points)
    assert values.shape == (components(dims, order), 50)
    np.testing.assert_allclose((values**2).sum(axis=0), 1)
    turns = [np.linalg.qr(np.random.default_rng(seed).standard_normal((dims, dims)))[0] for seed in range(4)]
    for turn in turns:  # some of them reflections
        mixing = turning(order, turn)
        np.testing.assert_allclose(harmonics(order, turn @ points), mixing @ values, atol=1e-12)
        np.testing.assert_allclose(mixing @ mixing.T, np.eye(len(mixing)), atol=1e-12)
    np.testing.assert_allclose(turning(order, turns[0] @ turns[1]), turning(order, turns[0]) @ turning(order, turns[1]))
    for axis in range(dims):
        mirrored = points * np.where(np.arange(dims) == axis, -1, 1)[:, None]
        expected = mirror_parity(dims, order)[:, axis, None] * values
        np.testing.assert_allclose(harmonics(order, mirrored), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("dims", "source", "target", "reflections", "orders"),
    [
        # 2D: cos and sin of the difference and the sum; twice as many without reflections, a complex number each
        (2, 0, 0, True, [0]),
        (2, 0, 0, False, [0]),
        (2, 0, 2, True, [2]),
        (2, 2, 0, False, [2, 2]),
        (2, 1, 2, True, [1, 3]),
        (2, 1, 2, False, [1, 1, 3, 3]),
        (2, 1, 1, True, [0, 2]),
        (2, 2, 2, False, [0, 0, 4, 4]),
        # 3D: the Clebsch-Gordan series; without reflections those whose sum of orders is odd, too
        (3, 0, 2, False, [2]),
        (3, 1, 1, True, [0, 2]),
        (3, 1, 1, False, [0, 1, 2]),
        (3, 2, 1, True, [1, 3]),
        (3, 2, 2, True, [0, 2, 4]),
        (3, 2, 2, False, [0, 1, 2, 3, 4]),
    ],
)
def test_couplings_are_those_that_representation_theory_counts(
    dims: int, source: int, target: int, reflections: bool, orders: list[int]
) -> None:
    plan = band_plan((9,) * dims, profile="gaussian") if dims == 2 else band_plan((7,) * dims, profile="gaussian")
    basis = kernel_basis(plan, source, target, max_order=4, reflections=reflections)
    outermost = [path.order for path in basis.paths if path.band == plan.bands - 1]
    assert outermost == orders


def test_even_couplings_are_integrals_of_three_harmonics_and_the_odd_one_is_the_cross_product() -> None:
    """Gaunt coefficients, by a product rule that is exact for these polynomials; up to the sign, a convention."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    azimuth, sine = np.arange(20) * np.pi / 10, np.sqrt(1 - nodes**2)
    points = np.stack([np.outer(sine, np.cos(azimuth)), np.outer(nodes, np.ones(20)), np.outer(sine, np.sin(azimuth))])
    tap = np.array([2, 0, 1]) / 5**0.5  # of the outer band
    plan, odd = band_plan((5, 5, 5)), 0

    def compare(got: np.ndarray, expected: np.ndarray) -> None:
        cosine = (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)
        assert abs(cosine) == pytest.approx(1, abs=1e-12)

    for source, target in itertools.product(range(3), repeat=2):
        basis = kernel_basis(plan, source, target, max_order=4, reflections=False)
        for path, row in zip(basis.paths, basis.rows[..., 4, 2, 3], strict=True):
            if path.band == 2 and path.parity > 0:
                orders = target, source, path.order
                gaunt = np.einsum("apq,bpq,cpq,p->abc", *(harmonics(order, points) for order in orders), weights)
                compare(row, gaunt @ harmonics(path.order, tap))
            elif path.band == 2 and source == target == 1:
                compare(row, np.cross(np.eye(3), tap).T)
                odd += 1
    assert odd == 1


@given(bases())
@settings(max_examples=60)
def test_the_symmetries_of_the_grid_hold_exactly_at_every_size(basis) -> None:
    for g in symmetry_group(basis.plan.dims):
        target, source = (turning(order, matrix(g)) for order in (basis.target, basis.source))
        turned = np.einsum("ab,pbc...,dc->pad...", target, basis.rows, source)
        if not g.proper:
            turned *= np.array([path.parity for path in basis.paths]).reshape(-1, *[1] * (turned.ndim - 1))
        np.testing.assert_allclose(moved(turned, g), basis.rows, atol=1e-14)


@given(bases())
@settings(max_examples=60)
def test_no_weight_is_dead_and_rows_have_unit_norm(basis) -> None:
    flat = basis.rows.reshape(len(basis.paths), math.prod(basis.rows.shape[1:]))
    assert np.linalg.matrix_rank(flat) == len(basis.paths)
    np.testing.assert_allclose((flat**2).sum(axis=1), components(basis.plan.dims, basis.target))
    for axis in range(basis.plan.dims):
        mirrored = np.flip(basis.rows, 3 + axis)
        sign = basis.parity[..., axis].reshape(*basis.rows.shape[:3], *[1] * basis.plan.dims)
        np.testing.assert_allclose(mirrored, sign * basis.rows, atol=1e-14)
    assert {path.parity for path in basis.paths} <= ({1} if basis.reflections else {1, -1})


def test_a_ring_carries_orders_up_to_twice_its_radius_and_the_centre_none() -> None:
    basis = {order: kernel_basis(band_plan((9, 9), profile="hard"), 0, order, max_order=9) for order in range(10)}
    carried = {order: [path.band for path in basis[order].paths] for order in basis}
    assert carried[0] == [0, 1, 2, 3, 4]
    assert carried[1] == carried[2] == [1, 2, 3, 4]
    assert carried[3] == carried[4] == [2, 3, 4]
    assert carried[5] == carried[6] == [3, 4]
    assert carried[9] == []
    line = band_plan((1, 7))  # its taps do not tell the sine of the angle
    assert kernel_basis(line, 0, 1).paths == ()
    thick = band_plan((3, 5, 5), spacing=(2.5, 1, 1))  # the inner rings lie in one slice
    assert [path.band for path in kernel_basis(thick, 0, 1).paths] == [thick.bands - 1]


def test_scalars_have_the_isotropic_rows() -> None:
    plan = band_plan((5, 5), profile="gaussian")
    rows = kernel_basis(plan, 0, 0).rows[:, 0, 0]
    norms = np.linalg.norm(plan.basis, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(rows, plan.basis / norms)


def test_one_object_per_geometry_also_when_copied() -> None:
    basis = kernel_basis(band_plan((5, 5)), 1, 2, reflections=False)
    assert kernel_basis(band_plan((5, 5)), 1, 2, reflections=False) is basis
    assert copy.deepcopy(basis) is basis
    assert pickle.loads(pickle.dumps(basis)) is basis
    assert hash(basis) != hash(kernel_basis(band_plan((5, 5)), 2, 1, reflections=False))
    with pytest.raises(ValueError, match="read-only"):
        basis.rows[0] = 1


def test_a_line_has_no_directions() -> None:
    with pytest.raises(ValueError, match="2 or 3 dimensions, got kernel_size=\\(5,\\)"):
        kernel_basis(band_plan((5,)), 0, 1)


def test_turning_is_the_rotation_itself_for_vectors() -> None:
    for rotation in random_rotations(3):
        np.testing.assert_allclose(turning(1, rotation.numpy()), rotation.numpy(), atol=1e-12)
