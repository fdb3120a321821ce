"""Scores: what a number is called and how it is written, in percent or in its own unit, more or less being better."""

import math

import pytest

from isoconv.tasks import TASKS
from isoconv.tasks.scores import Score, beside_scores, main_scores

SHARE = Score("accuracy", "accuracy")
ERROR = Score("mae", "mean error", unit="mm", higher_is_better=False)
PLAIN = Score("r2", "R2", unit="")


def test_a_share_is_written_in_percent() -> None:
    assert SHARE.heading == "accuracy, %"
    assert SHARE.text(0.1234) == "12.3 %"
    assert SHARE.text(0.1234, [0.1, 0.25]) == "12.3 %  (10.0 to 25.0)"
    assert SHARE.text(0.1234, sd=0.01) == "12.3 % ± 1.0"
    assert SHARE.difference(-0.051) == "-5.1"
    assert SHARE.difference(0.051, [-0.01, 0.2]) == "+5.1 (-1.0 to +20.0)"


def test_another_number_is_written_as_it_is() -> None:
    assert (ERROR.heading, PLAIN.heading) == ("mean error, mm", "R2")
    assert ERROR.text(0.12345678, [0.1, 0.2]) == "0.1235 mm  (0.1 to 0.2)"
    assert PLAIN.text(1234.5) == "1234"
    assert PLAIN.text(0.5, sd=0.25) == "0.5 ± 0.25"
    assert ERROR.difference(0.0512) == "+0.0512"
    assert ERROR.difference(-1.0, [-2.0, 0.5]) == "-1 (-2 to +0.5)"


@pytest.mark.parametrize("value", [None, math.nan])
def test_there_may_be_no_number(value: float | None) -> None:
    assert SHARE.text(value) == SHARE.number(value) == ERROR.text(value) == "-"
    assert SHARE.difference(None) == "-"


def test_the_direction() -> None:
    assert (SHARE.sign, ERROR.sign) == (1, -1)
    assert {score.sign for score in (*main_scores(ERROR), *beside_scores([ERROR]))} == {-1}


def test_a_score_in_each_group_of_positions() -> None:
    assert [(score.key, score.title) for score in main_scores(ERROR)] == [
        ("upright", "mean error upright"),
        ("rotated_mean", "mean error rotated, mean"),
        ("rotated_worst", "mean error rotated, worst"),
        ("right_angles", "mean error right angles"),
        ("flips", "mean error flips"),
    ]
    assert [(score.key, score.title, score.unit) for score in beside_scores([ERROR, PLAIN])] == [
        ("upright_mae", "mean error upright", "mm"),
        ("rotated_mae", "mean error rotated, mean", "mm"),
        ("upright_r2", "R2 upright", ""),
        ("rotated_r2", "R2 rotated, mean", ""),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_shows_its_main_score_first_and_its_agreement_once(name: str) -> None:
    task = TASKS[name]
    assert task.scores == (*main_scores(task.main), task.agreement, *beside_scores(task.others))
