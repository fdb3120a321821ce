"""Geometry of isotropic kernels: which tap of a kernel belongs to which band.

A kernel of an SRE convolution is ``K[o, i, tap] = sum_b weight[o, i, b] * basis[b, tap]`` (SRE-Conv, arXiv 2501.09753,
``K = M_I * Theta``). The basis depends on nothing but the distance of a tap from the centre of the kernel, hence the
symmetry. This module computes it once per geometry and knows nothing of layers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypedDict

import numpy as np

from isoconv._checks import check_counts, did_you_mean, ntuple

__all__ = ["NORMS", "PROFILES", "BandOptions", "BandPlan", "band_plan", "plan_from_key"]

_SAMPLES = {
    1: 64,
    2: 32,
    3: 12,
}  # sub-pixel samples per axis of the area profile: its rounding stays below that of bfloat16
_ROUNDING = 1e-12  # of float64, in sums of up to 4096 sub-pixel samples
_GAUSSIAN_SIGMA = 0.5  # in units of the ring spacing; GMR-Conv (arXiv 2504.02819) starts at 0.478 for its 9x9 kernels
NORMS = ("none", "unit")
"""What the rows of a basis are scaled to, see ``norm`` of :func:`band_plan`."""


@dataclass(frozen=True)
class BandPlan:
    """A kernel geometry with its basis. Made by :func:`band_plan`; two plans of the same arguments are one object.

    Attributes:
        kernel_size: taps per axis.
        bands: number of bands, the length of a weight's last axis.
        profile, circular, spacing, norm: as given to :func:`band_plan`, normalised.
        scales: by what the rows were divided, 1 for ``norm="none"``.
        rows: the basis as plain numbers, one tuple of ``prod(kernel_size)`` taps per band.
        parity: for each row and each axis 1 if the row is even under the mirror of that axis, -1 if it is odd, None if
            it is neither. Isotropic rows are all even.
        key: the arguments as text, from which :func:`plan_from_key` makes the same plan in any process.
    """

    kernel_size: tuple[int, ...]
    bands: int
    profile: str
    circular: bool
    spacing: tuple[float, ...]
    norm: str
    scales: tuple[float, ...] = field(repr=False, compare=False)
    rows: tuple[tuple[float, ...], ...] = field(repr=False, compare=False)
    parity: tuple[tuple[int | None, ...], ...] = field(repr=False, compare=False)
    key: str = field(repr=False, compare=False)

    @property
    def dims(self) -> int:
        return len(self.kernel_size)

    @property
    def basis(self) -> np.ndarray:
        """The basis as a new float64 array ``(bands, *kernel_size)``."""
        return np.array(self.rows).reshape(self.bands, *self.kernel_size)

    def __reduce__(self) -> tuple:
        return plan_from_key, (self.key,)


@lru_cache(maxsize=1024)
def plan_from_key(key: str) -> BandPlan:
    """The plan of that :attr:`BandPlan.key`."""
    arguments = json.loads(key)
    return band_plan(tuple(arguments.pop("kernel_size")), **arguments)


class BandOptions(TypedDict, total=False):
    """The keyword arguments of :func:`band_plan`, which layers and networks take too and hand on."""

    bands: int | None
    profile: str
    circular: bool
    spacing: float | Sequence[float] | None
    norm: str


def band_plan(
    kernel_size: tuple[int, ...],
    *,
    bands: int | None = None,
    profile: str = "hard",
    circular: bool = True,
    spacing: float | Sequence[float] | None = None,
    norm: str = "none",
) -> BandPlan:
    """The bands of a kernel.

    With ``k`` the largest kernel size, ``r`` the distance of a tap and ``R`` the reach of the kernel (half its largest
    side, or the distance of its farthest tap if not ``circular``), the profiles are

    - ``"hard"``: half-open rings of width ``R / bands``, as in the paper's code. ``circular=False``: the rings divide
      ``[0, R)`` and the last band is the corners at ``R``, as in the paper's text.
    - ``"area"``: the same rings, a tap belonging to each by the share of its pixel that the ring covers.
    - ``"linear"``: hat functions around equidistant radii, so that a tap interpolates between two bands.
    - ``"gaussian"``: Gaussians of half the ring spacing around the same radii, normalised to sum to 1 at every tap.

    Args:
        kernel_size: taps per axis. The centre of an even size lies between two taps.
        bands: number of bands; by default ``(k + 1) // 2``, one more if not ``circular``, less where a band would be
            empty.
        profile: one of :data:`PROFILES`.
        circular: taps at ``r >= R`` are zero; otherwise the corners of the kernel are in use.
        spacing: physical size of a voxel along each axis, in any unit: distances become physical, so that anisotropic
            volumes get round kernels.
        norm: ``"none"``: a weight is the value of the taps of its band, as in the paper. ``"unit"``: rows of the basis
            have norm 1, so that equal steps of all weights change the kernel equally.

    Raises:
        ValueError: for an unknown profile or norm, a size or spacing that is not positive, or so many bands that one of
            them would have no tap of its own.
    """
    if profile not in PROFILES:
        raise ValueError(
            f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}{did_you_mean(profile, PROFILES)}"
        )
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}: expected one of {', '.join(NORMS)}{did_you_mean(norm, NORMS)}")
    if min(kernel_size) < 1:
        raise ValueError(f"kernel_size must be at least 1 along every axis, got {kernel_size}")
    voxel = ntuple(1.0 if spacing is None else spacing, len(kernel_size), "spacing", float)
    if not all(0 < s < math.inf for s in voxel):
        raise ValueError(f"spacing must be positive and finite along every axis, got {voxel}")
    if bands is not None:
        check_counts(bands=bands)
        bands = int(bands)
    return _cached_plan(tuple(kernel_size), bands, profile, bool(circular), voxel, norm)


@lru_cache(maxsize=1024)
def _cached_plan(
    size: tuple[int, ...], bands: int | None, profile: str, circular: bool, spacing: tuple[float, ...], norm: str
) -> BandPlan:
    most = (max(size) + 1) // 2 + (not circular)
    for count in range(bands or most, 0, -1):
        basis = PROFILES[profile](size, count, circular, spacing)
        if np.linalg.matrix_rank(basis.reshape(count, -1)) == count:
            break
    if bands not in (None, count):
        raise ValueError(
            f"bands={bands} is too many for kernel_size={size} with profile={profile!r}, circular={circular}, "
            f"spacing={spacing}: "
            f"at least one band would have no tap of its own and its weights would be dead; use bands={count} or a "
            "larger kernel"
        )
    if bands is None:  # one object per geometry, however it was asked for
        return _cached_plan(size, count, profile, circular, spacing, norm)
    flat = basis.reshape(count, -1)
    scales = np.linalg.norm(flat, axis=1) if norm == "unit" else np.ones(count)
    rows = tuple(map(tuple, (flat / scales[:, None]).tolist()))
    parity = tuple(tuple(_parity(row, axis) for axis in range(row.ndim)) for row in basis)
    options = {"bands": count, "profile": profile, "circular": circular, "spacing": spacing, "norm": norm}
    key = json.dumps({"kernel_size": size, **options})
    return BandPlan(size, count, profile, circular, spacing, norm, tuple(scales.tolist()), rows, parity, key)


def _parity(row: np.ndarray, axis: int) -> int | None:
    mirrored = np.flip(row, axis)
    return next((sign for sign in (1, -1) if np.allclose(row, sign * mirrored, rtol=0, atol=_ROUNDING)), None)


def _distance(size: tuple[int, ...], spacing: tuple[float, ...], samples: int = 1) -> np.ndarray:
    """Distance of every tap (or of ``samples`` points per axis within every tap) from the centre of the kernel.

    Rounded, so that taps at the same distance by symmetry never fall into different bands by the last bit.
    """
    axes = [s * (np.arange(k * samples) - (k * samples - 1) / 2) / samples for k, s in zip(size, spacing, strict=True)]
    return np.sqrt(sum(a**2 for a in np.ix_(*axes))).round(9)


def _reach(size: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    return max(k * s for k, s in zip(size, spacing, strict=True)) / 2


def _rings(index: np.ndarray, bands: int) -> np.ndarray:
    return (index == np.arange(bands).reshape(-1, *[1] * index.ndim)).astype(np.float64)


def _hard(size: tuple[int, ...], bands: int, circular: bool, spacing: tuple[float, ...]) -> np.ndarray:
    r = _distance(size, spacing)
    if circular:
        return _rings(np.floor(r * bands / _reach(size, spacing) + 1e-9), bands)
    return _rings(np.floor(r * (bands - 1) / max(r.max(), 1e-9) + 1e-9), bands)


def _area(size: tuple[int, ...], bands: int, circular: bool, spacing: tuple[float, ...]) -> np.ndarray:
    samples = _SAMPLES[len(size)]
    r = _distance(size, spacing, samples)
    reach = _reach(size, spacing) if circular else r.max() * (1 + 1e-9)
    rings = _rings(np.floor(r * bands / reach), bands)
    blocks = rings.reshape(bands, *(n for k in size for n in (k, samples)))
    return blocks.mean(axis=tuple(range(2, 2 + 2 * len(size), 2)))


def _radii(
    size: tuple[int, ...], bands: int, circular: bool, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every tap in units of the ring spacing, the radii being 0, 1, ..., bands - 1; and which taps are in
    reach."""
    r = _distance(size, spacing)
    reach = _reach(size, spacing)
    last = reach * (bands - 1) / (bands - 0.5) if circular else r.max()
    step = last / (bands - 1) if bands > 1 and last > 0 else 2 * reach
    return r / step, (r < reach) if circular else np.ones_like(r, dtype=bool)


def _linear(size: tuple[int, ...], bands: int, circular: bool, spacing: tuple[float, ...]) -> np.ndarray:
    r, inside = _radii(size, bands, circular, spacing)
    centre = np.arange(bands).reshape(-1, *[1] * r.ndim)
    return np.clip(1 - np.abs(r - centre), 0, None) * inside


def _gaussian(size: tuple[int, ...], bands: int, circular: bool, spacing: tuple[float, ...]) -> np.ndarray:
    r, inside = _radii(size, bands, circular, spacing)
    centre = np.arange(bands).reshape(-1, *[1] * r.ndim)
    bell = np.exp(-0.5 * ((r - centre) / _GAUSSIAN_SIGMA) ** 2)
    return bell / bell.sum(axis=0) * inside


PROFILES = {"hard": _hard, "linear": _linear, "area": _area, "gaussian": _gaussian}
"""Profiles of a band by name, see ``profile`` of :func:`band_plan`."""
