"""Clinical scores against torchmetrics, formulas by hand and what is known of constant and saturated networks."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    binary_roc,
    binary_stat_scores,
)

from isoconv.tasks.clinical import (
    check_threshold,
    clinical,
    clinical_curves,
    clinical_scores,
    cuts,
    operating_point,
    temperature,
)
from isoconv.tasks.metrics import margins


def noisy(n: int = 200, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits of a binary task, (n, 2), that know the label and say so with noise."""
    labels = torch.arange(n) % 3 == 0
    log_odds = 2 * labels.float() - 1 + torch.randn(n, generator=torch.Generator().manual_seed(1))
    return scale * torch.stack([-log_odds / 2, log_odds / 2], 1), labels.long()


HALF = {"rule": "half", "images": 1, "temperature": 1.0}


def test_decisions_by_hand() -> None:
    """At 0, two are true and one is false positive, one is true and one false negative."""
    log_odds, labels = torch.tensor([3.0, 2, 1, -1, -2]), torch.tensor([1, 0, 1, 1, 0])
    logits = torch.stack([torch.zeros(5), log_odds], 1)
    scores = clinical_scores("binary", logits, labels, {**HALF, "thresholds": [0.0, 0.0]})
    found = [scores[name][1] for name in ("sensitivity", "specificity", "ppv", "npv")]
    assert found == pytest.approx([2 / 3, 1 / 2, 2 / 3, 1 / 2])
    z, p, n = 1.959964, 2 / 3, 3  # Wilson's interval
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    ends = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert scores["sensitivity_ci"][1] == pytest.approx(ends, abs=1e-5)


@pytest.mark.parametrize("rule", ["half", "youden", "sensitivity=0.9"])
def test_scores_are_those_of_torchmetrics(rule: str) -> None:
    logits, labels = noisy()
    point = operating_point("binary", logits, labels, rule)
    scores = clinical_scores("binary", logits, labels, point)
    ranked = margins("binary", logits)[:, 1]
    chances = ranked.sigmoid()
    tp, fp, tn, fn, _ = binary_stat_scores((ranked >= point["thresholds"][1]).long(), labels).double()
    expected = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]
    found = [scores[name][1] for name in ("sensitivity", "specificity", "ppv", "npv")]
    assert found == pytest.approx([value.item() for value in expected])
    assert scores["average_precision"][1] == pytest.approx(binary_average_precision(chances, labels).item(), abs=1e-6)
    assert scores["calibration_error"][1] == pytest.approx(
        binary_calibration_error(chances, labels, n_bins=15).item(), abs=1e-5
    )


def test_thresholds_from_every_cut_of_torchmetrics() -> None:
    logits, labels = noisy()
    chances = margins("binary", logits)[:, 1].sigmoid()
    wrong, right, _ = binary_roc(chances, labels)
    for rule, expected in {
        "youden": (right - wrong).max(),
        "sensitivity=0.9": 1 - wrong[right >= 0.9].min(),
    }.items():
        point = operating_point("binary", logits, labels, rule)
        scores = clinical_scores("binary", logits, labels, point)
        sensitivity, specificity = scores["sensitivity"][1], scores["specificity"][1]
        if rule == "youden":
            assert sensitivity + specificity - 1 == pytest.approx(expected.item(), abs=1e-6)
        else:
            assert sensitivity >= 0.9
            assert specificity == pytest.approx(expected.item(), abs=1e-6)


def test_cuts_are_those_of_torchmetrics() -> None:
    logits, labels = noisy()
    ranked = margins("binary", logits)[:, 1].mul(4).round().div(4)  # with ties
    found = cuts(ranked, labels.bool())
    wrong, right, _ = binary_roc(ranked.sigmoid(), labels)
    torch.testing.assert_close(found.true / found.true[-1], right.double())
    torch.testing.assert_close(found.false / found.false[-1], wrong.double())


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_temperature_is_where_the_likelihood_has_no_slope(kind: str) -> None:
    logits, labels = noisy(scale=3)
    if kind == "multilabel":
        logits, labels = logits[:, 1:], labels[:, None]
    found = temperature(kind, logits, labels)
    scale = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    scaled = scale * logits.double()
    if kind == "multilabel":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled, labels.double())
    else:
        loss = torch.nn.functional.cross_entropy(scaled, labels)
    loss.backward()
    assert abs(scale.grad.item()) < 1e-4
    assert temperature(kind, 2 * logits, labels) == pytest.approx(2 * found, rel=1e-3)


