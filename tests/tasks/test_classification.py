"""Classification: its losses by their formulas, what it makes of logits, and its paired tests."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from isoconv.data import Task as DataInfo
from isoconv.tasks import Classification

INFO = DataInfo("tiny", "Tiny", "multiclass", 2, 1, ("a", "b", "c"), (0, 0, 8), "MIT")
SINGLE, SEVERAL = Classification(INFO), Classification(replace(INFO, kind="multilabel"))
BINARY = Classification(replace(INFO, kind="binary", labels=("a", "b")))


def drawn(classes: int = 3, images: int = 40) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(images, classes), torch.randint(classes, (images,))


# Losses


def test_losses_of_one_label_by_their_formulas() -> None:
    logits, labels = drawn()
    chance = logits.double().softmax(1)[torch.arange(40), labels]
    formulas = {"cross_entropy": -chance.log(), "focal": -((1 - chance) ** 2) * chance.log()}
    assert formulas.keys() == SINGLE.losses.keys()
    for name, formula in formulas.items():
        assert SINGLE.losses[name](logits, labels).item() == pytest.approx(formula.mean().item(), rel=1e-4), name


def test_losses_of_several_labels_by_their_formulas() -> None:
    logits, labels = drawn()[0], torch.randint(2, (40, 3))
    chance = logits.double().sigmoid()
    right = torch.where(labels == 1, chance, 1 - chance)
    formulas = {"bce": -right.log(), "focal": -((1 - right) ** 2) * right.log()}
    assert formulas.keys() == SEVERAL.losses.keys()
    for name, formula in formulas.items():
        assert SEVERAL.losses[name](logits, labels).item() == pytest.approx(formula.mean().item(), rel=1e-4), name


def test_focal_loss_leaves_little_to_do_where_the_answer_is_sure() -> None:
    """Its share of the cross-entropy is (1 - p)^2."""
    labels = torch.zeros(1, dtype=torch.int64)
    for margin in (0.0, 2.0, 4.0):
        logits = torch.tensor([[margin, 0.0]])
        share = BINARY.losses["focal"](logits, labels) / BINARY.losses["cross_entropy"](logits, labels)
        assert share.item() == pytest.approx((1 - logits.sigmoid()[0, 0].item()) ** 2, rel=1e-4)


def test_a_loss_of_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="loss of multilabel must be one of bce, focal, got 'dice'"):
        SEVERAL.loss_name("dice")


# Scores


@pytest.mark.parametrize("scores", ["spread", "saturated"])
def test_auc_ranks_log_odds_which_never_saturate(scores: str) -> None:
    """Probabilities of 50 and of 60 are both 1: ranked by these, AUC would be that of ties."""
    labels = torch.arange(20) % 2
    s = 50 + 10.0 * labels if scores == "saturated" else labels + torch.linspace(-0.4, 0.4, 20)
    single = BINARY.validation(torch.stack([torch.zeros(20), s], 1), labels)
    several = SEVERAL.validation(s[:, None].expand(-1, 3), labels[:, None].expand(-1, 3))
    assert single["val_auc"] == several["val_auc"] == 1
    rows, _ = BINARY.table(torch.stack([torch.stack([-s, s], 1)] * 2), labels)
    assert [row["auc"] for row in rows] == [1, 1]


@pytest.mark.parametrize("digits", [0, 3])
def test_auc_is_the_share_of_pairs_in_order(digits: int) -> None:
    """As scipy counts them, ties as one half."""
    logits, labels = drawn(2)
    logits = logits.round(decimals=digits)
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    pairs = stats.mannwhitneyu(margin[labels == 1], margin[labels == 0]).statistic
    expected = pairs / ((labels == 1).sum() * (labels == 0).sum())
    assert BINARY.validation(logits, labels)["val_auc"] == pytest.approx(expected.item())


def test_agreement_is_that_of_all_labels() -> None:
    upright = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    turned = torch.tensor([[5.0, -0.1, 0.2], [1.0, 1.0, -1.0]])
    assert SEVERAL.agreements(torch.stack([upright, turned])).tolist() == [[1, 1], [1, 0]]
    assert SINGLE.agreements(torch.stack([upright, turned])).tolist() == [[1, 1], [1, 1]]


def test_the_score_of_an_image_of_several_labels_is_the_share_of_right_ones() -> None:
    logits = torch.tensor([[[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert SEVERAL.by_image(logits, labels).tolist() == [[pytest.approx(2 / 3), 0]]
    assert SEVERAL.by_image(logits, labels).mean().item() == SEVERAL.table(logits, labels)[0][0]["accuracy"]


def test_what_all_rotations_together_tell() -> None:
    """Of four images one is always right, one always the same and wrong, one right in all rotations but not upright."""
    decided = torch.tensor([[0, 1, 1, 0], [0, 1, 2, 1], [0, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(decided, 3).float()
    told = SINGLE.over_turns(logits, torch.tensor([0, 0, 2, 0]))
    assert told == {"constant": 0.5, "always_right": 0.5}


def test_the_confusion_of_upright_images_is_told() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 2], [0, 0, 0, 0]]), 3).float()
    details = SINGLE.details(logits, torch.tensor([0, 1, 2, 2]), [], [])
    assert details["upright"]["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert details["upright"]["accuracy"] == 0.75


# Pairs


def test_paired_tests_are_those_of_scipy() -> None:
    labels = torch.arange(30) % 3
    a, b = (torch.randn(5, 30, 3) + 2 * k * torch.nn.functional.one_hot(labels, 3) for k in (1, 2))
    tests = SINGLE.paired(*(SINGLE.prepared(each, labels) for each in (a, b)))
    right = [(each.argmax(-1) == labels).numpy() for each in (a, b)]
    for name, (one, other) in {
        "upright": [r[0] for r in right],
        "always_right": [r[1:].all(0) for r in right],
    }.items():
        only = (one & ~other).sum(), (other & ~one).sum()
        assert (tests[f"{name}_only_a"], tests[f"{name}_only_b"]) == only
        assert tests[f"{name}_p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    shares = [r[1:].mean(0) for r in right]
    expected = stats.permutation_test(
        (shares[0] - shares[1],), np.mean, permutation_type="samples", n_resamples=20000, rng=np.random.default_rng(1)
    )
    assert tests["rotated_mean_p"] == pytest.approx(expected.pvalue, abs=0.01)
    low, high = tests["rotated_mean_difference_ci"]
    half = 1.96 * (shares[0] - shares[1]).std() / np.sqrt(30)
    mean = (shares[0] - shares[1]).mean()
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03)


# Answers


def test_answers_of_one_label() -> None:
    (answer,) = SINGLE.answers(torch.tensor([[0.0, np.log(2.0), 0.0]]))
    assert answer == {"label": "b", "probabilities": pytest.approx({"a": 0.25, "b": 0.5, "c": 0.25})}
    cells = {f"p({name})": chance for name, chance in answer["probabilities"].items()}
    assert SINGLE.columns(answer) == {"label": "b", **cells}
    assert SINGLE.shown(answer) == {"label": "b", "probability": "50.0 %"}


def test_answers_of_several_labels() -> None:
    some, none = SEVERAL.answers(torch.tensor([[1.0, -1.0, np.log(3.0)], [-1.0, -1.0, 0.0]]))
    assert (some["label"], none["label"]) == (["a", "c"], [])
    assert some["probabilities"]["c"] == pytest.approx(0.75)
    assert SEVERAL.columns(some)["label"] == "a; c"
    assert SEVERAL.shown(some) == {"label": "a, c", "probability": "73.1 %, 75.0 %"}
    assert SEVERAL.shown(none) == {"label": None, "probability": None}


@pytest.mark.parametrize(
    ("task", "words"),
    [(SINGLE, "by softmax; decision: the largest"), (SEVERAL, "a sigmoid each; decision: each label whose probabi")],
)
def test_the_words_say_what_is_decided(task: Classification, words: str) -> None:
    assert words in task.wording.reading


# Epochs


def line(auc: float | None, acc: float, loss: float) -> dict[str, float | None]:
    return {"val_auc": auc, "val_acc": acc, "val_loss": loss}


@pytest.mark.parametrize("key", [SINGLE.goodness, SEVERAL.goodness])
def test_best_epoch_has_the_highest_auc_and_then_the_lowest_loss(key: Callable) -> None:
    epochs = [line(0.9, 0.5, 1.0), line(0.9, 0.5, 2.0), line(0.8, 0.9, 0.1)]
    assert sorted(epochs, key=key, reverse=True) == epochs
    epochs = [line(None, 0.9, 1.0), line(None, 0.9, 2.0), line(None, 0.8, 0.1)]
    assert sorted(epochs, key=key, reverse=True) == epochs


def test_the_log_says_why_there_is_no_auc() -> None:
    logits, labels = drawn()
    scores = SINGLE.validation(logits, torch.zeros_like(labels))
    assert scores["val_auc"] is None
    assert "no AUC, a class is absent from the validation split" in SINGLE.summary({**scores, "val_loss": 1.0})
    assert SINGLE.summary(line(0.5, 0.25, 1.0)) == "auc 0.5000 acc 0.2500"


# What is shown


def test_examples_are_the_first_of_each_label() -> None:
    labels = torch.tensor([2, 2, 0, 1, 0, 1])
    assert SINGLE.examples(labels, 3) == [2, 3, 0]
    assert SINGLE.examples(labels, 2) == [2, 3]
    assert SINGLE.examples(labels[:2], 3) == [0]
    several = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    assert SEVERAL.examples(several, 3) == [2, 1]  # images with one label only; no image is of c alone
    assert SEVERAL.examples(several[:1], 3) == [0]


def test_the_curve_follows_the_likeliest_label_of_the_upright_image() -> None:
    upright, turned = SINGLE.answers(torch.tensor([[0.0, 2.0, 1.0], [4.0, 0.0, 0.0]]))
    ((score, chance),) = SINGLE.curves(turned, upright, 0.0)
    assert (score.title, score.unit) == ("probability of b", "%")
    assert chance == pytest.approx(1 / (math.exp(4) + 2))
    assert (SINGLE.said(upright), SINGLE.said(turned)) == ("b", "a")


def test_several_labels_in_words() -> None:
    both, none = SEVERAL.answers(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]]))
    assert (SEVERAL.said(both), SEVERAL.said(none)) == ("a, c", "none")
    assert SEVERAL.told(torch.tensor([1, 0, 1])) == "a, c"
    assert SINGLE.told(torch.tensor(2)) == "c"
