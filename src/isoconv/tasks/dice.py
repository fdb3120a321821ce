"""Dice from whole numbers of each image, so that it is known for any choice of images, and tests of it.

Dice of a class is ``2 |P T| / (|P| + |T|)``, P being the pixels that are given its label and T those that have it.
Pooled Dice takes the sums over all images first, so that an image without the class is no special case, and one that
shows little of it has little weight. Counts are int64 (..., N, K, 3): ``|P T|``, ``|P|`` and ``|T|`` of N images and K
classes, 0 being the background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isoconv.tasks.metrics import draws

__all__ = ["bootstrap", "count", "foreground", "permutation_test", "pooled"]

_CHUNK = 100  # permutations at once: bounds the memory


def count(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """Counts (N, K, 3) of label numbers (N, *pixels) that were found and that are true."""
    labels = torch.arange(classes, device=found.device)[:, None]
    p, t = (x.flatten(1)[:, None] == labels for x in (found, true))
    return torch.stack([pixels.sum(2) for pixels in (p & t, p, t)], dim=-1)


def pooled(counts: Tensor) -> Tensor:
    """Pooled Dice, float64 (..., K), of counts (..., N, K, 3); NaN for a class that is neither there nor found."""
    return _dice(counts.sum(-3))


def foreground(dice: Tensor) -> Tensor:
    """Mean (...) over the classes (..., K) but the background; NaN is left out."""
    return dice[..., 1:].nanmean(-1)


def bootstrap(counts: Tensor, resamples: int = 1000, seed: int = 0) -> Tensor:
    """Pooled Dice, float64 (resamples, ..., K), of sets of images drawn with replacement from counts (..., N, K, 3).

    The same N and seed always give the same draws, so that differences between networks are paired."""
    return _dice(torch.cat([_sums(times, counts) for times in draws(counts.shape[-3], resamples, seed)]))


def permutation_test(
    a: Tensor, b: Tensor, score: Callable[[Tensor], Tensor], permutations: int = 9999, seed: int = 0
) -> list[float]:
    """Paired permutation test of two networks on the same images (approximate randomisation: Noreen, Computer-intensive
    methods for testing hypotheses, 1989; for F-scores, of which Dice is one, Yeh, COLING 2000).

    Were the networks alike, it would be chance which of them found which mask of an image. So the masks of each image
    are swapped, or not, at random. Unlike the Wilcoxon signed-rank test this needs no Dice of single images, which is
    undefined where a class is absent: it tests the difference of pooled Dice itself.

    Args:
        a, b: counts (positions, N, K, 3); an image is swapped in all positions.
        score: pooled Dice (..., positions, K) to the scores (..., S) to be tested.

    Returns:
        Of each of the S scores p, two-sided: the share of permutations, the identity being one, in which the networks
        differ at least as much as they do.
    """
    generator = torch.Generator().manual_seed(seed)
    gain, sums = b - a, (a.sum(-3), b.sum(-3))

    def difference(moved: Tensor | int) -> Tensor:
        return (score(_dice(sums[0] + moved)) - score(_dice(sums[1] - moved))).abs()

    observed = difference(0)
    reached = torch.ones(observed.shape, dtype=torch.int64)
    for start in range(0, permutations, _CHUNK):
        shape = (min(_CHUNK, permutations - start), a.shape[-3])
        swapped = torch.randint(2, shape, generator=generator)
        reached += (~(difference(_sums(swapped, gain)) < observed - 1e-12)).sum(0)
    return (reached.double() / (1 + permutations)).tolist()


def _dice(sums: Tensor) -> Tensor:
    overlap, found, true = sums.double().unbind(-1)
    return 2 * overlap / (found + true)


def _sums(weights: Tensor, counts: Tensor) -> Tensor:
    """Counts (..., N, K, 3) summed over images with weights (R, N): float64 (R, ..., K, 3)."""
    images = counts.movedim(-3, 0)
    return (weights.double() @ images.flatten(1).double()).view(len(weights), *images.shape[1:])
