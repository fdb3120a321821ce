"""Normalisation, nonlinearity, dropout and pooling of fields.

All of them commute exactly with the symmetries of the grid; but for :class:`FieldReLU` with every other rotation of the
components, too. Linear pooling and up-sampling, such as :class:`isoconv.nn.SymmetricAvgPool2d`, take fields as they
are; max pooling of components means nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv.nn._eager import SOFT, channelwise, gated, moments, suits, update_running
from isoconv.nn.constants import WithConstants
from isoconv.nn.fields import Fields, split
from isoconv.nn.harmonics import harmonics
from isoconv.ops.resampling import is_traced

__all__ = ["FieldDropout", "FieldGate", "FieldMagnitudes", "FieldNorm", "FieldReLU", "InvariantPool", "magnitudes"]

_KINDS = ("batch", "instance")
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_SPHERE = {14: (5, (1 / 15, 0, 3 / 40)), 26: (7, (1 / 21, 4 / 105, 9 / 280))}
"""Lebedev's rules of the sphere: the degree that each integrates exactly, and the weight of a direction towards a face,
an edge and a corner of the cube."""


def magnitudes(x: Tensor, fields: Fields) -> Tensor:
    """``sqrt(|v|^2 + 0.001)`` of every field v that is no scalar: (N, fields.directed, *spatial). Smooth at zero."""
    return _lengths(fields.parts(x)[1])


def _lengths(fields: list[Tensor]) -> Tensor:
    return (_cat([_wide(v).square().sum(2) for v in fields]) + SOFT).sqrt().to(fields[0])


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _wide(x: Tensor) -> Tensor:
    """In float32 at least, for squares overflow in half precision."""
    if isinstance(x, torch.fx.Proxy):  # what takes no tensor escapes the trace
        return x.to(x.tracer.create_proxy("call_function", torch.promote_types, (x.dtype, torch.float32), {}))
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(kind: str, dims: int, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    if kind not in _KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, _KINDS))}, got {kind!r}{did_you_mean(kind, _KINDS)}")
    if not channels:
        return nn.Identity()
    if kind == "instance":  # which InstanceNorm would not do for a batch of none
        return nn.GroupNorm(channels, channels, eps)
    return _BATCH_NORM[dims](channels, eps, momentum)


class _FieldLayer(nn.Module):
    """What turns as ``in_fields`` comes in, what turns as ``out_fields`` goes out."""

    def __init__(self, in_fields: Fields, out_fields: Fields | None = None) -> None:
        super().__init__()
        self.in_fields, self.out_fields = in_fields, out_fields or in_fields

    def _parts(self, input: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The scalars, if any, and the other fields, see :meth:`Fields.parts`."""
        if not is_traced(input):
            self.in_fields.check(input)
        scalars, fields = self.in_fields.parts(input)
        return ([] if scalars is None else [scalars]), fields

    def _shares(self, values: Tensor, axis: int) -> list[Tensor]:
        """``values``, of which an axis counts the fields that are no scalars, in the parts of these."""
        return split([count for count, _ in self.in_fields.runs], values, axis)

    def extra_repr(self) -> str:
        return str(self.in_fields)


def _scaled(fields: Tensor, factors: Tensor, dims: int) -> Tensor:
    """``fields`` (N, count, components, *spatial) times ``factors`` (count,) or (N, count)."""
    return (_wide(fields) * factors.unflatten(-1, (-1, *[1] * (dims + 1)))).to(fields)