def test_the_temperature_of_exaggerated_log_odds_is_known() -> None:
    """Labels drawn by their log-odds, which the network gives six times too large."""
    generator = torch.Generator().manual_seed(0)
    log_odds = 2 * torch.randn(5000, generator=generator)
    labels = torch.bernoulli(log_odds.sigmoid(), generator=generator).long()
    logits = 6 * torch.stack([torch.zeros(5000), log_odds], 1)
    point = operating_point("binary", logits, labels)
    scores = clinical_scores("binary", logits, labels, point)
    assert point["temperature"] == pytest.approx(6, rel=0.1)
    assert scores["calibration_error"][1] > 0.1
    assert scores["calibration_error_scaled"][1] < 0.03


def test_net_benefit_by_hand() -> None:
    logits, labels = noisy()
    point = {**HALF, "thresholds": [0.0, 0.0]}
    decision = clinical_curves("binary", logits, labels, point)[1]["decision"]
    chances = margins("binary", logits)[:, 1].sigmoid()
    at = decision["threshold"].index(0.25)
    decided, odds = chances >= 0.25, 1 / 3
    tp, fp = (decided & (labels == 1)).sum().item(), (decided & (labels == 0)).sum().item()
    assert decision["net_benefit"][at] == pytest.approx((tp - odds * fp) / 200)
    assert decision["all"][at] == pytest.approx((67 - odds * 133) / 200)


def test_roc_on_the_grid_has_the_area_of_all_cuts() -> None:
    logits, labels = noisy(2000)
    roc = clinical_curves("binary", logits, labels, {**HALF, "thresholds": [0.0, 0.0]})[1]["roc"]
    area = torch.trapezoid(torch.tensor(roc["sensitivity"]), torch.tensor(roc["false_positive_rate"])).item()
    assert area == pytest.approx(roc["auc"], abs=0.003)


def test_saturated_probabilities_are_still_ranked() -> None:
    """Log-odds of 40 and more are probabilities of 1 in float32 and, from 37 on, in float64."""
    log_odds, labels = torch.tensor([40.0, 50, 60, 70]), torch.tensor([0, 0, 1, 1])
    logits = torch.stack([torch.zeros(4), log_odds], 1)
    assert log_odds.double().sigmoid().unique().numel() == 1
    point = operating_point("binary", logits, labels, "youden")
    assert 50 < point["thresholds"][1] < 60
    scores = clinical_scores("binary", logits, labels, point)
    assert scores["sensitivity"][1] == scores["specificity"][1] == scores["average_precision"][1] == 1


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_a_constant_network_looks_good_nowhere(kind: str) -> None:
    """It gives the prevalence, which is perfectly calibrated, and nothing else."""
    labels = (torch.arange(100) < 90).long()
    logits = torch.tensor([[0.0, math.log(9)]]).repeat(100, 1)
    if kind == "multilabel":
        logits, labels = logits[:, 1:], labels[:, None]
    names = ["a", "b"][: logits.shape[1]]
    for rule in ("half", "youden", "sensitivity=0.95"):
        point = operating_point(kind, logits, labels, rule)
        records = logits.repeat(3, 1, 1)
        _, entry = clinical(kind, names, records, labels, [1, 2], point)
        found = entry["classes"][names[-1]]
        for place in ("upright", "rotated"):
            assert found[place]["calibration_error"] is None
            assert found[place]["average_precision"] == pytest.approx(0.9)  # the prevalence
            assert found["curves"][place]["roc"]["auc"] == 0.5
            decision = found["curves"][place]["decision"]
            best = [max(0, value) for value in decision["all"]]
            assert all(a <= b + 1e-9 for a, b in zip(decision["net_benefit"], best, strict=True))
            if rule == "half":
                assert (found[place]["sensitivity"], found[place]["specificity"]) == (1, 0)
            else:
                assert found["threshold"] is None
                assert found[place]["sensitivity"] is None
        assert rule == "half" or "no threshold" in entry["notes"][0]


def test_a_class_that_is_absent_has_no_curves_and_no_sensitivity() -> None:
    logits, labels = torch.randn(10, 3), torch.arange(10) % 2
    point = operating_point("multiclass", logits, labels, "youden")
    assert point["thresholds"][2] is None
    assert clinical_curves("multiclass", logits, labels, point)[2] is None
    half = clinical_scores("multiclass", logits, labels, {**HALF, "thresholds": [0.0] * 3})
    assert half["sensitivity"][2] is None
    assert half["specificity"][2] is not None


@pytest.mark.parametrize("rule", ["", "best", "sensitivity", "sensitivity=0", "sensitivity=95", "sensitivity=nan"])
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"half, youden or sensitivity=S .* got .*sensitivity=0\.95"):
        check_threshold(rule)
