"""Scores against direct counting and numbers worked out by hand; what is undefined is said to be so."""

import math
from itertools import product
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isoconv.tasks.metrics import (
    bootstrap,
    classification_metrics,
    correct,
    decide,
    holm,
    interval,
    margins,
    mcnemar,
    probabilities,
)


def sure(decisions: list[int], classes: int) -> Tensor:
    """Logits of a network that decides so."""
    return torch.nn.functional.one_hot(torch.tensor(decisions), classes).float() * 4


def pairwise_auc(scores: Tensor, truth: Tensor) -> float | None:
    """How often an image of the class scores above one of the rest, ties counting half."""
    pairs = list(product(scores[truth == 1].tolist(), scores[truth == 0].tolist()))
    return mean(0.5 if abs(a - b) < 1e-9 else a > b for a, b in pairs) if pairs else None


# Worked out by hand


def test_three_classes_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    scores = classification_metrics("multiclass", sure([0, 0, 0, 1, 1, 1, 2, 2], 3), labels)
    assert scores["accuracy"] == 6 / 8
    assert scores["confusion"] == [[3, 1, 0], [0, 2, 1], [0, 0, 1]]
    assert scores["per_class"]["support"] == [4, 3, 1]
    assert scores["per_class"]["recall"] == pytest.approx([3 / 4, 2 / 3, 1])
    assert scores["per_class"]["precision"] == pytest.approx([1, 2 / 3, 1 / 2])
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    assert scores["macro_f1"] == pytest.approx((6 / 7 + 2 / 3 + 2 / 3) / 3)
    assert scores["notes"] == []
    assert "quadratic_kappa" not in scores


def test_binary_by_hand() -> None:
    """Both classes have the same AUC: of 2 x 3 pairs, 4 are in order and one is a tie."""
    chances = torch.tensor([0.1, 0.6, 0.4, 0.6, 0.9])  # of class 1
    logits = torch.stack([torch.zeros(5), chances.logit()], 1)
    scores = classification_metrics("binary", logits, torch.tensor([0, 0, 1, 1, 1]))
    assert scores["per_class"]["auc"] == pytest.approx([4.5 / 6, 4.5 / 6])
    assert scores["auc"] == pytest.approx(4.5 / 6)
    assert scores["accuracy"] == pytest.approx(3 / 5)


def test_ordinal_by_hand() -> None:
    """Kappa is 1 - observed / expected squared distance, over all pairs of a label and a decision."""
    labels, decisions = [0, 1, 2, 3, 3], [0, 2, 2, 3, 1]
    scores = classification_metrics("ordinal", sure(decisions, 4), torch.tensor(labels))
    assert scores["mean_absolute_error"] == pytest.approx(3 / 5)
    expected = mean((a - b) ** 2 for a, b in product(labels, decisions))
    assert scores["quadratic_kappa"] == pytest.approx(1 - (5 / 5) / expected)


def test_kappa_of_one_class_only_is_undefined() -> None:
    scores = classification_metrics("ordinal", sure([1, 1], 3), torch.tensor([1, 1]))
    assert scores["quadratic_kappa"] is None
    assert scores["mean_absolute_error"] == 0


def test_several_labels_by_hand() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 0]])
    logits = torch.tensor([[2.0, -1.0], [-0.1, 0.1], [0.0, -2.0], [0.4, -3.0]])  # 0 is not above 0
    scores = classification_metrics("multilabel", logits, labels)
    assert scores["accuracy"] == 6 / 8
    assert scores["confusion"] == [[[1, 1], [1, 1]], [[3, 0], [0, 1]]]
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 1) / 4)
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["per_class"]["auc"] == pytest.approx([2 / 4, 1])


