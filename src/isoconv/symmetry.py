"""The symmetries of images and volumes: group actions, rotation by any angle, and how far a module is from commuting
with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import count_of

__all__ = [
    "Action",
    "GridGroup",
    "Scalars",
    "Symmetry",
    "acts",
    "carries_fields",
    "circular_mask",
    "equivariance_error",
    "fields_of",
    "mirrors",
    "plane_rotation",
    "quarter_turn",
    "random_rotations",
    "resample",
    "rotate",
    "symmetry_group",
    "turned",
]


@dataclass(frozen=True)
class Symmetry:
    """A symmetry of the square or the cube: permute the last ``len(perm)`` axes of a tensor, then flip some of them.

    Axis ``i`` of the result is axis ``perm[i]`` of the input, reversed if ``flips[i]``.
    """

    perm: tuple[int, ...]
    flips: tuple[bool, ...]

    def __call__(self, x: Tensor) -> Tensor:
        n = len(self.perm)
        moved = x.permute(*range(x.dim() - n), *(x.dim() - n + p for p in self.perm))
        return moved.flip([i - n for i, flipped in enumerate(self.flips) if flipped])

    @property
    def proper(self) -> bool:
        """Whether this is a rotation, not a reflection."""
        inversions = sum(a > b for a, b in itertools.combinations(self.perm, 2))
        return (inversions + sum(self.flips)) % 2 == 0

    @property
    def matrix(self) -> Tensor:
        """The same as an orthogonal matrix (dims, dims), float64, over the axes in their order."""
        signs = torch.tensor([-1.0 if flipped else 1.0 for flipped in self.flips], dtype=torch.float64)
        return signs[:, None] * torch.eye(len(self.perm), dtype=torch.float64)[list(self.perm)]


@lru_cache
def symmetry_group(dims: int) -> tuple[Symmetry, ...]:
    """All symmetries of the segment, the square (D4, 8 elements) or the cube (48 elements), the identity first."""
    perms = itertools.permutations(range(dims))
    return tuple(Symmetry(p, f) for p in perms for f in itertools.product((False, True), repeat=dims))


class GridGroup(StrEnum):
    """The symmetries of the square or cube that something keeps exactly, as one of four groups."""

    NONE = "none"
    MIRRORS = "mirrors"
    ROTATIONS = "rotations"
    FULL = "full"

    def elements(self, dims: int) -> tuple[Symmetry, ...]:
        """Its elements for ``dims`` axes: of ``ROTATIONS`` 4 in 2D (C4) and 24 in 3D, of ``FULL`` 8 (D4) and 48."""
        return tuple(g for g in symmetry_group(dims) if self.has(g))

    def has(self, g: Symmetry) -> bool:
        """Whether ``g`` is an element of the group."""
        straight = g.perm == tuple(sorted(g.perm))
        if self is GridGroup.NONE:
            return straight and not any(g.flips)
        return self is GridGroup.FULL or (g.proper if self is GridGroup.ROTATIONS else straight)

    def words(self, dims: int) -> str:
        """What it is for people, to follow on "exactly invariant to": "quarter turns and mirror images"."""
        turns = "quarter turns" if dims == 2 else "the 24 rotations of the cube"
        return {
            GridGroup.NONE: "nothing",
            GridGroup.MIRRORS: "mirror images along each axis",
            GridGroup.ROTATIONS: turns,
            GridGroup.FULL: "mirror images" if dims == 1 else f"{turns} and mirror images",
        }[self]


def plane_rotation(dims: int, degrees: float, plane: tuple[int, int] = (-2, -1)) -> Tensor:
    """Matrix (dims, dims), float64, of a rotation within the plane of two axes, from the first towards the second
    negative: as ``torch.rot90``."""
    a, b = (axis % dims for axis in plane)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(dims, dtype=torch.float64)
    matrix[a, a] = matrix[b, b] = cos
    matrix[a, b], matrix[b, a] = -sin, sin
    return matrix


@lru_cache
def quarter_turn(dims: int, quarters: int = 1, plane: tuple[int, int] = (-2, -1)) -> Symmetry:
    """What ``torch.rot90`` does."""
    matrix = plane_rotation(dims, 90 * quarters, plane).round()
    return next(g for g in symmetry_group(dims) if torch.equal(g.matrix, matrix))


def mirrors(dims: int) -> list[Symmetry]:
    """The flip of each axis."""
    straight = tuple(range(dims))
    return [Symmetry(straight, tuple(i == axis for i in straight)) for axis in straight]


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """``count`` rotation matrices (count, 3, 3), float64, uniform over SO(3): from normalised Gaussian quaternions."""
    w, x, y, z = F.normalize(torch.randn(4, count, generator=generator, dtype=torch.float64), dim=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def resample(
    x: Tensor,
    matrix: Tensor,
    *,
    mode: str = "bilinear",
    fill: float = 0.0,
    zoom: float = 1.0,
    shift: Sequence[float] | None = None,
) -> Tensor:
    """Turn every image of ``x`` (N, C, *spatial) about its centre by a rotation ``matrix`` (dims, dims) over the axes
    in their order, then magnify it ``zoom`` times, then move it by ``shift`` pixels along each axis.

    Lengths are in pixels, so that axes of different size are not distorted. What comes from outside the image is
    ``fill``."""
    dims = x.dim() - 2
    if matrix.shape != (dims, dims):
        raise ValueError(
            f"expected a {dims} x {dims} matrix for an input of shape {tuple(x.shape)}, got {tuple(matrix.shape)}"
        )
    # affine_grid maps output to input, with coordinates in the order x, y, z and scaled to [-1, 1]
    scale = torch.tensor(x.shape[2:], dtype=torch.float64) / 2
    inverse = matrix.double().cpu().T / zoom
    start = -inverse @ torch.tensor([0.0] * dims if shift is None else shift, dtype=torch.float64)
    theta = torch.cat([(inverse * scale / scale[:, None]).flip(0, 1), (start / scale).flip(0)[:, None]], dim=1).to(x)
    grid = F.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return F.grid_sample(x - fill, grid, mode=mode, padding_mode="zeros", align_corners=False) + fill


def rotate(
    x: Tensor, degrees: float, plane: tuple[int, int] = (-2, -1), *, mode: str = "bilinear", fill: float = 0.0
) -> Tensor:
    """Turn every image of ``x`` (N, C, *spatial) counter-clockwise (row axis down) within a plane of two spatial axes.

    The shape stays. Multiples of 90 degrees are exact (``torch.rot90``) where the shape allows it, other angles
    resample."""
    axes = sorted(axis % x.dim() for axis in plane)
    if axes[0] < 2 or axes[0] == axes[1]:
        raise ValueError(f"plane must be two of the spatial axes of an input {tuple(x.shape)}, got {plane}")
    quarters, rest = divmod(degrees, 90)
    if rest == 0 and (quarters % 2 == 0 or x.shape[plane[0]] == x.shape[plane[1]]):
        return torch.rot90(x, int(quarters) % 4, plane)
    spatial = x.dim() - 2
    return resample(
        x, plane_rotation(spatial, degrees, (plane[0] % x.dim() - 2, plane[1] % x.dim() - 2)), mode=mode, fill=fill
    )


class Action(Protocol):
    """How symmetries act on a feature map: pixels move, and channels mix where they are the components of a vector or
    the like.

    A layer that carries other fields than scalars has such an object as its attribute ``in_fields`` and another as
    ``out_fields``. :func:`equivariance_error` and :func:`isoconv.doctor` turn its input and output by these, and
    :func:`isoconv.convert` leaves the layer as it is. A method ``has(g) -> bool``, where there is one, says whether
    ``g`` acts at all; without it every ``g`` does. A layer that keeps fewer of the grid's symmetries than act on its
    fields says so with an attribute ``symmetry``, a :class:`GridGroup`."""

    def act(self, g: Symmetry | Tensor, x: Tensor) -> Tensor:
        """``x`` (N, C, *spatial), or (N, C) without a place, turned by a symmetry of the grid, or by an orthogonal
        matrix (dims, dims) as :func:`resample` does.

        Raises:
            ValueError: for an ``x`` of other channels, or a ``g`` that does not act."""


@dataclass(frozen=True)
class Scalars:
    """The :class:`Action` on channels that are images of their own, as those of an ordinary network: pixels move."""

    def act(self, g: Symmetry | Tensor, x: Tensor) -> Tensor:
        if x.dim() <= 2:
            return x
        if isinstance(g, Symmetry):
            return g(x)
        return resample(x if x.dtype == torch.float64 else x.float(), g).to(x.dtype)


def acts(fields: Action, g: Symmetry | Tensor) -> bool:
    """Whether ``g`` acts on ``fields``."""
    has = getattr(fields, "has", None)
    return has is None or has(g)


def carries_fields(module: nn.Module) -> bool:
    """Whether ``module`` says how its input or output transforms."""
    return hasattr(module, "in_fields") or hasattr(module, "out_fields")


def fields_of(module: nn.Module) -> tuple[Action, Action]:
    """How the input and the output of ``module`` transform: as it says, otherwise as scalars."""
    return getattr(module, "in_fields", Scalars()), getattr(module, "out_fields", Scalars())


def turned(x: Tensor, degrees: float, fields: Action, plane: tuple[int, int] = (-2, -1)) -> Tensor:
    """As :func:`rotate`, and channels mix as the ``fields`` of ``x`` say, if the rotation acts on these."""
    dims, square = x.dim() - 2, x.shape[plane[0]] == x.shape[plane[1]]
    exact = degrees % (90 if square else 180) == 0
    g = _rotation(dims, degrees, plane) if exact else plane_rotation(dims, degrees, plane)
    return (fields if acts(fields, g) else Scalars()).act(g, x)


def circular_mask(shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """Boolean mask of the largest disc (ball) inside an image of ``shape``: the part that stays in view at every
    angle."""
    # whole numbers, of half pixels: exact, and the same for sizes that are not known yet (torch.export)
    axes = [(2 * torch.arange(n, device=device) - (n - 1)).square() for n in shape]
    squared = sum(axis.view([-1] + [1] * (len(shape) - i - 1)) for i, axis in enumerate(axes))
    least = shape[0]
    for n in shape[1:]:
        least = torch.sym_min(least, n)
    return torch.as_tensor(squared <= least * least)


@torch.no_grad()
def equivariance_error(
    module: nn.Module, x: Tensor, angles: Iterable[float] = (90, 180, 270), flips: bool = True
) -> dict[str, float]:
    """How far ``module`` is from commuting with rotations and reflections of its input: ``|f(g x) - g f(x)| / |f(x)|``
    in the 2-norm.

    The output may be a map with as many axes as the input (equivariance) or have lost its spatial axes, like logits
    (invariance: ``g f(x) = f(x)``). The channels of a layer that has ``in_fields`` and ``out_fields`` mix as these say,
    see :class:`Action`. Multiples of 90 degrees move samples exactly. Other angles resample input and output
    bilinearly, and compare within the inscribed disc, outside of which the input is zero: what is then measured
    includes the error of the resampling, so compare it with that of another module on the same input.

    Args:
        module: evaluated in eval mode, its mode restored afterwards.
        x: input (N, C, *spatial) with 1 to 3 spatial axes; 1 has no rotations.
        angles: degrees; in 3D each is tried in all three coordinate planes.
        flips: whether to try the reflections: all elements of D4 or of the cube group that are not rotations.

    Returns:
        ``{"rot90": error, ..., "flip": error}``: for each angle the worst over the planes, for ``"flip"`` the worst
        over the reflections. 0 is exact; infinite where an output is no number, or where what acts on the input's
        fields does not act on the output's. What does not act on the input's fields is left out.

    Raises:
        TypeError: if the arguments are something else, or the module does not return one tensor.
        ValueError: if the output is neither a map nor without spatial axes, or is zero everywhere.
    """
    if not isinstance(module, nn.Module) or not isinstance(x, Tensor):
        got = f"{type(module).__name__} and {type(x).__name__}"
        raise TypeError(f"expected a torch.nn.Module and a tensor, got {got}")
    dims = x.dim() - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"expected an input (N, C, 1 to 3 spatial axes), got shape {tuple(x.shape)}")
    planes = list(itertools.combinations(range(-dims, 0), 2))
    turns: dict[str, list[Symmetry | Tensor]] = {}
    for angle in angles if dims > 1 else ():
        turns[f"rot{angle:g}"] = [_rotation(dims, angle, plane) for plane in planes]
    if flips:
        turns["flip"] = [g for g in symmetry_group(dims) if not g.proper]
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        output = _output(module, x)
        if not output.any():
            raise ValueError("the output is zero everywhere, its equivariance cannot be measured; use another input")
        upright = {True: (x, output)}
        if any(isinstance(g, Tensor) for elements in turns.values() for g in elements):
            masked = x * circular_mask(x.shape[2:], device=x.device)
            upright[False] = masked, _output(module, masked)
        errors = {}
        for name, elements in turns.items():
            acting = [g for g in elements if acts(fields_of(module)[0], g)]
            if known := [_error(module, g, *upright[isinstance(g, Symmetry)]) for g in acting]:
                errors[name] = max(known)
        return errors
    finally:
        for m in training:
            m.training = True


def _output(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    if not isinstance(y, Tensor):
        raise TypeError(
            f"equivariance_error needs a module that returns one tensor, got {type(y).__name__}; wrap it to pick one"
        )
    if y.dim() not in (2, x.dim()):
        axes = count_of(x.dim() - 2, "spatial axis", "spatial axes")
        raise ValueError(f"expected an output (N, features) or (N, C, {axes}), got shape {tuple(y.shape)}")
    return y


def _rotation(dims: int, degrees: float, plane: tuple[int, int]) -> Symmetry | Tensor:
    """An element of the grid's group if it is one: it moves samples exactly, those of rectangles too."""
    exact = degrees % 90 == 0
    return quarter_turn(dims, round(degrees / 90), plane) if exact else plane_rotation(dims, degrees, plane)


def _error(module: nn.Module, g: Symmetry | Tensor, x: Tensor, output: Tensor) -> float:
    inputs, outputs = fields_of(module)
    if not acts(outputs, g):
        return math.inf
    turned, expected = _output(module, inputs.act(g, x)), outputs.act(g, output)
    if isinstance(g, Tensor) and output.dim() == x.dim():
        mask = circular_mask(output.shape[2:], device=x.device)
        turned, expected = turned * mask, expected * mask
    return distance(turned, expected)


def distance(y: Tensor, expected: Tensor) -> float:
    """``|y - expected| / |expected|`` in the 2-norm; infinite for other shapes, and for what is no number."""
    if y.shape != expected.shape:
        return math.inf
    difference, norm = (y.double() - expected.double()).norm().item(), expected.double().norm().item()
    error = difference / norm if norm else difference and math.inf
    return math.inf if math.isnan(error) else error
