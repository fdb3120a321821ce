"""Geometry of steerable kernels: bands times harmonics.

A field of order l is a set of channels that turns like the harmonics of that order: ``Y_l(R u) = D_l(R) Y_l(u)`` for
every direction u and rotation R. The kernel from a field of order j to a field of order l has to obey
``K(R x) = D_l(R) K(x) D_j(R)^T``. The solutions are bands of the distance times harmonics of the direction, joined by
coupling tensors: Weiler and Cesa (arXiv 1911.08251) in 2D, tensor field networks (arXiv 1802.08219) in 3D. Between
scalars, which are of order 0, they are the isotropic kernels of :mod:`isoconv.bands`. This module computes them once
per geometry and knows nothing of layers.

Coordinates are the axes of the tensor in their order, whatever they are called: the components of order 1 are those of
a vector along axis 0, axis 1 (, axis 2).

The coupling tensors are the null space of the constraint, computed numerically. One short function then serves 2D and
3D, with and without reflections, and needs no table whose phases might disagree with those of the harmonics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.polynomial import Legendre

from isoconv.bands import BandPlan

__all__ = ["KernelBasis", "Path", "components", "harmonics", "kernel_basis", "mirror_parity", "turning"]

_CARRIED = 0.1  # of an order's mean strength on a ring: what its weakest component must have for the ring to carry it


def components(dims: int, order: int) -> int:
    """Channels of one field: 1 of order 0, else 2 in 2D and ``2 * order + 1`` in 3D."""
    return 2 * order + 1 if dims == 3 else 1 + min(order, 1)


def harmonics(order: int, directions: np.ndarray) -> np.ndarray:
    """Harmonics (components, ...) of unit vectors (dims, ...) in 2 or 3 dimensions; their squares sum to 1.

    In 2D ``cos(order t), sin(order t)``, the angle t going from axis 0 towards axis 1. In 3D the real spherical
    harmonics for m from ``-order`` to ``order``, axis 1 being the polar one and the azimuth going from axis 2 towards
    axis 0.
    """
    if len(directions) == 2:
        return np.stack(_multiple(order, *directions)[: components(2, order)])
    sideways, polar, forward = directions
    cosines, sines = [], []
    for m in range(order + 1):
        # the power of the sine that an associated Legendre function has comes with the azimuth
        norm = math.sqrt((1 + (m > 0)) * math.factorial(order - m) / math.factorial(order + m))
        zonal = norm * Legendre.basis(order).deriv(m)(polar)
        cos, sin = _multiple(m, forward, sideways)
        cosines.append(zonal * cos)
        sines.append(zonal * sin)
    return np.stack([*sines[:0:-1], *cosines])


def _multiple(order: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of ``(x + iy) ** order``, by products: a sign of x or y is then exact."""
    real, imaginary = np.ones_like(x), np.zeros_like(x)
    for _ in range(order):
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
    return real, imaginary


def turning(order: int, matrix: np.ndarray) -> np.ndarray:
    """``D(R)``: how an orthogonal ``matrix`` R (dims, dims) mixes the components of a field; orthogonal as well."""
    dims = len(matrix)
    points = np.random.default_rng(0).standard_normal((dims, 8 * components(dims, order)))
    points /= np.linalg.norm(points, axis=0)
    return harmonics(order, matrix @ points) @ np.linalg.pinv(harmonics(order, points))


def mirror_parity(dims: int, order: int) -> np.ndarray:
    """What the mirror of each axis does to each component: +1 or -1, (components, dims)."""
    mirrors = [np.diag(np.where(np.arange(dims) == axis, -1.0, 1.0)) for axis in range(dims)]
    return np.stack([np.diag(turning(order, mirror)).round().astype(int) for mirror in mirrors], axis=1)


@lru_cache(maxsize=1024)
def _coupling(dims: int, source: int, target: int, order: int, parity: int) -> np.ndarray | None:
    """The tensor (target, source, harmonic components) that every rotation leaves as it is and a mirror multiplies by
    ``parity``; unit norm, first entry that is not zero positive. None if there is none."""
    orders = target, source, order
    turns = [_rotation(dims, plane) for plane in ((0, 1), (1, 2))[: dims - 1]]  # together dense in all rotations
    mirror = np.diag([-1.0] + [1.0] * (dims - 1))
    constraints = []
    for matrix, factor in [(turn, 1) for turn in turns] + [(mirror, parity)]:
        d, e, f = (turning(o, matrix) for o in orders)
        joint = np.kron(np.kron(d, e), f)
        constraints.append(joint - factor * np.eye(len(joint)))
    _, singular, rows = np.linalg.svd(np.concatenate(constraints), full_matrices=False)
    if singular[-1] > 1e-9:
        return None
    tensor = rows[-1] * np.sign(rows[-1][np.abs(rows[-1]) > 1e-9][0])
    return tensor.reshape([components(dims, o) for o in orders])