# Against direct counting


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 40), st.booleans())
def test_single_label_scores_by_counting(seed: int, classes: int, images: int, coarse: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(images, classes, generator=draw), torch.randint(classes, (images,), generator=draw)
    logits = logits.round() if coarse else logits  # many ties
    scores = classification_metrics("multiclass", logits, labels)
    decisions, chances = logits.argmax(1), logits.double().softmax(1)
    present = [c for c in range(classes) if (labels == c).any()]
    recall = {c: (decisions[labels == c] == c).double().mean().item() for c in present}
    assert scores["accuracy"] == pytest.approx((decisions == labels).double().mean().item())
    assert scores["per_class"]["recall"] == [pytest.approx(recall[c]) if c in recall else None for c in range(classes)]
    assert scores["balanced_accuracy"] == pytest.approx(mean(recall.values()))
    auc = [pairwise_auc(chances[:, c], (labels == c).long()) for c in range(classes)]
    assert scores["per_class"]["auc"] == [value if value is None else pytest.approx(value, abs=1e-6) for value in auc]
    defined = [value for value in auc if value is not None]
    assert scores["auc"] == (pytest.approx(mean(defined), abs=1e-6) if defined else None)
    assert sum(map(sum, scores["confusion"])) == images


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 30))
def test_multilabel_scores_by_counting(seed: int, labels_each: int, images: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, labels_each, generator=draw)
    labels = torch.randint(2, logits.shape, generator=draw)
    scores = classification_metrics("multilabel", logits, labels)
    decisions = (logits > 0).long()
    assert scores["accuracy"] == pytest.approx((decisions == labels).double().mean().item())
    rates = [
        (decisions[:, c][labels[:, c] == value] == value).double().mean().item()
        for c in range(labels_each)
        for value in (0, 1)
        if (labels[:, c] == value).any()
    ]
    assert scores["balanced_accuracy"] == pytest.approx(mean(rates))
    auc = [pairwise_auc(logits[:, c], labels[:, c]) for c in range(labels_each)]
    assert scores["per_class"]["auc"] == [value if value is None else pytest.approx(value, abs=1e-6) for value in auc]


def test_decisions_and_probabilities() -> None:
    logits = torch.tensor([[[1.0, -1.0], [-2.0, 3.0]]])
    assert decide("binary", logits).tolist() == [[0, 1]]
    assert decide("multilabel", logits).tolist() == [[[1, 0], [0, 1]]]
    assert torch.equal(probabilities("ordinal", logits), logits.double().softmax(-1))
    assert torch.equal(probabilities("multilabel", logits), logits.double().sigmoid())
    assert correct("multilabel", logits, torch.tensor([[1, 0], [1, 1]])).tolist() == [[True, False]]


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(-9, 9))
def test_log_odds_rank_as_probabilities_do_and_keep_ties(seed: int, classes: int, shift: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, classes, generator=draw).mul(2).round()
    odds = margins("multiclass", logits)
    torch.testing.assert_close(odds, logits.double().softmax(-1).logit())
    order = torch.randperm(classes, generator=draw)
    assert torch.equal(margins("multiclass", logits[:, order] + shift), odds[:, order])


def test_log_odds_differ_where_probabilities_are_one() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    assert probabilities("multiclass", logits)[:, 0].tolist() == [1, 1]
    assert margins("multiclass", logits)[:, 0].tolist() == pytest.approx([50 - math.log(2), 60 - math.log(2)])


# What is undefined


def test_a_class_absent_from_the_test_set_is_named_and_left_out() -> None:
    labels = torch.tensor([0, 0, 2])
    scores = classification_metrics("multiclass", sure([0, 1, 2], 3), labels, names=("a", "b", "c"))
    assert scores["per_class"]["recall"] == [0.5, None, 1.0]
    assert scores["per_class"]["auc"][1] is None
    assert scores["balanced_accuracy"] == 0.75
    assert scores["notes"] == [
        "no image of the test set is labelled 'b': without recall and AUC, left out of means over classes"
    ]


def test_a_class_never_decided_has_no_precision() -> None:
    scores = classification_metrics("multiclass", sure([0, 0, 0], 2), torch.tensor([0, 0, 1]))
    assert scores["per_class"]["precision"] == [pytest.approx(2 / 3), None]
    assert scores["notes"] == ["every image is decided as '0', whatever it shows: that this is invariant says nothing"]


def test_one_class_only_has_no_auc() -> None:
    scores = classification_metrics("binary", sure([0, 1], 2), torch.tensor([1, 1]), names=("a", "b"))
    assert scores["auc"] is None
    assert scores["notes"] == [
        "no image of the test set is labelled 'a': without recall and AUC, left out of means over classes",
        "every image of the test set is labelled 'b': without AUC",
    ]


def test_a_label_that_no_image_has() -> None:
    labels = torch.zeros(4, 2, dtype=torch.int64)
    scores = classification_metrics("multilabel", torch.randn(4, 2), labels, ["hernia", "mass"])
    assert scores["macro_f1"] is None
    assert scores["auc"] is None
    assert "'hernia', 'mass'" in scores["notes"][0]


