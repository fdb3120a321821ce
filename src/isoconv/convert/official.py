"""Checkpoints of the official SRE-Conv code."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from isoconv._checks import count_of
from isoconv._files import open_regular
from isoconv.convert.conversion import check_module
from isoconv.convert.windows import BANDED, Module

_INDEX = "weight_index_mat"  # the basis, which the official layers keep in their state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_SHOWN = 3
# what torch.load and safetensors raise for a file that is cut short, damaged or no checkpoint
_UNREADABLE = (
    *(RuntimeError, EOFError, LookupError, ValueError, AssertionError, OSError, TypeError, AttributeError),
    *(OverflowError, MemoryError, struct.error, pickle.UnpicklingError, SafetensorError),
)

Net = TypeVar("Net", bound=nn.Module)


def load_official_checkpoint(checkpoint: str | os.PathLike[str] | Mapping[str, Any], model: Net) -> Net:
    """Load weights that the official SRE-Conv code saved into ``model``, in place.

    Args:
        checkpoint: a ``.pt``, ``.pth`` or ``.safetensors`` file, or a state dict. A dict around it (``{"state_dict":
            ...}``, ``{"model": ...}``) and the prefix ``module.`` of DistributedDataParallel are taken off.
        model: a network of the same layers, e.g. ``create_model("sre_resnet18", ...)``.

    Returns:
        ``model``.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the file may not be opened.
        ValueError: if what is in the file cannot be read, or a tensor has no dense values (meta, sparse, quantized) or
            does not fit ``model``, as its bands must, too. ``model`` then is unchanged.
        TypeError: if the arguments are something else.
    """
    modules = dict(check_module(model).named_modules())
    if not isinstance(checkpoint, str | os.PathLike | Mapping):
        raise TypeError(f"expected a path or a state dict as checkpoint, got {type(checkpoint).__name__}")
    state = _unwrapped(checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint)))
    _check_dense(state, "the checkpoint", "save it anew from a network that holds its weights")
    _check_dense(model.state_dict(keep_vars=True), "the model", "give it dense weights of its own first")
    weights = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if name != _INDEX:
            weights[key] = value
        elif isinstance(modules.get(layer), BANDED):
            _check_bands(layer, modules[layer], value)
    _check_fit(weights, model)
    for name, module in modules.items():
        if isinstance(module, BANDED):  # the official weights are values of taps
            key = f"{name}.weight".lstrip(".")
            weights[key] = weights[key] * weights[key].new_tensor(module.plan.scales)
    model.load_state_dict(weights)
    return model


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: expected a .pt, .pth or .safetensors file")
    with open_regular(path) as file:
        return _parsed(file, path)


def _parsed(file: BinaryIO, path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load(file.read())
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if other := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds more than weights ({other[1]}) and is not loaded, since that could run code; if you "
                "trust it, save its state dict alone and load that"
            ) from None
        raise ValueError(
            f"{path} cannot be read: expected a state dict saved by torch.save or safetensors, got a file that is cut "
            "short or something else; copy it anew"
        ) from error


def _unwrapped(state: Any) -> dict[str, Any]:
    while isinstance(state, Mapping) and (
        inner := next((w for w in _WRAPPERS if isinstance(state.get(w), Mapping)), "")
    ):
        state = state[inner]
    if not isinstance(state, Mapping) or not state or not all(_is_weight(*item) for item in state.items()):
        known = ", ".join(map(repr, _WRAPPERS))
        raise ValueError(f"expected a state dict (names to tensors), alone or under {known}, got {_described(state)}")
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _described(state: Any) -> str:
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    other = [f"{key!r}: {type(value).__name__}" for key, value in state.items() if not _is_weight(key, value)]
    return f"a dict with {_some(other)}" if other else "an empty dict"


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _check_dense(state: Mapping[str, Tensor], owner: str, remedy: str) -> None:
    """Refuse tensors without dense values of their own, which can be neither compared nor copied."""
    for name, tensor in state.items():
        if kind := _not_dense(tensor):
            raise ValueError(f"expected dense tensors of numbers, but {name} of {owner} is {kind}; {remedy}")


def _not_dense(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return f"quantized ({tensor.dtype})"
    if tensor.is_nested:
        return "a nested tensor"
    return "" if tensor.layout == torch.strided else f"sparse or packed ({tensor.layout})"


def _check_bands(layer: str, module: Module, index: Tensor) -> None:
    """Refuse a layer whose taps the checkpoint assigns to bands in another way."""
    plan = module.plan
    if index.dim() < 2 or index.numel() != math.prod(index.shape[-2:]) or index.is_complex():
        raise ValueError(
            f"{layer}.{_INDEX} must assign taps to bands, of shape (1, 1, bands, taps), got {index.dtype} of shape "
            f"{tuple(index.shape)}; take a checkpoint of the official code"
        )
    bands, taps = index.shape[-2:]
    ours = plan.basis.reshape(plan.bands, -1) * np.array(plan.scales)[:, None]
    if taps != ours.shape[1]:
        size = round(taps ** (1 / plan.dims))
        shape = (size,) * plan.dims if size**plan.dims == taps else f"{taps} taps"
        wrong = f"kernel_size {shape}", f"{plan.kernel_size}", "kernel_sizes (or stem_kernel)"
    elif bands != plan.bands:
        wrong = count_of(bands, "band"), f"{plan.bands}", "bands (or circular)"
    elif not np.allclose(index.reshape(bands, taps).double().cpu().numpy(), ours, atol=1e-6):
        kind = f"profile={plan.profile!r}, circular={plan.circular}, spacing={plan.spacing}"
        wrong = (
            "bands that group the taps otherwise",
            f"{kind}",
            "profile='hard' (the official one), circular or spacing",
        )
    else:
        return
    theirs, got, option = wrong
    raise ValueError(
        f"layer {layer!r}: the checkpoint has {theirs}, the model {got}; build the model with other {option}"
    )


def _check_fit(weights: dict[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    unreal = [
        key for key, value in weights.items() if key in expected and value.is_complex() > expected[key].is_complex()
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "complex": unreal}
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in wrong.items() if keys)
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}, build the model it was saved from: {told}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
