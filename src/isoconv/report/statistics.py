"""What differences between contestants mean: paired tests, their correction, and ranks over data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Difference", "average_ranks", "cliques", "critical_difference", "friedman", "paired_difference"]


class Difference(NamedTuple):
    """Mean of a - b with its 95 % interval and two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(a: Tensor, b: Tensor) -> Difference:
    """Compare two contestants image by image.

    Args:
        a, b: (N,) score of each image, such as the share of seeds and rotations in which it is decided rightly.

    Returns:
        The mean difference with the paired t-test in its normal approximation, which is good from some 50 images on.
        It accounts for the chance in the choice of test images, not for that in the training.
    """
    difference = a.double() - b.double()
    mean, n = difference.mean().item(), len(difference)
    error = difference.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    if math.isnan(error):
        return Difference(mean, -1.0, 1.0, 1.0)
    return Difference(mean, mean - 1.96 * error, mean + 1.96 * error, math.erfc(abs(mean / error) / math.sqrt(2)))


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """Mean rank of each contestant over data sets, 1 the best, ties sharing their ranks.

    Args:
        scores: a row per data set, a column per contestant, larger is better.
    """
    table = torch.tensor(scores, dtype=torch.float64)
    above = (table[:, None, :] > table[:, :, None]).sum(2)
    equal = (table[:, None, :] == table[:, :, None]).sum(2)
    return (above + (equal + 1) / 2).mean(0).tolist()


def friedman(ranks: Sequence[float], datasets: int) -> float:
    """p of Friedman's test that all contestants are alike, from their average ranks (chi-squared approximation)."""
    k = len(ranks)
    statistic = 12 * datasets / (k * (k + 1)) * (sum(r * r for r in ranks) - k * (k + 1) ** 2 / 4)
    half = torch.tensor([(k - 1) / 2, max(0.0, statistic) / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def critical_difference(contestants: int, datasets: int, level: float = 0.05) -> float:
    """Average ranks that differ by more are told apart by Nemenyi's test (Demsar, JMLR 7, 2006)."""
    quantile = _range_quantile(contestants, 1 - level) / math.sqrt(2)
    return quantile * math.sqrt(contestants * (contestants + 1) / (6 * datasets))


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """The widest intervals of ranks (best, worst) within which no two contestants are told apart."""
    ordered = sorted(ranks)
    reach = [(low, max(high for high in ordered if high - low <= difference)) for low in ordered]
    spans = [(low, high) for low, high in dict.fromkeys(reach) if high > low]
    return [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]


def _range_quantile(k: int, probability: float) -> float:
    """Quantile of the range of ``k`` standard normal numbers, by bisection on its distribution function."""
    z = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = (torch.special.ndtr(z + middle) - torch.special.ndtr(z)).clamp_min(0) ** (k - 1)
        if k * torch.trapezoid(density * inside, z).item() < probability:
            low = middle
        else:
            high = middle
    return high
