"""Symmetric down- and up-sampling as modules, see :mod:`isoconv.ops.resampling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from isoconv._checks import count_of, ntuple
from isoconv.ops import resampling


class _Pool(nn.Module):
    dims: ClassVar[int]

    def _check(self, input: Tensor) -> Tensor:
        if resampling.is_traced(input):
            return input
        if input.dim() not in (self.dims + 1, self.dims + 2) or 0 in input.shape[-self.dims :]:
            axes = count_of(self.dims, "non-empty spatial axis", "non-empty spatial axes")
            raise ValueError(
                f"{type(self).__name__} expects (N, C, {axes}) or the same without N, got shape {tuple(input.shape)}"
            )
        return input


class _AvgPool(_Pool):
    """Mean pooling by 2 that commutes with flips and axis permutations at every size; n becomes ceil(n / 2)."""

    def forward(self, input: Tensor) -> Tensor:
        return resampling.symmetric_avg_pool(self._check(input), self.dims)


class _MaxPool(_Pool):
    """Max pooling by 2 that commutes with flips and axis permutations at every size; n becomes ceil(n / 2)."""

    def forward(self, input: Tensor) -> Tensor:
        return resampling.symmetric_max_pool(self._check(input), self.dims)


class _Upsample(_Pool):
    """Linear up-sampling by 2 that commutes with flips and axis permutations; n becomes 2n, or what ``size`` says: 2n
    or 2n - 1 per axis."""

    def forward(self, input: Tensor, size: Sequence[int] | None = None) -> Tensor:
        input = self._check(input)
        if not resampling.is_traced(input) and input.dim() == self.dims + 1:
            return self.forward(input[None], size)[0]
        if size is None:
            size = [2 * input.shape[axis] for axis in range(-self.dims, 0)]
        if len(size) != self.dims:
            raise ValueError(f"size must have one number per axis, {self.dims}, got {tuple(size)}")
        return resampling.symmetric_upsample(input, size)


class CentreGrid(nn.Module):
    """Put before a strided layer of the same hyperparameters, makes it symmetric at every size, its output shape
    unchanged.

    Args:
        kernel_size, stride, padding, dilation: of the layer that follows, one number per axis.
        mode: ``"avg"`` or ``"max"``, how samples are moved by half a step where need be.
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        mode: str = "avg",
    ) -> None:
        super().__init__()
        if mode not in ("avg", "max"):
            raise ValueError(f"mode must be 'avg' or 'max', got {mode!r}")
        if not isinstance(stride, Sequence) or not stride or min(stride) < 1:
            raise ValueError(f"stride must be a number of at least 1 for each axis, got {stride!r}")
        n = len(stride)
        self.kernel_size, self.stride = ntuple(kernel_size, n, "kernel_size"), ntuple(stride, n, "stride")
        self.padding, self.dilation = ntuple(padding, n, "padding"), ntuple(dilation, n, "dilation")
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        dims = len(self.stride)
        if not resampling.is_traced(input) and input.dim() not in (dims + 1, dims + 2):
            axes = count_of(dims, "spatial axis", "spatial axes")
            raise ValueError(f"expected an input (N, C, {axes}) or the same without N, got shape {tuple(input.shape)}")
        return resampling.centre_grid(input, self.kernel_size, self.stride, self.padding, self.dilation, self.mode)

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation", "mode")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class SamePad(nn.Module):
    """Put before a :class:`CentreGrid` without padding and a strided layer, pads so that n samples become
    ceil(n / stride), as padding "SAME" of TensorFlow does, yet both sides alike.

    Args:
        kernel_size, stride, dilation: of the layer that follows, one number per axis.
        value: what to pad with.
    """

    def __init__(
        self, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float = 0.0
    ) -> None:
        super().__init__()
        n = len(stride)
        self.kernel_size, self.stride = ntuple(kernel_size, n, "kernel_size"), ntuple(stride, n, "stride")
        self.dilation, self.value = ntuple(dilation, n, "dilation"), value

    def forward(self, input: Tensor) -> Tensor:
        return resampling.same_pad(input, self.kernel_size, self.stride, self.dilation, self.value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("kernel_size", "stride", "dilation", "value"))


class SymmetricAvgPool1d(_AvgPool):
    __doc__ = _AvgPool.__doc__
    dims = 1


class SymmetricAvgPool2d(_AvgPool):
    __doc__ = _AvgPool.__doc__
    dims = 2


class SymmetricAvgPool3d(_AvgPool):
    __doc__ = _AvgPool.__doc__
    dims = 3


class SymmetricMaxPool1d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    dims = 1


class SymmetricMaxPool2d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    dims = 2


class SymmetricMaxPool3d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    dims = 3


class SymmetricUpsample1d(_Upsample):
    __doc__ = _Upsample.__doc__
    dims = 1


class SymmetricUpsample2d(_Upsample):
    __doc__ = _Upsample.__doc__
    dims = 2


class SymmetricUpsample3d(_Upsample):
    __doc__ = _Upsample.__doc__
    dims = 3
