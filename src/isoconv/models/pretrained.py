"""Trained networks that come with isoconv, by the name of what they were trained on.

Each is a run directory without its checkpoints, ``trained/DATA/NETWORK`` beside this file, with a model card and, where
the licence of the images allows it, a few example images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from isoconv._checks import did_you_mean

__all__ = [
    "adopt",
    "check_as_trained",
    "list_pretrained",
    "pretrained_folder",
    "pretrained_options",
    "pretrained_state",
]

_TRAINED = Path(__file__).with_name("trained")
_FIRST = ("steerable", "sre")  # of the networks of one data set


def list_pretrained() -> dict[str, list[str]]:
    """Networks by the name of the data set; the first is what the name alone stands for."""
    folders = sorted(_TRAINED.glob("*/*/model.json"), key=lambda path: (path.parts[-3], _rank(path.parts[-2])))
    found: dict[str, list[str]] = {}
    for path in folders:
        found.setdefault(path.parts[-3], []).append(path.parts[-2])
    return found


def _rank(network: str) -> tuple[int, str]:
    family = network.partition("_")[0]
    return (_FIRST.index(family) if family in _FIRST else len(_FIRST)), network


def pretrained_folder(name: str) -> Path | None:
    """The run directory of ``"DATA"`` or ``"DATA/NETWORK"``; None if no such network comes with isoconv."""
    data, _, network = name.partition("/")
    networks = list_pretrained().get(data, [])
    if not networks or (network and network not in networks):
        return None
    return _TRAINED / data / (network or networks[0])


def pretrained_options(network: str, data: str) -> dict[str, Any]:
    """The arguments of :func:`isoconv.create_model` with which the ``network`` trained on ``data`` was built.

    Raises:
        ValueError: there is none, with those there are.
    """
    known = list_pretrained()
    if network not in known.get(data, []):
        there = [f"{each} on {name}" for name, networks in known.items() for each in networks]
        near = did_you_mean(data, known)
        raise ValueError(
            f"no {network} trained on {data!r} comes with isoconv: there are {', '.join(there) or 'none'}{near}"
        )
    options = json.loads((_TRAINED / data / network / "model.json").read_text())["model"]
    return {key: value for key, value in options.items() if key != "name"}


def pretrained_state(network: str, data: str) -> dict[str, Tensor]:
    """Its weights."""
    return load_file(_TRAINED / data / network / "model.safetensors")


def check_as_trained(given: Mapping[str, Any], trained: Mapping[str, Any], source: str) -> None:
    """Raises ValueError where options that are ``given`` are not those that ``source`` was ``trained`` with."""
    for name, value in given.items():
        if (has := trained.get(name)) != (list(value) if isinstance(has, list) else value):
            raise ValueError(f"{source} has {name}={has!r}, got {value!r}; leave it out")


@torch.no_grad()
def adopt(net: nn.Module, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Load the weights of a trained network into one that may differ from it in its channels and outputs.

    Weights for three channels are summed for a grey image, which then counts as one whose colours are alike. What makes
    outputs of features keeps its fresh weights where their number differs.

    Args:
        net: changed in place.
        source: what ``state`` is of, for the error.

    Returns:
        The names of the weights that stay fresh.

    Raises:
        ValueError: the two differ in more, and ``net`` is unchanged.
    """
    own = net.state_dict()
    taken, fresh = {}, []
    for name, value in own.items():
        given = state.get(name)
        if given is not None and given.shape == value.shape:
            taken[name] = given
        elif given is not None and value.shape == (*given.shape[:1], 1, *given.shape[2:]):
            taken[name] = given.sum(1, keepdim=True)
        elif given is not None and given.shape[1:] == value.shape[1:] and name.rpartition(".")[0] == _head(own):
            fresh.append(name)
        else:
            shapes = f"{tuple(value.shape)} here and {'nothing' if given is None else tuple(given.shape)} there"
            raise ValueError(f"the network is not that of {source}: {name} is {shapes}; build it with the same options")
    if extra := state.keys() - own.keys():
        raise ValueError(f"the network is not that of {source}, which has {min(extra)}; build it with the same options")
    net.load_state_dict(own | taken)
    return fresh


def _head(state: Mapping[str, Tensor]) -> str:
    """The last layer."""
    return list(state)[-1].rpartition(".")[0]
