"""Tests, corrections and ranks against published numbers and definitions."""

import math

import pytest
import torch

from isoconv.report.statistics import (
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    paired_difference,
)


def test_paired_difference_is_the_t_test() -> None:
    """Student's data of 1908 on sleep: what R's documentation prints of `t.test(extra ~ group, data = sleep, paired =
    TRUE)`."""
    a = torch.tensor([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], dtype=torch.float64)
    b = torch.tensor([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4], dtype=torch.float64)
    result = paired_difference(a, b)
    assert result == pytest.approx((-1.58, -2.4598858, -0.7001142, 0.002833), abs=5e-7)
    assert paired_difference(b, a) == pytest.approx((-result.mean, -result.high, -result.low, result.p))


def test_paired_difference_of_many_images_is_the_normal_approximation() -> None:
    a = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1] * 200)
    b = torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 1] * 200)
    error = (a - b).std().item() / math.sqrt(1600)
    low, high = 0.125 - 1.96 * error, 0.125 + 1.96 * error
    p = math.erfc(0.125 / error / math.sqrt(2))
    assert paired_difference(a, b)[:3] == pytest.approx((0.125, low, high), rel=1e-3)
    assert paired_difference(a, b).p == pytest.approx(p, rel=0.1)


def test_paired_difference_without_variation() -> None:
    same = torch.ones(5)
    assert paired_difference(same, same) == (0.0, 0.0, 0.0, 1.0)
    assert paired_difference(same, same * 0) == (1.0, 1.0, 1.0, 0.0)
    assert paired_difference(same[:1], same[:1] * 0).p == 1.0


def test_false_alarms_are_as_frequent_as_they_should_be() -> None:
    draws = (torch.rand(2000, 2, 150) < 0.8).double()
    alarms = sum(paired_difference(a, b).p < 0.05 for a, b in draws)
    assert 60 < alarms < 140  # 100 expected, deviation 9.7


def test_average_ranks_share_ties() -> None:
    assert average_ranks([[0.9, 0.8, 0.8], [0.5, 0.7, 0.6]]) == [2.0, 1.75, 2.25]


def test_friedman() -> None:
    """Hollander and Wolfe (1973), p. 140: three ways of rounding first base, 22 players, ties among them. R's
    `friedman.test` gives chi-squared 11.143 with 2 degrees of freedom, p 0.003805."""
    seconds = [
        [5.40, 5.50, 5.55], [5.85, 5.70, 5.75], [5.20, 5.60, 5.50], [5.55, 5.50, 5.40], [5.90, 5.85, 5.70],
        [5.45, 5.55, 5.60], [5.40, 5.40, 5.35], [5.45, 5.50, 5.35], [5.25, 5.15, 5.00], [5.85, 5.80, 5.70],
        [5.25, 5.20, 5.10], [5.65, 5.55, 5.45], [5.60, 5.35, 5.45], [5.05, 5.00, 4.95], [5.50, 5.50, 5.40],
        [5.45, 5.55, 5.50], [5.55, 5.55, 5.35], [5.45, 5.50, 5.55], [5.50, 5.45, 5.25], [5.65, 5.60, 5.40],
        [5.70, 5.65, 5.55], [6.30, 6.30, 6.25],
    ]  # fmt: skip
    assert friedman(seconds) == pytest.approx(0.003805, abs=5e-7)


def test_friedman_has_nothing_to_say() -> None:
    assert friedman([[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]]) == 1.0
    assert friedman([[0.5, 0.6], [0.7, 0.8]]) is None


@pytest.mark.parametrize(
    ("contestants", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_difference_as_published(contestants: int, quantile: float) -> None:
    """Table 5a of Demsar, JMLR 7 (2006)."""
    expected = quantile * math.sqrt(contestants * (contestants + 1) / (6 * 14))
    assert critical_difference(contestants, 14) == pytest.approx(expected, rel=4e-4)


def test_cliques_are_the_widest() -> None:
    assert cliques([1.0, 2.0, 2.5, 4.0], 1.6) == [(1.0, 2.5), (2.5, 4.0)]
    assert cliques([1.0, 3.0], 1.0) == []
    assert cliques([1.0, 1.5, 2.0], 5) == [(1.0, 2.0)]
