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
    a = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1] * 20)
    b = torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 1] * 20)
    d = a - b
    result = paired_difference(a, b)
    z = d.mean().item() / (d.std().item() / math.sqrt(len(d)))
    assert result.mean == pytest.approx(0.125)
    assert result.p == pytest.approx(2 * (1 - torch.special.ndtr(torch.tensor(z, dtype=torch.float64)).item()))
    assert result.low == pytest.approx(0.125 - 1.96 * d.std().item() / math.sqrt(160))
    assert paired_difference(b, a) == pytest.approx((-result.mean, -result.high, -result.low, result.p))


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
    # Demsar, JMLR 7 (2006), section 3.2.2: 14 data sets, chi-squared 9.28 with 3 degrees of freedom
    statistic_p = friedman([3.143, 2.000, 2.893, 1.964], 14)
    assert statistic_p == pytest.approx(0.0258, abs=5e-4)
    assert friedman([2.0, 2.0, 2.0], 5) == 1.0


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