class FieldNorm(_FieldLayer):
    """Scalars to mean 0 and variance 1, every other field to a root mean square of 1 per component; then a learned gain
    for each, and a bias for scalars.

    Fields that are no scalars keep their mean: a direction that all images share would not turn with them. Traced by
    torch.fx, as in :func:`isoconv.fuse`, the layer is that of eval mode.

    Args:
        fields: of input and output.
        kind: ``"batch"``: over the batch in training, by running means in eval mode, as ``torch.nn.BatchNorm2d``;
            ``"instance"``: over each image always, as ``torch.nn.InstanceNorm2d``.
        eps: added to variance and mean square.
        momentum: of the running means.
    """

    gain: nn.Parameter
    rms: Tensor

    def __init__(self, fields: Fields, kind: str = "batch", eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(fields)
        self.kind, self.eps, self.momentum = kind, eps, momentum
        self.scalars = _norm(kind, fields.dims, fields.scalars, eps, momentum)
        if fields.directed:
            self.gain = nn.Parameter(torch.ones(fields.directed))
            if kind == "batch":
                self.register_buffer("rms", torch.ones(fields.directed))

    def forward(self, input: Tensor) -> Tensor:
        if self.kind == "batch" and self.in_fields.directed and suits(self, self.scalars, input):
            self.in_fields.check(input)
            return channelwise(input, *self._scale_and_shift(input))
        scalars, fields = self._parts(input)
        parts = [self.scalars(part) for part in scalars]
        if fields:
            scales = self._shares(self.gain / self._rms(fields), -1)
            parts += [_scaled(v, s, self.in_fields.dims).flatten(1, 2) for v, s in zip(fields, scales, strict=True)]
        return _cat(parts)

    def plain(self) -> nn.Module | None:
        """The ``torch.nn.BatchNormNd`` of all channels that does in eval mode what this layer does; None if it is no
        norm over the batch."""
        if self.kind != "batch":
            return None
        first = next(self.parameters())
        norm: Any = _BATCH_NORM[self.in_fields.dims](self.in_fields.channels, self.eps).to(first)
        start = self.in_fields.scalars
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var") if start else ():
                getattr(norm, name)[:start] = getattr(self.scalars, name)
            norm.running_var[start:] = 1 - self.eps
            scales = self._shares(self.gain / self.rms, -1) if self.in_fields.directed else []
            for scale, (_, size) in zip(scales, self.in_fields.runs, strict=True):
                norm.weight[start : start + len(scale) * size] = scale.repeat_interleave(size)
                start += len(scale) * size
        return norm.eval()

    def _rms(self, fields: list[Tensor]) -> Tensor:
        """(directed,), or (N, directed) of single images."""
        if self.kind == "batch" and (is_traced(fields[0]) or not self.training or len(fields[0]) == 0):
            return self.rms
        axes = [0, *range(2, 3 + self.in_fields.dims)][self.kind == "instance" :]
        return self._root(torch.cat([_wide(v).square().mean(axes) for v in fields], dim=-1))

    def _root(self, squares: Tensor) -> Tensor:
        """From mean squares; of a batch it goes into the running means."""
        rms = (squares + self.eps).sqrt()
        if self.kind == "batch":
            self.rms.lerp_(rms.detach().to(self.rms), self.momentum)
        return rms

    def _scale_and_shift(self, input: Tensor) -> list[Tensor]:
        """What the layer does to each channel (channels,) of ``input``."""
        norm: Any = self.scalars
        count, runs = self.in_fields.scalars, self.in_fields.runs
        means, variances = (norm.running_mean, norm.running_var) if count else (self.rms[:0],) * 2
        rms = self.rms
        if self.training:
            means, variances = moments(input)
            squares = split([n * size for n, size in runs], (variances + means.square())[count:], axis=0)
            rms = self._root(torch.cat([s.unflatten(0, run).mean(1) for s, run in zip(squares, runs, strict=True)]))
            means, variances = means[:count], variances[:count]
            if count:
                update_running(norm, means, variances, input.numel() // input.shape[1])
        scales = zip(self._shares(self.gain / rms, 0), runs, strict=True)
        scale, shift = [factors.repeat_interleave(size) for factors, (_, size) in scales], means
        if count:
            scale.insert(0, norm.weight * (variances + norm.eps).rsqrt())
            shift = norm.bias - means * scale[0]
        wide = torch.promote_types(input.dtype, torch.float32)
        return [torch.cat(scale).to(wide), F.pad(shift, (0, self.in_fields.channels - count)).to(wide)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind!r}"


class FieldGate(_FieldLayer):
    """Magnitudes join the scalars, and each field is scaled by what becomes of its magnitude.

    With m the magnitude of a field v (:func:`~isoconv.nn.field_layers.magnitudes`), its gate is
    g = ReLU(norm(m)), a norm that is learned; out go ReLU of the scalars, the gates as further scalars, and
    ``v * g / m``.

    Args:
        fields: of the input. The output has ``fields.directed`` scalars more.
        kind: norm of the magnitudes, as of :class:`FieldNorm`.
    """

    def __init__(self, fields: Fields, kind: str = "batch") -> None:
        super().__init__(fields, Fields.of(fields.counts | {0: fields.scalars + fields.directed}, fields.dims))
        self.norm = _norm(kind, fields.dims, fields.directed)
        if fields.directed:
            nn.init.constant_(self.norm.get_parameter("bias"), 0.5)  # most gates are open at first

    def forward(self, input: Tensor) -> Tensor:
        if self.in_fields.directed and suits(self, self.norm, input):
            self.in_fields.check(input)
            return gated(input, self.norm, self.in_fields, self._gated)
        return self._gated(input, self.norm)

    def _gated(self, input: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        scalars, fields = self._parts(input)
        parts = [F.relu(part) for part in scalars]
        if fields:
            size = _lengths(fields)
            gate = F.relu(norm(size))
            scales = self._shares(gate / size, 1)
            parts += [gate, *((v * s.unsqueeze(2)).flatten(1, 2) for v, s in zip(fields, scales, strict=True))]
        return _cat(parts)


class FieldMagnitudes(_FieldLayer):
    """Scalars as they are and the :func:`~isoconv.nn.field_layers.magnitudes` of all other fields: scalars come out."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields, Fields(f"{fields.scalars + fields.directed}x0", fields.dims))

    def forward(self, input: Tensor) -> Tensor:
        scalars, fields = self._parts(input)
        return _cat([*scalars, _lengths(fields)] if fields else scalars)


class FieldReLU(_FieldLayer, WithConstants):
    """ReLU of functions on the circle (sphere): fields of all orders with one number make a function of the direction,
    which is sampled, rectified, and projected back on the orders.

    Exact for the symmetries of the grid, which permute the directions; nearly so for other rotations.

    Args:
        fields: as many of every order.
        directions: on the circle a multiple of 4, at least twice the highest order and one more; on the sphere 14 or 26
            (orders up to 2 and 3). By default 8 and 26.

    Raises:
        ValueError: for other fields or too few directions.
    """

    sample: Tensor
    project: Tensor

    def __init__(self, fields: Fields, directions: int | None = None) -> None:
        super().__init__(fields)
        if len(set(fields.counts.values())) != 1:
            raise ValueError(f"a function of the direction takes a field of every order, as many of each, got {fields}")
        self.directions = directions or {2: 8, 3: 26}[fields.dims]
        points, weights = _directions(fields.dims, self.directions, max(fields.counts))
        rows = [harmonics(order, points) for order in fields.counts]
        self._sample = np.ascontiguousarray(np.concatenate(rows).T)
        self._project = np.concatenate([len(row) * row for row in rows]) * weights
        self.register_buffer("sample", torch.empty(0), persistent=False)
        self._set_constants(self._like())

    def _like(self) -> Tensor:
        return self.sample

    def _set_constants(self, like: Tensor) -> None:
        for name, matrix in (("sample", self._sample), ("project", self._project)):
            self.register_buffer(name, torch.tensor(matrix, device="cpu").to(like), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if not is_traced(input):
            self.in_fields.check(input)
            if self.sample.device != input.device:  # without weights of its own, it is not told of those of others
                self._set_constants(input)
        function = torch.cat(list(self.in_fields.split(input).values()), dim=2)
        samples = F.relu(torch.einsum("dc,nfc...->nfd...", self.sample, function))
        function = torch.einsum("cd,nfd...->nfc...", self.project, samples)
        sizes = [self.in_fields.components(order) for order in self.in_fields.counts]
        return _cat([part.flatten(1, 2) for part in split(sizes, function, axis=2)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, directions={self.directions}"


def _directions(dims: int, count: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (dims, count) that the square (cube) maps to themselves, and weights of sum 1 with which products of
    two harmonics up to ``order`` are integrated exactly."""
    if dims == 2:
        if count % 4 or count <= 2 * order:
            raise ValueError(f"order {order} takes a multiple of 4 directions, at least {2 * order + 1}, got {count}")
        angles = 2 * np.pi * np.arange(count) / count
        return np.stack([np.cos(angles), np.sin(angles)]), np.full(count, 1 / count)
    degree, weights = _SPHERE.get(count, (-1, ()))
    if degree < 2 * order:
        known = " or ".join(str(n) for n, (degree, _) in _SPHERE.items() if degree >= 2 * order)
        raise ValueError(f"order {order} on the sphere takes {known or 'more than 26'} directions, got {count}")
    points = [p for p in itertools.product((-1, 0, 1), repeat=3) if any(p) and weights[sum(map(abs, p)) - 1]]
    lengths = np.array([sum(map(abs, p)) for p in points])
    return np.array(points).T / np.sqrt(lengths), np.array(weights)[lengths - 1]


class FieldDropout(_FieldLayer):
    """In training, whole fields of an image are zero with probability ``p``, the others scaled by ``1 / (1 - p)``."""

    def __init__(self, fields: Fields, p: float = 0.5) -> None:
        super().__init__(fields)
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, got {p}")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        scalars, fields = self._parts(input)
        if not self.training:
            return input
        kept = []
        for v in (*(part.unsqueeze(2) for part in scalars), *fields):
            mask = F.dropout(torch.ones_like(v.flatten(2)[:, :, 0]), self.p)
            kept.append(_scaled(v, mask, self.in_fields.dims).flatten(1, 2))
        return _cat(kept)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class InvariantPool(_FieldLayer):
    """Means over the image that no symmetry changes: (N, scalars + directed), of the scalars and of the
    :func:`~isoconv.nn.field_layers.magnitudes` of all other fields.

    Args:
        fields: of the input.
        magnitudes: False: of the scalars alone.
    """

    def __init__(self, fields: Fields, magnitudes: bool = True) -> None:
        kept = fields if magnitudes else Fields(f"{fields.scalars}x0", fields.dims)
        super().__init__(fields, Fields(f"{kept.scalars + kept.directed}x0", fields.dims))
        self.magnitudes = magnitudes and fields.directed > 0

    def forward(self, input: Tensor) -> Tensor:
        parts, fields = self._parts(input)
        if self.magnitudes:
            parts.append(_lengths(fields))
        return _cat(parts).flatten(2).mean(2)
