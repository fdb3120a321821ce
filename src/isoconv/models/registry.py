"""The registry of models: build one by name, list them, and find out how one was built."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from isoconv._checks import check_options, did_you_mean

__all__ = ["create_model", "list_models", "model_config", "register_model"]

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str, build: Callable[..., nn.Module]) -> None:
    """Make ``create_model(name, in_channels, num_classes, **options)`` call ``build``, whose signature declares the
    options."""
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is registered already")
    _MODELS[name] = build


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, e.g. ``"sre_*"`` or ``"*_3d"``."""
    return fnmatch.filter(_MODELS, pattern)


def create_model(name: str, in_channels: int = 3, num_classes: int = 10, **options: Any) -> nn.Module:
    """Build a registered model with fresh weights.

    Args:
        name: one of :func:`list_models`.
        in_channels: channels of the input image.
        num_classes: number of logits.
        options: of the model; ``width``, ``kernel_sizes``, ``stem_kernel``, ``stem_stride`` of every ResNet, and
            ``bands``, ``profile``, ``circular``, ``spacing``, ``init``, ``downsample``, ``engine`` of the isotropic
            ones. See :func:`isoconv.models.resnet.sre_resnet`.

    Raises:
        ValueError: for an unknown name, with near matches.
        TypeError: for an option that the model does not have.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(_MODELS)}{did_you_mean(name, _MODELS)}")
    known = [p.name for p in inspect.signature(_MODELS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_options(f"model {name!r}", options, known)
    model = _MODELS[name](in_channels, num_classes, **options)
    config = {"name": name, "in_channels": in_channels, "num_classes": num_classes, **options}
    # plain numbers, for it may be written as JSON
    model._isoconv_config = {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}  # type: ignore[assignment]
    return model


def model_config(model: nn.Module) -> dict[str, Any]:
    """The arguments with which :func:`create_model` built ``model``: ``create_model(**model_config(model))`` builds its
    like."""
    config = getattr(model, "_isoconv_config", None)
    if not isinstance(config, dict):
        raise ValueError(
            f"this {type(model).__name__} was not built by isoconv.create_model, its configuration is not known"
        )
    return dict(config)
