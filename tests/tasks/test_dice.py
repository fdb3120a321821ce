"""Dice from counts: pooled as torchmetrics does it, resampled as a test set of its own, tested by swapping images."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.segmentation import DiceScore

from isoconv.tasks.dice import bootstrap, count, foreground, permutation_test, pooled
from isoconv.tasks.metrics import draws


def masks(images: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (images, 5, 6), generator=torch.Generator().manual_seed(seed))


def test_counts_by_hand() -> None:
    found, true = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 0], [2, 1]]], dtype=torch.uint8)
    assert count(found, true, 4).tolist() == [[[1, 1, 2], [0, 1, 1], [1, 2, 1], [0, 0, 0]]]


@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 1000))
def test_pooled_dice_is_that_of_torchmetrics(images: int, classes: int, seed: int) -> None:
    found, true = masks(images, classes, seed), masks(images, classes, seed + 1)
    metric = DiceScore(classes, average="none", aggregation_level="global", input_format="index")
    torch.testing.assert_close(pooled(count(found, true, classes)), metric(found, true).double(), rtol=1e-6, atol=0)


def test_a_class_that_is_nowhere_is_left_out() -> None:
    dice = pooled(torch.tensor([[[4, 4, 4], [1, 2, 2], [0, 0, 0]]]))
    assert dice[2].isnan()
    assert foreground(dice) == 0.5


def test_bootstrap_pools_each_resample_as_a_test_set() -> None:
    counts = torch.stack([count(masks(7, 3, i), masks(7, 3, 9), 3) for i in range(2)])  # two positions
    samples = bootstrap(counts, resamples=130, seed=5)
    assert samples.shape == (130, 2, 3)
    for sample, times in zip(samples, torch.cat(list(draws(7, 130, 5))), strict=True):
        drawn = torch.arange(7).repeat_interleave(times.long())
        torch.testing.assert_close(sample, pooled(counts[:, drawn]))


def upright(dice: Tensor) -> Tensor:
    return foreground(dice)[..., :1]


def test_permutation_test_counts_all_swaps() -> None:
    """Of 8 images, all 256 ways to swap them are known."""
    true = masks(8, 3, 0)
    a, b = (count(masks(8, 3, seed), true, 3)[None] for seed in (1, 3))
    differences = []
    for swaps in itertools.product([False, True], repeat=8):
        swapped = torch.tensor(swaps)[:, None, None]
        differences.append(upright(pooled(torch.where(swapped, b, a))) - upright(pooled(torch.where(swapped, a, b))))
    expected = (torch.cat(differences).abs() >= differences[0].abs() - 1e-12).double().mean().item()
    assert 0.01 < expected < 0.2
    assert permutation_test(a, b, upright) == pytest.approx([expected], abs=0.01)
    assert permutation_test(b, a, upright) == permutation_test(a, b, upright)


def test_permutation_test_of_equal_networks_and_of_the_best_and_the_worst() -> None:
    true = masks(20, 3, 0)
    perfect, wrong = count(true, true, 3)[None], count((true + 1) % 3, true, 3)[None]
    assert permutation_test(perfect, perfect, upright, permutations=250) == [1]
    assert permutation_test(perfect, wrong, upright, permutations=250) == [1 / 251]


def test_permutation_test_says_nothing_where_there_is_no_dice() -> None:
    empty = torch.tensor([[[9, 9, 9], [0, 0, 0]]]).expand(1, 5, 2, 3)
    assert permutation_test(empty, empty, upright, permutations=50) == [1]
