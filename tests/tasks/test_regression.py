"""Regression: scores against formulas and scipy, outputs in the unit of the targets, and data that tell numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from isoconv.data import Task, get_task, load, own
from isoconv.evaluation.protocols import conditions
from isoconv.runs import OnImages
from isoconv.tasks import task_of
from isoconv.tasks.regression import Regression

pil = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra 'study'")


@pytest.fixture
def task() -> Regression:
    return Regression(Task("cells", "Cells", "regression", 2, 1, ("size", "age"), (0, 0, 40), "MIT"))


@pytest.fixture
def truth() -> Tensor:
    return torch.randn(40, 2) * torch.tensor([3.0, 50.0]) + torch.tensor([10.0, -200.0])


def test_scores_are_those_of_the_formulas(task: Regression, truth: Tensor) -> None:
    found = truth + torch.randn(40, 2)
    ((row,), _) = task.table(found[None], truth)
    error = (found - truth).double().numpy()
    assert row["mae"] == pytest.approx(np.abs(error).mean())
    assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean(0)).mean())
    assert row["r2"] == pytest.approx(np.mean(1 - (error**2).mean(0) / truth.double().numpy().var(0)))
    each = [stats.pearsonr(found[:, i], truth[:, i]).statistic for i in range(2)]
    assert row["correlation"] == pytest.approx(np.mean(each), abs=1e-5)
    assert row["mae_ci"][0] < row["mae"] < row["mae_ci"][1]


def test_limits_of_agreement_hold_what_they_should(task: Regression, truth: Tensor) -> None:
    found = truth + 2 + torch.randn(40, 2)
    details = task.details(found[None], truth, conditions("standard", 2)[:1], [])["targets"]
    difference = (found - truth)[:, 1].double().numpy()
    assert details["age"]["upright_bias"] == pytest.approx(difference.mean())
    low, high = details["age"]["upright_lower_limit"], details["age"]["upright_upper_limit"]
    assert (low, high) == pytest.approx(
        (difference.mean() - 1.96 * difference.std(ddof=1), difference.mean() + 1.96 * difference.std(ddof=1))
    )
    json.dumps(details, allow_nan=False)


def test_spread_is_the_deviation_over_turns(task: Regression, truth: Tensor) -> None:
    records = torch.stack([truth, truth + 1, truth - 1])
    assert task.over_turns(records, truth)["spread"] == pytest.approx(1.0)
    assert task.agreements(records).mean(1).tolist() == pytest.approx([0, 1, 1])


def test_outputs_are_in_the_unit_of_the_targets(task: Regression, truth: Tensor) -> None:
    """What the network itself gives has mean 0 and deviation 1 for perfect answers."""

    class Knows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (truth - truth.mean(0)) / truth.std(0, correction=0)

    model = OnImages(Knows(), masked=False, outputs=task.output_scale(truth))
    torch.testing.assert_close(model(torch.rand(40, 1, 4, 4)), truth)
    loss = task.losses["l2"]
    far = task.validation_loss(model, loss, truth + torch.tensor([3.0, 0.0]), truth)
    assert far == pytest.approx((9 / truth[:, 0].var(correction=0) / 2).item(), rel=1e-4)  # in deviations


def test_targets_that_never_differ_have_no_r2(task: Regression) -> None:
    same = torch.full((5, 2), 3.0)
    ((row,), _) = task.table(torch.randn(1, 5, 2), same)
    assert row["r2"] is None
    assert "size is the same for all test images: without R² and correlation" in task.notes(torch.randn(5, 2), same)
    assert (
        "each of size, age is the same for every image, whatever it shows: that this is invariant says nothing"
        in task.notes(same, same)
    )


def test_pairs_follow_the_sign_flip_test(task: Regression, truth: Tensor) -> None:
    """A better network by a constant: with 40 images of one sign p is as small as the permutations allow."""
    good, bad = (task.prepared((truth + e).expand(3, -1, -1), truth) for e in (0.5, 1.0))
    pair = task.paired(good, bad)
    assert pair["upright_p"] == pair["rotated_mean_p"] == pytest.approx(2 / 10000, rel=1.1)
    assert pair["upright_difference_ci"] == pytest.approx([-0.5, -0.5], abs=1e-4)


# Data


def table(folder: Path, head: str, rows: list[str]) -> Path:
    for i in range(len(rows)):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12), np.uint8)
        pil.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "set.csv").write_text("\n".join([f"path,{head}", *(f"{i}.png,{row}" for i, row in enumerate(rows))]))
    return folder / "set.csv"


def test_columns_of_numbers_are_the_targets(tmp_path: Path) -> None:
    path = table(tmp_path, "size,age", [f"{i / 2},{-i}" for i in range(20)])
    data = load(str(path), 8)
    assert (data.task.kind, data.task.labels) == ("regression", ("size", "age"))
    assert data.train.labels.dtype == torch.float32
    assert torch.equal(data.train.labels[:, 1], -2 * data.train.labels[:, 0])
    assert task_of(data.task).name == "regression"


def test_labels_are_numbers_if_some_are_no_whole_ones_or_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "fractions").mkdir()
    path = table(tmp_path / "fractions", "label", [f"{i}.5" for i in range(10)])
    assert get_task(str(path)).kind == "regression"
    path = table(tmp_path, "label", [str(i % 3) for i in range(30)])
    assert get_task(str(path)).kind == "multiclass"
    assert get_task(str(path), "regression").labels == ("label",)
    assert get_task(str(tmp_path / "fractions" / "set.csv"), "regression").kind == "regression"


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("size", ["1", "two", "3"], r"row 3, column size must hold a finite number, got 'two'; name the columns"),
        ("size", ["1", "nan", "3"], "column size must hold a finite number, got 'nan'"),
        ("size", ["1", "", "3"], "column size must hold a finite number, got ''"),
        ("size,mask", ["1,a.png", "2,b.png", "3,c.png"], "must have the column path, and label, mask or columns"),
        ("size", ["4"] * 10, "all images to train with have the same size; there is nothing to learn"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path: Path, head: str, rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own.find(table(tmp_path, head, rows))


def test_archives_with_floats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{s}_images": rng.integers(0, 256, (n, 9, 9), np.uint8) for s, n in (("train", 6), ("val", 2), ("test", 3))
    }
    floats = {key.replace("images", "labels"): rng.random((len(a), 2)) for key, a in arrays.items()}
    np.savez(tmp_path / "set.npz", **arrays, **floats)
    data = load(str(tmp_path / "set.npz"), 9)
    assert (data.task.kind, data.task.labels) == ("regression", ("target 1", "target 2"))
    np.testing.assert_allclose(data.test.labels.numpy(), floats["test_labels"], rtol=1e-6)
    whole = {key: (10 * each[:, :1]).astype(int) for key, each in floats.items()}
    np.savez(tmp_path / "whole.npz", **arrays, **whole)
    assert get_task(str(tmp_path / "whole.npz"), "regression").labels == ("target 1",)
    floats["val_labels"][0, 0] = np.inf
    np.savez(tmp_path / "set.npz", **arrays, **floats)
    with pytest.raises(ValueError, match="val labels hold NaN or infinity"):
        load(str(tmp_path / "set.npz"), 9)
