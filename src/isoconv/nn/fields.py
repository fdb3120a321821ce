"""What a feature map holds: scalars, vectors and fields of higher order, and how they turn with the image."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isoconv.nn.harmonics import components, turning
from isoconv.symmetry import Scalars, Symmetry

__all__ = ["Fields", "arrows", "as_fields", "joined"]


@dataclass(frozen=True)
class Fields:
    """The fields of a feature map (N, channels, *spatial), order by order: ``Fields("8x0 + 4x1 + 4x2", dims=2)`` is 8
    scalars, 4 vectors and 4 fields of order 2.

    A field of order l turns like the harmonics of that order (:func:`isoconv.nn.harmonics.harmonics`, which says what
    each component is): order 0 is one channel that does not change; order 1 a vector along the axes of the image, in
    their order; order l > 0 has 2 channels in 2D, ``2 * l + 1`` in 3D. Orders ascend along the channels, whatever the
    order of the terms; within an order the components of one field are neighbours.

    Args:
        text: terms "count x order", joined by "+".
        dims: of the image, 2 or 3.

    Attributes:
        counts: number of fields by order, ascending.
        slices: their channels by order.
        channels: of all fields.

    Raises:
        ValueError: for another text or number of dimensions.
    """

    text: str
    dims: int
    counts: dict[int, int] = field(init=False, repr=False, compare=False)
    slices: dict[int, slice] = field(init=False, repr=False, compare=False)
    channels: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"fields are of images of 2 or 3 dimensions, got dims={self.dims!r}")
        counts: dict[int, int] = {}
        for term in str(self.text).split("+"):
            match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", term)
            if match is None:
                raise ValueError(
                    f"expected terms 'count x order' joined by '+', such as '8x0 + 4x1', got {term.strip()!r} in "
                    f"{self.text!r}"
                )
            count, order = map(int, match.groups())
            counts[order] = counts.get(order, 0) + count
        counts = {order: count for order, count in sorted(counts.items()) if count}
        if not counts:
            raise ValueError(f"expected at least one field, got {self.text!r}")
        slices, stop = {}, 0
        for order, count in counts.items():
            slices[order] = slice(stop, stop := stop + count * self.components(order))
        text = " + ".join(f"{count}x{order}" for order, count in counts.items())
        for name, value in {"text": text, "counts": counts, "slices": slices, "channels": stop}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, counts: Mapping[int, int], dims: int) -> Fields:
        """From the number of fields of each order."""
        return cls(" + ".join(f"{count}x{order}" for order, count in counts.items()), dims)

    @property
    def scalars(self) -> int:
        return self.counts.get(0, 0)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Number and components of the fields that are no scalars, neighbours of as many components together."""
        sizes = {order: self.components(order) for order in self.counts if order}
        return [
            (sum(self.counts[order] for order in orders), size)
            for size, orders in itertools.groupby(sizes, key=sizes.__getitem__)
        ]

    @property
    def directed(self) -> int:
        """Number of fields that are no scalars."""
        return sum(self.counts.values()) - self.scalars

    def components(self, order: int) -> int:
        """Channels of one field of ``order``."""
        return components(self.dims, order)

    def split(self, x: Tensor) -> dict[int, Tensor]:
        """The fields by order: (N, count, components, ...) for an ``x`` (N, channels, ...)."""
        shapes = [(count, self.components(order)) for order, count in self.counts.items()]
        pieces = split([count * size for count, size in shapes], x, axis=1)
        return {
            order: piece.unflatten(1, shape) for order, piece, shape in zip(self.counts, pieces, shapes, strict=True)
        }

    def parts(self, x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """The scalars (N, count, ...), if any, and all other fields (N, count, components, ...) in their order,
        neighbours of as many components, as all of them are in 2D, in one tensor."""
        runs = self.runs
        pieces = split([self.scalars] * (self.scalars > 0) + [count * size for count, size in runs], x, axis=1)
        scalars = pieces.pop(0) if self.scalars else None
        return scalars, [piece.unflatten(1, run) for piece, run in zip(pieces, runs, strict=True)]

    def act(self, g: Symmetry | Tensor, x: Tensor) -> Tensor:
        """``x`` (N, channels, *spatial), or (N, channels) without a place, turned: pixels move and components mix.

        Args:
            g: a symmetry of the grid, or an orthogonal matrix (dims, dims) over the axes in their order, for which
                pixels are resampled by :func:`isoconv.symmetry.resample`.

        Raises:
            ValueError: for an ``x`` of another shape, or a ``g`` of another number of dimensions.
        """
        self.check(x, spatial=x.dim() != 2)
        matrix = (g.matrix if isinstance(g, Symmetry) else g.detach().double().cpu()).numpy()
        if matrix.shape != (self.dims, self.dims):
            raise ValueError(f"expected a symmetry of {self.dims} dimensions, got one of {len(matrix)}")
        mixed = []
        for order, fields in self.split(Scalars().act(g, x)).items():
            mixing = torch.from_numpy(turning(order, matrix)).to(x)
            mixed.append(torch.einsum("ij,nfj...->nfi...", mixing, fields).flatten(1, 2) if order else fields[:, :, 0])
        return torch.cat(mixed, dim=1)

    def check(self, x: Tensor, spatial: bool = True) -> None:
        """Raises ValueError unless ``x`` is (N, channels, *spatial), or (N, channels) if not ``spatial``."""
        if x.dim() != 2 + self.dims * spatial or x.shape[1] != self.channels:
            axes = f", {self.dims} spatial axes" if spatial else ""
            raise ValueError(f"expected (N, {self.channels}{axes}) for the fields {self}, got shape {tuple(x.shape)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which ``Fields(**values)`` makes an equal object."""
        return {"text": self.text, "dims": self.dims}

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Fields({self.text!r}, dims={self.dims})"


def as_fields(value: Fields | str | int, dims: int) -> Fields:
    """Fields from themselves, their text, or a number of scalars.

    Raises:
        ValueError: for fields of another number of dimensions.
    """
    if not isinstance(value, Fields):
        return Fields(value if isinstance(value, str) else f"{value}x0", dims)
    if value.dims != dims:
        raise ValueError(f"expected fields of {dims} dimensions, got {value!r}")
    return value


def split(sizes: Sequence[int], x: Tensor, axis: int) -> list[Tensor]:
    """Pieces of these ``sizes``. In the backward pass they are joined at once; slices would each be filled up with
    zeros, and added."""
    if len(sizes) == 1:
        return [x]
    pieces = x.split(sizes, dim=axis)
    return [pieces[i] for i in range(len(sizes))]  # torch.fx cannot tell how many there are


def arrows(x: Tensor, fields: Fields) -> Tensor:
    """The vectors (N, count, dims, *spatial) among the fields ``x``, for pictures: components along the axes, in pixels
    the direction in which each axis counts.

    Raises:
        ValueError: if ``fields`` have no order 1, or ``x`` are other ones.
    """
    fields.check(x)
    if 1 not in fields.counts:
        raise ValueError(f"expected fields of order 1 among {fields}: only these are arrows")
    return fields.split(x)[1]


def joined(fields: Fields, *maps: Tensor) -> Tensor:
    """Feature ``maps`` of the same ``fields`` as one of so many times the fields: those of an order stay together."""
    split = [fields.split(x) for x in maps]
    return torch.cat([part[order].flatten(1, 2) for order in fields.counts for part in split], dim=1)
