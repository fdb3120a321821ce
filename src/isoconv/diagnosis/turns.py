"""Images to turn, how tensors inside a network turn with them, and how far one is from another that was turned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isoconv._checks import ntuple
from isoconv.symmetry import circular_mask, distance, rotate

__all__ = ["Turn", "images_for", "tensors", "turns_of", "worst"]


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


def images_for(net: nn.Module, input: Tensor | Sequence[int], seed: int) -> Tensor:
    """The images given, or smooth noise of the shape given, for the first floating-point parameter of ``net``.

    Raises:
        TypeError: ``input`` is neither.
        ValueError: an impossible shape, or images that are no floating-point numbers or that no turn changes.
    """
    if not isinstance(input, Tensor | Sequence):
        raise TypeError(f"input must be a tensor of images or a shape such as (1, 3, 224, 224), got {input!r}")
    shape = tuple(input.shape) if isinstance(input, Tensor) else ntuple(input, len(input), "input")
    if not 3 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(f"expected an input N x channels x 1 to 3 spatial axes, such as 1x3x224x224, got {shape}")
    if isinstance(input, Tensor):
        if not input.is_floating_point():
            raise ValueError(f"expected floating-point images, got {input.dtype}; convert them as for your network")
        if not input.isfinite().all():
            raise ValueError("the images hold NaN or infinity; replace them")
        images = input
    else:
        images = _noise(net, shape, seed)
    pixels = images.flatten(2)
    if (pixels == pixels[..., :1]).all():
        raise ValueError("the images are the same at every pixel, which turning does not change; use others or larger")
    return images


def _noise(net: nn.Module, shape: Sequence[int], seed: int) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis in range(2, len(shape)):  # a Gaussian of 2 pixels, periodic
        spread = torch.exp(-2 * (2 * math.pi * torch.fft.fftfreq(shape[axis], dtype=torch.float64)) ** 2)
        noise = torch.fft.ifft(torch.fft.fft(noise, dim=axis).movedim(axis, -1) * spread).real.movedim(-1, axis)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return ((noise - noise.mean()) / noise.std(correction=0).clamp_min(1e-12)).to(like)