# Bad input


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "message"),
    [
        ("binary", torch.zeros(3, 2), torch.zeros(2).long(), r"labels \(N,\) of at least one image, got \(3, 2\)"),
        ("multilabel", torch.zeros(3, 2), torch.zeros(3).long(), r"labels \(N, K\) of at least one .* and \(3,\)"),
        ("binary", torch.zeros(0, 2), torch.zeros(0).long(), r"at least one image, got \(0, 2\)"),
        ("binary", torch.zeros(2), torch.zeros(2).long(), r"need logits \(N, K\)"),
        ("binary", torch.zeros(2, 2), torch.tensor([0, 2]), r"labels must lie in 0..1, got 0..2; check the data set"),
        ("ordinal", torch.zeros(2, 3), torch.tensor([-1, 2]), r"labels must lie in 0..2, got -1..2"),
        ("multilabel", torch.zeros(1, 2), torch.tensor([[0, 2]]), r"labels must lie in 0..1, got 0..2"),
        ("binary", torch.tensor([[0, math.nan], [0, 1]]), torch.tensor([0, 1]), "1 of 2 images are .* lower --lr"),
        ("binary", torch.tensor([[0, math.inf]]), torch.tensor([0]), "the logits of 1 of 1 image are not finite"),
    ],
)
def test_bad_input(kind: str, logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(kind, logits, labels)


# What a limited test set says


def resampled(kind: str, logits: Tensor, labels: Tensor, drawn: Tensor) -> tuple[float, float]:
    scores = classification_metrics(kind, logits[drawn], labels[drawn])
    return scores["accuracy"], scores["balanced_accuracy"]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_bootstrap_scores_each_resample_as_a_test_set(kind: str) -> None:
    logits = torch.randn(2, 12, 3)
    labels = torch.randint(2, (12, 3)) if kind == "multilabel" else torch.arange(12) % 3
    accuracy, balanced = bootstrap(kind, logits, labels, resamples=130, seed=7)
    assert accuracy.shape == balanced.shape == (130, 2)
    draw = torch.Generator().manual_seed(7)
    drawn = torch.cat([torch.randint(12, (count, 12), generator=draw) for count in (100, 30)])
    for i in (0, 99, 100, 129):
        for m in range(2):
            expected = resampled(kind, logits[m], labels, drawn[i])
            assert (accuracy[i, m].item(), balanced[i, m].item()) == pytest.approx(expected)


def test_bootstrap_depends_on_nothing_but_the_seed() -> None:
    logits, labels = torch.randn(3, 20, 2), torch.arange(20) % 2
    first, again, other = (bootstrap("binary", logits, labels, 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(bootstrap("binary", logits[:1], labels, 10)[0], first[:, :1])


def test_bootstrap_survives_a_class_that_a_resample_misses() -> None:
    _, balanced = bootstrap("binary", sure([0, 0, 0, 1], 2)[None], torch.tensor([0, 0, 0, 1]), resamples=200)
    assert torch.equal(balanced, torch.ones(200, 1, dtype=torch.float64))


def test_interval_of_a_proportion_is_the_normal_one() -> None:
    right = (torch.arange(1000) % 4 > 0).long()
    logits = sure(right.tolist(), 2)[None]
    accuracy, _ = bootstrap("binary", logits, torch.ones(1000, dtype=torch.int64))
    ((low, high),) = interval(accuracy)
    half_width = 1.96 * math.sqrt(0.75 * 0.25 / 1000)
    assert (low, high) == pytest.approx((0.75 - half_width, 0.75 + half_width), abs=0.004)


def test_interval_is_central() -> None:
    samples = torch.stack([torch.linspace(0, 1, 101), torch.full((101,), 2.0)], 1).double()
    assert interval(samples, 0.9) == [pytest.approx([0.05, 0.95]), [2.0, 2.0]]
    some = torch.cat([samples, torch.full((50, 2), math.nan)])
    assert interval(some, 0.9) == interval(samples, 0.9)


# Paired


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_mcnemar_is_the_two_sided_binomial_test(only_a: int, only_b: int, both: int) -> None:
    a = torch.tensor([True] * only_a + [False] * only_b + [True] * both, dtype=torch.bool)
    b = torch.tensor([False] * only_a + [True] * only_b + [True] * both, dtype=torch.bool)
    result = mcnemar(a, b)
    n = only_a + only_b
    p = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b)) / 2**n
    assert result == {"only_a": only_a, "only_b": only_b, "p": pytest.approx(p)}


def test_mcnemar_of_many_images_is_the_normal_approximation() -> None:
    a = torch.arange(20000) < 10200
    assert mcnemar(a, ~a)["p"] == pytest.approx(math.erfc((400 - 1) / math.sqrt(20000) / math.sqrt(2)), rel=1e-3)


def test_mcnemar_of_different_test_sets() -> None:
    with pytest.raises(ValueError, match="the same images, got 3 and 2; evaluate both on one test set"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, adjusted, strict=True))
    assert [x for _, x in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)
