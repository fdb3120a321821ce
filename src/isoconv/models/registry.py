"""The registry of models: build one by name, list them, and find out what one is and how it was built."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from isoconv._checks import check_options, did_you_mean
from isoconv.models.pretrained import adopt, check_as_trained, pretrained_options, pretrained_state
from isoconv.symmetry import GridGroup

__all__ = ["ModelInfo", "create_model", "list_models", "model_config", "model_info", "register_model"]

_TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a registered model.

    Attributes:
        name: as :func:`create_model` takes it.
        dims: spatial axes of its images, 2 or 3.
        task: ``"classification"`` where its outputs are a vector for each image, of classes or of numbers;
            ``"segmentation"`` where they are one for each pixel.
        family: the same network for images and for volumes has one family, see :meth:`twin`.
        build: makes it, from ``in_channels``, ``num_classes`` and its options.
        symmetry: to what its outputs are exactly invariant, or equivariant where they have pixels, at every input size;
            of its options if these decide, see :meth:`symmetry_with`.
        lr: highest learning rate of recipe modern that suits it.
    """

    name: str
    dims: int
    task: str
    family: str
    build: Callable[..., nn.Module]
    symmetry: GridGroup | Callable[[Mapping[str, Any]], GridGroup]
    lr: float

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def symmetry_with(self, options: Mapping[str, Any]) -> GridGroup:
        """Its symmetry if built with ``options``; :func:`model_config` gives such, what else that holds is left
        aside."""
        if isinstance(self.symmetry, GridGroup):
            return self.symmetry
        return self.symmetry({name: options.get(name, default) for name, default in self.options.items()})

    def twin(self, dims: int) -> str | None:
        """Name of the model of the same family for images of ``dims`` axes; None if there is none."""
        return next((m.name for m in _MODELS.values() if (m.family, m.dims) == (self.family, dims)), None)


_MODELS: dict[str, ModelInfo] = {}


def register_model(
    name: str,
    build: Callable[..., nn.Module],
    *,
    dims: int,
    task: str,
    symmetry: str | Callable[[Mapping[str, Any]], GridGroup],
    family: str | None = None,
    lr: float = 3e-3,
) -> None:
    """Make ``create_model(name, in_channels, num_classes, **options)`` call ``build``, whose signature declares the
    options.

    Args:
        name: a new one.
        build: takes ``in_channels`` and ``num_classes``, and its options as keyword-only arguments.
        dims, task: as in :class:`ModelInfo`.
        symmetry: as in :class:`ModelInfo`; a :class:`isoconv.symmetry.GridGroup` or its value, such as ``"none"``.
        family: as in :class:`ModelInfo`; by default its name.
        lr: as in :class:`ModelInfo`.

    Raises:
        ValueError: the name is taken, or the family has a model of these dims; or ``dims``, ``task`` or ``symmetry`` is
            none of the known ones.
    """
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is registered already")
    if dims not in (2, 3):
        raise ValueError(f"dims of model {name!r} must be 2 or 3, got {dims!r}")
    if task not in _TASKS:
        known = " or ".join(map(repr, _TASKS))
        raise ValueError(f"task of model {name!r} must be {known}, got {task!r}{did_you_mean(task, _TASKS)}")
    if not callable(symmetry):
        groups = [group.value for group in GridGroup]
        if symmetry not in groups:
            hint = did_you_mean(symmetry, groups)
            raise ValueError(f"symmetry of model {name!r} must be one of {', '.join(groups)}, got {symmetry!r}{hint}")
        symmetry = GridGroup(symmetry)
    info = ModelInfo(name, dims, task, name if family is None else family, build, symmetry, lr)
    if (other := info.twin(dims)) is not None:
        raise ValueError(f"the family {info.family!r} of model {name!r} has a model of {dims} dims already: {other!r}")
    _MODELS[name] = info


def register_family(name: str, build: Callable[..., nn.Module], **about: Any) -> None:
    """Register what ``build`` makes, given 2 or 3 dims as its first argument, as ``name`` and ``name_3d``; ``about``
    are arguments of :func:`register_model`."""
    for dims, suffix in ((2, ""), (3, "_3d")):
        register_model(name + suffix, partial(build, dims), dims=dims, family=name, **about)


def list_models(pattern: str = "*", *, dims: int | None = None, task: str | None = None) -> list[str]:
    """Names of the registered models that match a shell pattern, e.g. ``"sre_*"``, and are of these ``dims`` and this
    ``task`` (see :class:`ModelInfo`), if given."""
    return [
        name
        for name in fnmatch.filter(_MODELS, pattern)
        if dims in (None, _MODELS[name].dims) and task in (None, _MODELS[name].task)
    ]


def model_info(name: str) -> ModelInfo:
    """What is known of the model registered as ``name``.

    Raises:
        ValueError: for an unknown name, with near matches.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(_MODELS)}{did_you_mean(name, _MODELS)}")
    return _MODELS[name]


def create_model(
    name: str,
    in_channels: int | None = None,
    num_classes: int | None = None,
    *,
    pretrained: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a registered model, with fresh weights or trained ones.

    Args:
        name: one of :func:`list_models`.
        in_channels: channels of the input image; None stands for 3, or as trained.
        num_classes: number of logits; None stands for 10, or as trained.
        pretrained: a data set of :func:`isoconv.models.list_pretrained`. The network then has the trained weights, and
            its options are as trained; for another number of channels or classes see
            :func:`isoconv.models.pretrained.adopt`. It takes images (x - 0.5) / 0.5, black outside of the inscribed
            disc.
        options: of the model, as ``model_info(name).options`` has them: ``width`` and ``kernel_sizes`` of every one,
            those of :class:`isoconv.nn.SREConv2d` of the isotropic ones. See :func:`isoconv.models.resnet.sre_resnet`.

    Raises:
        ValueError: for an unknown name, with near matches; or no such network was trained, or with other options.
        TypeError: for an option that the model does not have.
    """
    info = model_info(name)
    check_options(f"model {name!r}", options, info.options)
    if pretrained is not None:
        trained = pretrained_options(name, pretrained)
        check_as_trained(options, info.options | trained, f"{name} trained on {pretrained}")
        counts = {"in_channels": in_channels, "num_classes": num_classes}
        net = create_model(name, **trained | {key: count for key, count in counts.items() if count is not None})
        adopt(net, pretrained_state(name, pretrained), f"{name} trained on {pretrained}")
        return net.eval()
    in_channels, num_classes = 3 if in_channels is None else in_channels, 10 if num_classes is None else num_classes
    model = info.build(in_channels, num_classes, **options)
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
