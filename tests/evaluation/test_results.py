"""What an evaluation left is checked against its run before anything is said of it."""

from collections.abc import Callable

import numpy as np
import pytest

from isoconv.evaluation.results import recorded
from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]
Arrays = dict[str, np.ndarray]


def test_records_are_those_of_the_file(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    kept = recorded(run, "standard")
    with np.load(run.path / "predictions.npz") as archive:
        assert np.array_equal(kept.records.numpy(), archive["standard_logits"])
        assert [position.name for position in kept.positions] == archive["standard_conditions"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("standard_labels"), r"predictions\.npz has no standard_labels; do it again: isoconv evaluate"),
        (lambda a: a.update(standard_conditions=a["standard_conditions"][::-1]), "in other positions than protocol"),
        (lambda a: a.update(standard_logits=a["standard_logits"][:-1]), r"shape \(38, 40, 5\) for 39 positions and 40"),
        (lambda a: a.update(standard_logits=a["standard_logits"][..., :3]), r"numbers \(positions, images, 5\)"),
        (lambda a: a.update(standard_logits=a["standard_logits"].astype(int)), r"logits must be numbers"),
        (lambda a: a.update(standard_labels=a["standard_labels"] + 3), r"labels must lie in 0\.\.4"),
        (lambda a: a.update(standard_labels=a["standard_labels"] * 1.0), "labels must be whole numbers of 40 images"),
        (lambda a: a.update(standard_labels=np.array("x")), "for labels <U1"),
    ],
)
def test_arrays_of_something_else(evaluated: Evaluated, change: Callable[[Arrays], object], message: str) -> None:
    run = evaluated("sre")
    arrays = run.arrays("predictions.npz")
    change(arrays)
    np.savez(run.path / "predictions.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        recorded(run, "standard")