def _rotation(dims: int, plane: tuple[int, int]) -> np.ndarray:
    """By 1 radian, which is no rational part of a turn."""
    a, b = plane
    matrix = np.eye(dims)
    matrix[a, a] = matrix[b, b] = math.cos(1)
    matrix[b, a] = math.sin(1)
    matrix[a, b] = -matrix[b, a]
    return matrix


class Path(NamedTuple):
    """One weight's part in a kernel: its band, the order of the harmonics, and the sign that a mirror image gives it
    (-1: it tells left from right)."""

    band: int
    order: int
    parity: int


@dataclass(frozen=True)
class KernelBasis:
    """The kernels from a field of order ``source`` to one of order ``target``. Made by :func:`kernel_basis`; two of the
    same arguments are one object.

    Attributes:
        plan: bands and taps.
        source, target, max_order, reflections: as given to :func:`kernel_basis`.
        paths: what each weight stands for.
        rows: the kernel of each weight, float64, read-only, (paths, target components, source components,
            *kernel_size). The mean over the target's components of a kernel's sum of squares is 1.
    """

    plan: BandPlan
    source: int
    target: int
    max_order: int
    reflections: bool
    paths: tuple[Path, ...] = field(repr=False, compare=False)
    rows: np.ndarray = field(repr=False, compare=False)

    @property
    def parity(self) -> np.ndarray:
        """What the mirror of each axis does to each entry of ``rows``: +1 or -1, (paths, target components, source
        components, dims)."""
        dims = self.plan.dims
        target, source = (mirror_parity(dims, order) for order in (self.target, self.source))
        signs = np.array([path.parity for path in self.paths]).reshape(-1, 1, 1, 1)
        return signs * target[:, None] * source[None]

    def __reduce__(self) -> tuple:
        build = partial(kernel_basis, max_order=self.max_order, reflections=self.reflections)
        return build, (self.plan, self.source, self.target)


def kernel_basis(
    plan: BandPlan, source: int, target: int, *, max_order: int = 3, reflections: bool = True
) -> KernelBasis:
    """The kernels from a field of order ``source`` to one of order ``target``, one for each band, harmonic order and
    coupling of the two orders by it that the pair allows.

    A ring of radius r pixels carries harmonics up to the order 2r (its taps do not tell more apart), the centre carries
    order 0 only; nor does a ring carry an order of which its taps miss a component.

    Args:
        plan: bands of a kernel in 2 or 3 dimensions.
        source, target: orders of the fields.
        max_order: highest order of the harmonics in the kernel.
        reflections: kernels that commute with rotations and reflections. False: with rotations only, so that they can
            tell an image from its mirror image.

    Raises:
        ValueError: for a kernel of another number of dimensions.
    """
    if plan.dims not in (2, 3):
        raise ValueError(f"steerable kernels have 2 or 3 dimensions, got kernel_size={plan.kernel_size}")
    return _cached_basis(plan, int(source), int(target), int(max_order), bool(reflections))


@lru_cache(maxsize=1024)
def _cached_basis(plan: BandPlan, source: int, target: int, max_order: int, reflections: bool) -> KernelBasis:
    dims, parities = plan.dims, (1,) if reflections else (1, -1)
    directions, distance = _taps(plan)
    sizes = components(dims, target), components(dims, source)
    paths, rows = [], [np.zeros((0, *sizes, *plan.kernel_size))]
    for order in range(abs(target - source), min(target + source, max_order) + 1):
        angular = harmonics(order, directions) * (distance > 0 if order else 1)
        carrying = [
            (band, radial)
            for band, radial in enumerate(plan.basis)
            if _carries(radial, distance, angular, order, max(plan.spacing))
        ]
        for parity in parities:
            coupling = _coupling(dims, source, target, order, parity)
            if coupling is None:
                continue
            for band, radial in carrying:
                row = np.tensordot(coupling, radial * angular, axes=1)
                paths.append(Path(band, order, parity))
                rows.append(row[None] * math.sqrt(sizes[0]) / np.linalg.norm(row))
    stacked = np.concatenate(rows)
    stacked.flags.writeable = False
    return KernelBasis(plan, source, target, max_order, reflections, tuple(paths), stacked)


def _taps(plan: BandPlan) -> tuple[np.ndarray, np.ndarray]:
    """Direction (dims, *kernel_size) and distance of every tap from the centre, where the direction is 0."""
    axes = [s * (np.arange(k) - (k - 1) / 2) for k, s in zip(plan.kernel_size, plan.spacing, strict=True)]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    distance = np.linalg.norm(position, axis=0)
    return position / np.where(distance > 0, distance, 1), distance


def _carries(radial: np.ndarray, distance: np.ndarray, angular: np.ndarray, order: int, pixel: float) -> bool:
    if order == 0:
        return True
    energy = radial**2
    if order > 2 * (energy * distance).sum() / energy.sum() / pixel + 1e-6:
        return False
    ring = (radial * angular).reshape(len(angular), -1)
    strengths = np.linalg.eigvalsh(ring @ ring.T)
    return bool(strengths[0] > _CARRIED * strengths.mean())
