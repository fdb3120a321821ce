"""What all positions together say of a score: means, the worst, intervals, and nothing where nothing is known."""

import json
import math
from typing import NamedTuple

import pytest
import torch

from isoconv.evaluation.protocols import PROTOCOLS, Condition, conditions
from isoconv.tasks.scores import Score
from isoconv.tasks.summary import indices, summarise

ACCURACY, ERROR = Score("value", "accuracy"), Score("value", "error", unit="", higher_is_better=False)
OTHER = Score("auc", "AUC")


class Place(NamedTuple):
    name: str
    group: str
    right_angle: bool = False
    angle: float | None = None


PLACES = [
    Place("rot0", "rotation"),
    Place("rot45", "rotation"),
    Place("rot90", "rotation", right_angle=True),
    Place("cube1", "cube", right_angle=True),
    Place("flip_h", "flip"),
    Place("rot0_noisy", "noisy"),
    Place("rot45_noisy", "noisy"),
    Place("upright_unmasked", "unmasked"),
]
VALUES = [0.9, 0.6, 0.75, 0.5, 0.8, 0.4, 0.2, 0.95]


def rows(values: list[float | None]) -> list[dict[str, float | None]]:
    return [{"value": value, "auc": i / 10} for i, value in enumerate(values)]


def constant(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if v is None else v for v in values]).double().expand(200, -1)


def test_means_over_groups_by_hand() -> None:
    summary = summarise(PLACES, rows(VALUES), constant(VALUES), ACCURACY, [OTHER])
    expected = {
        "upright": 0.9,
        "upright_unmasked": 0.95,
        "rotated_mean": 0.75,
        "right_angles": (0.75 + 0.5) / 2,
        "flips": 0.8,
        "noisy": 0.3,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert {name: summary[f"{name}_ci"] for name in expected} == {
        name: pytest.approx([value, value]) for name, value in expected.items()
    }
    assert summary["rotated_std"] == pytest.approx(math.sqrt((0.15**2 + 0.15**2) / 3))
    assert (summary["upright_auc"], summary["rotated_auc"]) == pytest.approx((0, 0.1))
    assert summary["noisy_auc"] == pytest.approx(0.55)
    assert "flips_auc" not in summary


def test_the_worst_and_the_drop_follow_the_direction() -> None:
    """What is disturbed and what is seen whole are no rotations."""
    high, low = (summarise(PLACES, rows(VALUES), constant(VALUES), score) for score in (ACCURACY, ERROR))
    assert (high["rotated_worst"], high["rotated_worst_at"]) == (0.5, "cube1")
    assert (low["rotated_worst"], low["rotated_worst_at"]) == (0.9, "rot0")
    assert high["drop"] == pytest.approx(0.15)
    assert low["drop"] == pytest.approx(-0.15)
    assert low["drop_ci"] == pytest.approx([-0.15, -0.15])


def test_intervals_are_of_the_means() -> None:
    """Not means of intervals: of positions that vary against each other the mean hardly varies."""
    swing = torch.linspace(-0.1, 0.1, 201).double()
    samples = constant(VALUES)[:1].repeat(201, 1)
    samples[:, 1] += swing
    samples[:, 2] -= swing
    summary = summarise(PLACES, rows(VALUES), samples, ACCURACY)
    assert summary["rotated_mean_ci"] == pytest.approx([0.75, 0.75])
    assert summary["right_angles_ci"] == pytest.approx([0.625 - 0.0475, 0.625 + 0.0475])


def test_each_share_is_rounded_before_the_mean() -> None:
    values = [0.33334, 0.66666, *VALUES[2:]]
    exact, rounded = (summarise(PLACES, rows(values), constant(values), ACCURACY, decimals=n) for n in (None, 2))
    assert exact["upright"] == pytest.approx(0.33334, abs=1e-7)
    assert (rounded["upright"], rounded["rotated_mean"]) == pytest.approx((0.3333, (0.3333 + 0.6667 + 0.75) / 3))
    assert summarise(PLACES, rows(values), constant(values), ERROR, decimals=2)["upright"] == pytest.approx(0.33)


def test_what_is_unknown_is_left_out_of_means() -> None:
    values = [0.9, None, *VALUES[2:]]
    summary = summarise(PLACES, rows(values), constant(values), ACCURACY)
    assert summary["rotated_mean"] == pytest.approx((0.9 + 0.75) / 2)
    assert summary["rotated_mean_ci"] == pytest.approx([0.825, 0.825])
    assert summary["rotated_std"] is None
    nothing = summarise(PLACES, rows([None] * 8), constant([None] * 8), ACCURACY)
    assert set(nothing.values()) == {None}
    json.dumps([summary, nothing], allow_nan=False)


def test_a_mean_beside_is_none_where_one_is() -> None:
    table = rows(VALUES)
    table[1]["auc"] = None
    summary = summarise(PLACES, table, constant(VALUES), ACCURACY, [OTHER])
    assert (summary["upright_auc"], summary["rotated_auc"]) == (0, None)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_positions_of_the_protocols_have_what_is_asked(protocol: str, dims: int) -> None:
    positions: tuple[Condition, ...] = conditions(protocol, dims)
    values = torch.linspace(0.1, 0.9, len(positions)).tolist()
    summary = summarise(positions, rows(values), constant(values), ACCURACY)
    assert None not in summary.values()
    rotated = indices(positions, "rotation")
    assert summary["rotated_mean"] == pytest.approx(sum(values[i] for i in rotated) / len(rotated))
    assert summary["upright"] == pytest.approx(0.1)
