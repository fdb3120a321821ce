"""How tensors inside a network turn with its input, and how far one is from another that was turned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isoconv.symmetry import circular_mask, distance, rotate

__all__ = ["Turn", "tensors", "turns_of", "worst"]


class Turn(NamedTuple):
    """An element of a symmetry, which acts on tensors (N, C, *spatial)."""

    symmetry: str
    act: Callable[[Tensor], Tensor]
    exact: bool
    dims: int

    def source(self, x: Tensor) -> Tensor:
        """``x``, or what of it stays in view at every angle."""
        return x if self.exact else x * circular_mask(x.shape[2:], device=x.device)

    def match(self, turned: Tensor, upright: Tensor, layouts: Sequence[int] = (1, -1)) -> tuple[float | None, Tensor]:
        """The error of ``turned`` as ``upright`` turned, and the latter.

        Maps have their channels at axis 1 or -1 (``layouts``), whichever fits better; what has no spatial axes stays as
        it is. The error is None where nothing is known of the axes, or pixels are too few to tell a free angle."""
        if upright.dim() <= 2:
            return distance(turned, upright), upright
        if upright.dim() != self.dims + 2:
            return None, upright
        if turned.dim() != upright.dim():
            return math.inf, upright
        fits = []
        for channels in layouts:
            expected = self.act(upright.movedim(channels, 1))
            got = turned.movedim(channels, 1)
            mask = 1 if self.exact else circular_mask(expected.shape[2:], device=expected.device)
            error = distance(got * mask, expected * mask) if got.shape == expected.shape else math.inf
            fits.append((error, 1 < min(expected.shape[2:]) < 4, expected.movedim(1, channels)))
        error, small, expected = min(fits, key=lambda fit: fit[0])
        return (error if self.exact or not small else None), expected

    def error(self, turned: Any, upright: Any, layouts: Sequence[int] = (1, -1)) -> float | None:
        """The worst error among all tensors of two nested structures."""
        pairs = zip(tensors(turned), tensors(upright), strict=False)
        return worst(self.match(*pair, layouts)[0] for pair in pairs)


def turns_of(dims: int, angle: float) -> list[Turn]:
    """Generators of the square's or cube's symmetries, and the free rotations."""
    planes = list(itertools.combinations(range(-dims, 0), 2))
    quarter = [Turn("rot90", partial(torch.rot90, k=1, dims=plane), True, dims) for plane in planes]
    flips = [Turn("flip", partial(torch.flip, dims=(axis,)), True, dims) for axis in range(-dims, 0)]
    free = [Turn(f"rot{angle:g}", partial(_rotate, angle, plane), False, dims) for plane in planes]
    return [*quarter, *flips, *free]


def _rotate(angle: float, plane: tuple[int, int], x: Tensor) -> Tensor:
    return rotate(x if x.dtype == torch.float64 else x.float(), angle, plane).to(x.dtype)


def worst(errors: Iterable[float | None]) -> float | None:
    return max((error for error in errors if error is not None), default=None)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
