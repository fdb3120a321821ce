"""Images to turn, how tensors inside a network turn with them, and how far one is from another that was turned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isoconv._checks import ntuple
from isoconv.symmetry import Action, Scalars, Symmetry, circular_mask, distance, mirrors, plane_rotation, quarter_turn

__all__ = ["CHANNELS_FIRST", "CHANNELS_LAST", "Turn", "View", "images_for", "tensors", "turns_of", "worst"]


class View(NamedTuple):
    """How a tensor is seen: what its channels hold, and whether they are axis 1 or -1."""

    fields: Action = Scalars()
    channels: int = 1


CHANNELS_FIRST, CHANNELS_LAST = View(), View(channels=-1)


class Turn(NamedTuple):
    """An element ``g`` of a symmetry."""

    symmetry: str
    g: Symmetry | Tensor

    @property
    def exact(self) -> bool:
        """Whether it moves samples onto samples."""
        return isinstance(self.g, Symmetry)

    @property
    def dims(self) -> int:
        return len(self.g.perm) if isinstance(self.g, Symmetry) else len(self.g)

    def source(self, x: Tensor) -> Tensor:
        """``x``, or what of it stays in view at every angle."""
        return x if self.exact else x * circular_mask(x.shape[2:], device=x.device)

    def match(self, turned: Tensor, upright: Tensor, views: Sequence[View]) -> tuple[float | None, Tensor]:
        """The error of ``turned`` as ``upright`` turned, and the latter: in that view of a map (N, C, *spatial), or of
        features (N, C), in which it fits best.

        The error is None where nothing is known of the axes, no view is possible, or pixels are too few to tell a free
        angle."""
        if upright.dim() not in (2, self.dims + 2):
            return (distance(turned, upright) if upright.dim() < 2 else None), upright
        if turned.dim() != upright.dim():
            return math.inf, upright
        fits = [fit for view in views if (fit := self._fit(turned, upright, view)) is not None]
        return min(fits, key=lambda fit: math.inf if fit[0] is None else fit[0], default=(None, upright))

    def _fit(self, turned: Tensor, upright: Tensor, view: View) -> tuple[float | None, Tensor] | None:
        got = turned.movedim(view.channels, 1)
        try:
            expected = view.fields.act(self.g, upright.movedim(view.channels, 1))
        except ValueError:  # other channels, or no such action
            return None
        back = expected.movedim(1, view.channels)
        if got.shape != expected.shape:
            return math.inf, back
        if self.exact or upright.dim() == 2:
            return distance(got, expected), back
        if 1 < min(expected.shape[2:]) < 4:
            return None, back
        mask = circular_mask(expected.shape[2:], device=expected.device)
        return distance(got * mask, expected * mask), back

    def error(self, turned: Any, upright: Any, views: Sequence[View]) -> float | None:
        """The worst error among all tensors of two nested structures."""
        pairs = zip(tensors(turned), tensors(upright), strict=False)
        return worst(self.match(*pair, views)[0] for pair in pairs)


def turns_of(dims: int, angle: float) -> list[Turn]:
    """Generators of the square's or cube's symmetries, and the free rotations."""
    planes = list(itertools.combinations(range(-dims, 0), 2))
    return [
        *(Turn("rot90", quarter_turn(dims, 1, plane)) for plane in planes),
        *(Turn("flip", mirror) for mirror in mirrors(dims)),
        *(Turn(f"rot{angle:g}", plane_rotation(dims, angle, plane)) for plane in planes),
    ]


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
