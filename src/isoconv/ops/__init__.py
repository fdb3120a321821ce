"""The isotropic convolution as an operator: check, choose an engine, run.

Every engine is a module with ``can_run(input, weight, spec) -> reason | None`` and ``run(input, weight, bias, spec) ->
output``. The reference engine can always run and is the truth that the others are tested against."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isoconv._checks import count_of, did_you_mean
from isoconv.ops import numba_cpu, reference, triton_cuda
from isoconv.ops.resampling import is_exported
from isoconv.ops.spec import ConvSpec as ConvSpec
from isoconv.ops.spec import conv_spec as conv_spec

__all__ = ["ENGINES", "ConvSpec", "check_engine", "conv_spec", "is_eager", "sre_conv"]

ENGINES: dict[str, ModuleType] = {"reference": reference, "numba": numba_cpu, "triton": triton_cuda}
"""Engines by name."""


def check_engine(engine: str) -> str:
    """``engine`` if there is one of that name (or ``"auto"``)."""
    if engine != "auto" and engine not in ENGINES:
        known = ("auto", *ENGINES)
        raise ValueError(f"unknown engine {engine!r}: expected one of {', '.join(known)}{did_you_mean(engine, known)}")
    return engine


def sre_conv(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, *, engine: str = "auto") -> Tensor:
    """Isotropic convolution of ``input`` (N, C_in, *spatial) or (C_in, *spatial).

    Args:
        input: floating point, of the device and, autocast aside, the dtype of ``weight``.
        weight: (C_out, C_in / groups, bands), or (C_in, C_out / groups, bands) if ``spec.transposed``.
        bias: (C_out,), of the same, or None.
        spec: geometry and hyperparameters, from :func:`conv_spec`.
        engine: ``"auto"`` or a key of :data:`ENGINES`.

    Raises:
        ValueError, TypeError: if shapes, devices or dtypes do not fit together; the message names what was expected and
            what came.
        NotImplementedError: if the named engine cannot run this call; the message says why.
    """
    _check_arguments(input, weight, bias, spec)
    chosen = _choose(input, weight, spec, engine)
    unbatched = input.dim() == spec.plan.dims + 1
    output = ENGINES[chosen].run(input.unsqueeze(0) if unbatched else input, weight, bias, spec)
    return output.squeeze(0) if unbatched else output


def _choose(input: Tensor, weight: Tensor, spec: ConvSpec, engine: str) -> str:
    if engine == "auto":
        for name, fast in (("numba", numba_cpu), ("triton", triton_cuda)):
            if _obstacle(name, input, weight, spec) is None and fast.is_faster(input, weight, spec):
                return "reference" if is_exported() else name
        return "reference"
    reason = _obstacle(check_engine(engine), input, weight, spec)
    if reason is not None:
        raise NotImplementedError(
            f"engine={engine!r} cannot run this convolution: {reason}; use engine='auto' or 'reference'"
        )
    return engine


def _obstacle(engine: str, input: Tensor, weight: Tensor, spec: ConvSpec) -> str | None:
    """Why ``engine`` cannot run this call."""
    reason = ENGINES[engine].can_run(input, weight, spec)
    if reason is None and engine != "reference" and not torch.compiler.is_compiling() and _is_transformed():
        return "torch.func transforms and forward-mode derivatives need the reference engine"
    return reason


def is_eager(*tensors: Tensor) -> bool:
    """Whether nobody watches, traces, compiles or transforms what is done to these ``tensors``, autograd aside."""
    return numba_cpu.is_direct(*tensors) and not _is_transformed()


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _check_arguments(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> None:
    n, given = spec.plan.dims, {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != input.device:
            raise ValueError(f"input is on {input.device} but {name} on {tensor.device}: move one of them with .to()")
    if input.dim() not in (n + 1, n + 2):
        raise ValueError(
            f"expected an input of {n + 2} dimensions (N, C, {n} spatial) or {n + 1} (unbatched), "
            f"got shape {tuple(input.shape)}"
        )
    if weight.dim() != 3 or weight.shape[2] != spec.plan.bands:
        bands = count_of(spec.plan.bands, "band")
        raise ValueError(f"expected a weight (out, in / groups, {bands}), got shape {tuple(weight.shape)}")
    channels = input.shape[-n - 1]
    expected = weight.shape[0] if spec.transposed else weight.shape[1] * spec.groups
    if channels != expected:
        raise ValueError(
            f"expected an input of {count_of(expected, 'channel')}, got {channels} (input shape {tuple(input.shape)})"
        )
    if weight.shape[0] % spec.groups:
        raise ValueError(f"the weight's first axis ({weight.shape[0]}) must be a multiple of groups={spec.groups}")
    outputs = weight.shape[1] * spec.groups if spec.transposed else weight.shape[0]
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"expected a bias of shape ({outputs},), got {tuple(bias.shape)}")
    kind = input.device.type
    for name, tensor in given.items():
        if tensor.dtype != input.dtype and (kind == "meta" or not torch.is_autocast_enabled(kind)):
            raise TypeError(
                f"input is {input.dtype} but {name} is {tensor.dtype}: convert one of them, or use torch.autocast"
            )
