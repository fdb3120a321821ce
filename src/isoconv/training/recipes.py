"""How a recipe changes the weights: an optimiser, and the share of its learning rate at each step.

- ``"standard"`` and ``"official"``: those of SRE-Conv (arXiv 2501.09753): SGD, momentum 0.9, weight decay 1e-3 on all
  parameters; half a cosine, lowered every step (official: every epoch).
- ``"modern"``: AdamW (arXiv 1711.05101), weight decay 0.05 on the weights of convolutions and linear maps alone; one
  cycle (arXiv 1708.07120): a tenth of the steps upwards in a line, the others down along half a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from isoconv.runs.config import MIN_LR, Recipe

__all__ = ["optimiser", "schedule"]

_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-3
_DECOUPLED_DECAY = 0.05
_WARM_UP = 0.1  # of the steps
_START = 0.04  # of the highest learning rate


def optimiser(recipe: Recipe, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """What trains ``model`` at a highest learning rate ``lr``."""
    if recipe != "modern":
        return torch.optim.SGD(model.parameters(), lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (weights if parameter.dim() > 1 else others).append(parameter)
    groups = [{"params": weights, "weight_decay": _DECOUPLED_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr)


def schedule(recipe: Recipe, lr: float, epochs: int, steps: int) -> Callable[[int], float]:
    """The share of ``lr`` at a step, ``steps`` of them in each of ``epochs``; it ends at a learning rate of 1e-6."""
    if recipe == "modern":
        return partial(one_cycle, lr=lr, steps=epochs * steps)
    return partial(cosine, lr=lr, steps=epochs * steps, every=steps if recipe == "official" else 1)


def cosine(step: int, *, lr: float, steps: int, every: int = 1) -> float:
    """Half a cosine from 1 to the share of 1e-6 over ``steps``, lowered every so many."""
    low = MIN_LR / lr
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - step % every) / steps))


def one_cycle(step: int, *, lr: float, steps: int) -> float:
    """In a line from 0.04 to 1, then :func:`cosine`."""
    rise = round(_WARM_UP * steps)
    if step < rise:
        return _START + (1 - _START) * step / rise
    return cosine(step - rise, lr=lr, steps=steps - rise)
