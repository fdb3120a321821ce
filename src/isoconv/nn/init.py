"""Initialisation of banded weights."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from isoconv._checks import did_you_mean
from isoconv.bands import BandPlan

__all__ = ["INITS", "check_init", "init_bands_", "ring_energy"]

INITS = ("default", "official")
"""Initialisations by name."""
_CORRELATION_LENGTH = 2.5  # pixels
_CORRELATION_FLOOR = 0.6  # a rectified feature map has a mean, which every tap shares


def check_init(init: str) -> str:
    """``init`` if it is one of :data:`INITS`. Raises ValueError otherwise."""
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}: expected one of {', '.join(INITS)}{did_you_mean(init, INITS)}")
    return init


@torch.no_grad()
def init_bands_(weight: Tensor, bias: Tensor | None, plan: BandPlan, init: str) -> None:
    """Fill a banded ``weight`` (out, in / groups, bands) and its ``bias`` in place.

    Taps that share a weight add up coherently: on a smooth image a ring of n equal taps responds up to n times as
    strongly, in variance, as n independent ones. The official initialisation ignores this, and its activations grow 2
    to 3 fold in scale with every layer.

    - ``"default"``: uniform, the bound of each band such that all bands contribute the same to the output's second
      moment and together as much as a plain convolution initialised by PyTorch, for an input whose neighbouring pixels
      correlate (:func:`ring_energy`).
    - ``"official"``: uniform within ``1 / sqrt(fan_in of the dense kernel)`` for every band, as SRE-Conv does, whatever
      the norm of the rows.

    The bias is uniform within ``1 / sqrt(fan_in of the dense kernel)`` in both, as in ``torch.nn.ConvNd``.
    """
    channels = weight.shape[1]
    if not weight.numel():
        return
    dense_bound = 1 / math.sqrt(channels * math.prod(plan.kernel_size))
    if init == "official":
        bounds = [dense_bound * scale for scale in plan.scales]
    else:
        bounds = [1 / math.sqrt(channels * plan.bands * energy) for energy in ring_energy(plan)]
    weight.uniform_(-1, 1).mul_(torch.tensor(bounds, dtype=weight.dtype, device=weight.device))
    if bias is not None:
        bias.uniform_(-dense_bound, dense_bound)


@lru_cache(maxsize=1024)
def ring_energy(plan: BandPlan) -> tuple[float, ...]:
    """Expected squared response of each band to an input of unit second moment.

    The input's correlation at distance d is modelled as ``f + (1 - f) exp(-d^2 / 2 l^2)``, f being 0.6 and l 2.5
    pixels."""
    basis = plan.basis
    size = [2 * k - 1 for k in plan.kernel_size]  # all differences of two taps
    lag = np.ix_(*(np.arange(n) - n // 2 for n in size))
    correlation = _CORRELATION_FLOOR + (1 - _CORRELATION_FLOOR) * np.exp(
        -0.5 * sum(a**2 for a in lag) / _CORRELATION_LENGTH**2
    )
    axes = tuple(range(1, basis.ndim))
    spectrum = np.abs(np.fft.fftn(basis, s=size, axes=axes)) ** 2
    autocorrelation = np.fft.fftshift(np.fft.ifftn(spectrum, axes=axes).real, axes=axes)
    return tuple((autocorrelation * correlation).sum(axis=axes).tolist())
