"""Gradient steps of equal size for all bands."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from isoconv.bands import BandPlan
from isoconv.nn.conv import _BandedConv
from isoconv.nn.init import ring_energy

__all__ = ["precondition_"]


@torch.no_grad()
def precondition_(net: nn.Module) -> None:
    """Scale the gradient of every isotropic weight in ``net`` band by band, in place.

    For SGD, with or without momentum and weight decay: call it between ``backward()`` and ``step()``. A ring of n taps
    that share a weight collects n gradients, and what the step changes is felt at n taps again: in proportion to a
    weight that is there n times smaller than at the centre, the step is n squared times larger. One learning rate then
    is too large for the outer rings of a 9 x 9 kernel and does nothing for its centre. Scaled by
    ``taps / (bands * energy)``, energy being :func:`isoconv.nn.init.ring_energy`, the steps are those of a weight whose
    bands are all in the units of a plain convolution's; the bands and what they mean do not change.

    Adam and its like divide by the size of the gradient: for them this does nothing.
    """
    plans = {module.weight: module.plan for module in net.modules() if isinstance(module, _BandedConv)}  # each once
    for weight, plan in plans.items():
        if weight.grad is not None:
            weight.grad.mul_(_scale(plan, weight.grad.device, weight.grad.dtype))


@lru_cache(maxsize=1024)
def _scale(plan: BandPlan, device: torch.device, dtype: torch.dtype) -> Tensor:
    taps = math.prod(plan.kernel_size)
    return torch.tensor([taps / (plan.bands * energy) for energy in ring_energy(plan)], device=device, dtype=dtype)
