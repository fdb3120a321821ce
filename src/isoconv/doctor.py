"""Which layers of a network break its symmetry: measured on the running network, with the reason and the remedy."""

from __future__ import annotations

import html
import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from isoconv.convert import convert
from isoconv.convert.conversion import check_module
from isoconv.convert.rules import BANDED, CONVERTIBLE, CONVS, DEPENDS, ISOTROPIC, TRANSPOSED, UNAFFECTED, kind, layers
from isoconv.symmetry import Symmetry, circular_mask, rotate

__all__ = ["Diagnosis", "Finding", "LayerDiagnosis", "doctor"]

FREE_ANGLE_LIMIT = 0.25  # on smooth images isotropic layers, ReLU and symmetric pooling lose less, others more
COST_NOTE = "Multiply-adds: of convolutions and linear layers, for the input given; an isotropic layer has one per band."


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer that ran.

    Attributes:
        name: its place in the network, as in ``named_modules``.
        type: name of its class.
        shape: of its output for the input given; empty if that is no tensor.
        own: for each symmetry the relative error that the layer adds, fed what it is fed, turned; the worst over sizes.
            None where that has no spatial axes that are known to be such.
        total: the relative error of its output when the input of the network is turned: its own and all before it.
        breaks: the symmetries that the layer itself breaks.
        sizes: spatial sizes of the network's input at which it does so.
        status, reason, remedy: as in :class:`isoconv.convert.report.Row`; reason and remedy only if it breaks any.
        parameters: numbers in its own parameters.
        multiply_adds: of a convolution or linear layer, for the input given.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    own: Mapping[str, float | None]
    total: Mapping[str, float | None]
    breaks: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    status: str
    reason: str
    remedy: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Finding:
    """What became of one symmetry.

    Attributes:
        symmetry: ``"rot90"``, ``"flip"``, or that of a free angle such as ``"rot30"``.
        holds: whether the whole network has it, at all sizes.
        error, converted: relative error of the network's output, as it is and after :func:`isoconv.convert`, the worst
            over sizes; None if that was not measured.
        first: where it is lost first: name of a layer, or a place between layers; None if it holds.
        sizes: spatial sizes at which the output has lost it.
        reason, remedy: why, and what can be done.
    """

    symmetry: str
    holds: bool
    error: float | None
    converted: float | None
    first: str | None
    sizes: tuple[tuple[int, ...], ...]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found; ``str()`` makes a table of it.

    Attributes:
        network: name of its class.
        sizes: spatial sizes at which it was measured.
        tolerance: relative errors up to this are rounding.
        findings: one per symmetry.
        layers: one per layer, in the order in which they finish their work.
        parameters, multiply_adds: of the network as it is and as :func:`isoconv.convert` makes it; None if it cannot.
        notes: what could not be measured.
    """

    network: str
    sizes: tuple[tuple[int, ...], ...]
    tolerance: float
    findings: tuple[Finding, ...]
    layers: tuple[LayerDiagnosis, ...]
    parameters: tuple[int, int | None]
    multiply_adds: tuple[int, int | None]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an infinite error (the shape of an output changed) is ``"inf"``."""
        return tree_map(lambda value: "inf" if value == math.inf else value, _lists(asdict(self)))

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return _text(self)

    def to_html(self) -> str:
        """A page that needs nothing beside it."""
        return _page(self)
