"""Which tap belongs to which band."""

import copy
import inspect
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoconv.bands import NORMS, PROFILES, BandOptions, band_plan, plan_from_key
from isoconv.symmetry import symmetry_group

SIZES = st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.integers(1, 7)] * n))


def taps(k: int, **options: object) -> list[float]:
    return band_plan((k, k), **options).basis.sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize(
    ("k", "expected"),
    [(3, [1, 8]), (5, [1, 8, 12]), (7, [1, 8, 12, 16]), (9, [1, 8, 12, 16, 32]), (11, [1, 8, 12, 24, 24, 28])],
)
def test_the_papers_code_convention(k: int, expected: list[int]) -> None:
    assert taps(k) == expected


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (3, [1, 4, 4]),
        (5, [1, 8, 12, 4]),
        (7, [5, 8, 24, 8, 4]),
        (9, [5, 16, 16, 32, 8, 4]),
        (11, [5, 16, 16, 32, 40, 8, 4]),
    ],
)
def test_the_papers_text_convention(k: int, expected: list[int]) -> None:
    assert taps(k, circular=False) == expected


def test_index_matrices_equal_the_official_ones(golden) -> None:
    layers = golden("official_sre_layers")
    for i, case in enumerate(json.loads(str(layers["meta"]))):
        plan = band_plan((case["kernel_size"],) * int(case["kind"][0]), bands=case.get("sre_k"))
        np.testing.assert_array_equal(plan.basis.reshape(plan.bands, -1), layers[f"{i}_sd_weight_index_mat"][0, 0])


def test_gaussian_rings_are_close_to_the_mixture_of_gmr(golden) -> None:
    """GMR-Conv smooths the hard rings over their index; ours are Gaussians of the radius. They agree in where each ring
    lies."""
    layers = golden("official_gmr_layers")
    for i, case in enumerate(json.loads(str(layers["meta"]))):
        k = case["kernel_size"]
        theirs = layers[f"{i}_sd_weight_index_mat"][0, 0].reshape(-1, k, k)
        ours = band_plan((k, k), profile="gaussian").basis
        radius = np.hypot(*np.mgrid[:k, :k] - (k - 1) / 2)
        mean_radius = [(rings * radius).sum(axis=(1, 2)) / rings.sum(axis=(1, 2)) for rings in (ours, theirs)]
        np.testing.assert_allclose(mean_radius[0], mean_radius[1], atol=0.5)


@given(SIZES, st.sampled_from(sorted(PROFILES)), st.booleans())
def test_every_kernel_is_symmetric_and_has_no_dead_band(size: tuple[int, ...], profile: str, circular: bool) -> None:
    plan = band_plan(size, profile=profile, circular=circular)
    assert plan.basis.min() >= 0
    assert np.linalg.matrix_rank(plan.basis.reshape(plan.bands, -1)) == plan.bands
    basis = torch.from_numpy(plan.basis)
    for symmetry in symmetry_group(len(size)):
        if tuple(size[p] for p in symmetry.perm) == size:
            torch.testing.assert_close(symmetry(basis), basis, rtol=0, atol=1e-12)
    assert plan.parity == ((1,) * len(size),) * plan.bands


@given(SIZES, st.sampled_from(sorted(PROFILES)), st.booleans())
def test_rows_of_unit_norm_are_the_rows_divided_by_their_norm(
    size: tuple[int, ...], profile: str, circular: bool
) -> None:
    unit, plain = (band_plan(size, profile=profile, circular=circular, norm=norm) for norm in ("unit", "none"))
    np.testing.assert_allclose(np.square(unit.rows).sum(axis=1), 1)
    np.testing.assert_allclose(np.array(unit.rows) * np.array(unit.scales)[:, None], plain.rows, atol=1e-12)
    assert plain.scales == (1,) * plain.bands
    assert unit.parity == plain.parity


def test_norms_of_hard_rings_are_roots_of_their_tap_counts() -> None:
    assert band_plan((5, 5), norm="unit").scales == (1, math.sqrt(8), math.sqrt(12))


@given(st.integers(1, 9), st.booleans())
def test_hard_and_smooth_profiles_share_out_a_tap_at_most_once(k: int, circular: bool) -> None:
    for profile in PROFILES:
        total = band_plan((k, k), profile=profile, circular=circular).basis.sum(axis=0)
        assert total.max() <= 1 + 1e-9


def test_a_rectangular_kernel_uses_all_its_taps() -> None:
    assert (band_plan((3, 7)).basis.sum(axis=0) == 1).all()


def test_an_even_kernel_is_centred_between_its_taps() -> None:
    assert taps(2) == [4]
    assert taps(4) == [4, 8]
    assert taps(6) == [4, 8, 20]


def test_spacing_makes_distances_physical() -> None:
    """With slices 2.5 apart and rings 1.25 wide, the next slice begins in the third ring, where in-plane offsets of 2
    are in the second."""
    band = band_plan((3, 5, 5), spacing=(2.5, 1, 1)).basis.argmax(axis=0)
    assert band[1, 2].tolist() == [1, 0, 0, 0, 1]
    assert band[0, 2, 2] == band[2, 2, 2] == 2
    assert band_plan((5, 5), spacing=0.3).basis.tolist() == band_plan((5, 5)).basis.tolist()


def test_plans_are_cached_hashable_and_survive_pickle() -> None:
    plan = band_plan((5, 5), profile="area")
    assert band_plan((5, 5), bands=3, profile="area") is plan
    assert pickle.loads(pickle.dumps(plan)) is plan
    assert copy.deepcopy(plan) is plan
    assert len({plan, band_plan((5, 5))}) == 2


@given(SIZES, st.sampled_from(sorted(PROFILES)), st.booleans(), st.floats(0.1, 10), st.sampled_from(NORMS))
def test_a_key_stands_for_its_plan(
    size: tuple[int, ...], profile: str, circular: bool, spacing: float, norm: str
) -> None:
    plan = band_plan(size, profile=profile, circular=circular, spacing=spacing, norm=norm)
    assert plan_from_key(plan.key) is plan


def test_a_key_means_the_same_in_another_process() -> None:
    plan = band_plan((3, 5), profile="area", circular=False, spacing=(2.5, 0.1))
    code = f"from isoconv.bands import plan_from_key; print(hash(plan_from_key({plan.key!r}).rows), end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == hash(plan.rows)  # of numbers: the same in every process


def test_options_are_typed_as_band_plan_takes_them() -> None:
    keywords = {
        p.name: p.annotation for p in inspect.signature(band_plan).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    assert keywords == {name: hint.__forward_arg__ for name, hint in BandOptions.__annotations__.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bands": 4}, r"bands=4 is too many for kernel_size=\(3, 3\).*use bands=2"),
        ({"bands": 0}, "bands must be a whole number of at least 1, got 0"),
        ({"bands": True}, "bands must be a whole number"),
        ({"profile": "gausian"}, "unknown profile 'gausian'.*did you mean 'gaussian'"),
        ({"norm": "one"}, "unknown norm 'one': expected one of none, unit"),
        ({"spacing": 0}, "spacing must be positive"),
        ({"spacing": (1, 2, 3)}, "spacing must be one number or 2 of them"),
        ({"spacing": float("nan")}, "spacing"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        band_plan((3, 3), **arguments)


def test_a_kernel_without_taps_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        band_plan((3, 0))
