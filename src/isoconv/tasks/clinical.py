"""What a classifier is worth in use: decisions at a threshold, curves, calibration and net benefit, of each class
against the rest.

Images are ranked and thresholds are kept by log-odds in float64 (:func:`isoconv.tasks.metrics.margins`): probabilities
near 0 and 1 are equal where these still differ. A threshold and a temperature are chosen on validation images,
:func:`operating_point`, and used unchanged on test images, :func:`clinical_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv.tasks.metrics import margins, one_hot, rank_auc
from isoconv.tasks.scores import Score
from isoconv.tasks.summary import mean_of

__all__ = [
    "SCORES",
    "Cuts",
    "check_threshold",
    "clinical",
    "clinical_curves",
    "clinical_scores",
    "cuts",
    "operating_point",
    "reliability",
    "shown",
    "temperature",
    "told",
]

SCORES = (
    Score("sensitivity", "sensitivity"),
    Score("specificity", "specificity"),
    Score("ppv", "PPV"),
    Score("npv", "NPV"),
    Score("average_precision", "average precision"),
    Score("calibration_error", "calibration error", higher_is_better=False),
    Score("calibration_error_scaled", "with the temperature", higher_is_better=False),
)
"""Of each class against the rest; the first four are of a decision at a threshold."""

_MEASURES = tuple(score.key for score in SCORES[:4])

_BINS = 15
_GRID = 50  # steps of the ROC and precision-recall curves
_CHANCES = [i / 20 for i in range(1, 20)]  # thresholds of decision curves
_COLDEST, _HOTTEST = 0.05, 20.0


class Cuts(NamedTuple):
    """Every way to divide images by a score, each (1 + distinct scores,): the lowest score that counts as positive,
    from infinity down, and how many images with and without the label are then positive."""

    scores: Tensor
    true: Tensor
    false: Tensor

    @property
    def rates(self) -> tuple[Tensor, Tensor]:
        """Sensitivity and false positive rate."""
        return self.true / self.true[-1], self.false / self.false[-1]


def cuts(scores: Tensor, positive: Tensor) -> Cuts:
    """Divide images by ``scores`` (N,), of which those in the boolean ``positive`` (N,) have the label."""
    values, place = scores.unique(return_inverse=True)
    counts = [torch.bincount(place[chosen], minlength=len(values)) for chosen in (positive, ~positive)]
    true, false = (F.pad(count.flip(0).cumsum(0), (1, 0)).double() for count in counts)
    return Cuts(F.pad(values.flip(0), (1, 0), value=math.inf), true, false)


def check_threshold(rule: str) -> float | None:
    """The sensitivity that ``"sensitivity=0.95"`` asks for; None for the rules ``"half"`` and ``"youden"``.

    Raises:
        ValueError: another rule.
    """
    if rule in ("half", "youden"):
        return None
    name, _, text = rule.partition("=")
    try:
        wanted = float(text)
    except ValueError:
        wanted = math.nan
    if name != "sensitivity" or not 0 < wanted <= 1:
        raise ValueError(
            f"threshold must be half, youden or sensitivity=S with S above 0 and at most 1, got {rule!r:.60}; "
            "for instance sensitivity=0.95"
        )
    return wanted


def _threshold(scores: Tensor, positive: Tensor, rule: str) -> float | None:
    """In log-odds; halfway between the scores of two images, so that rounding decides on neither. None where there is
    no choice: all images have the label, none has, or all have the same score."""
    wanted = check_threshold(rule)
    if rule == "half":
        return 0.0
    if positive.all() or not positive.any() or _same(scores):
        return None
    found = cuts(scores, positive)
    sensitivity, wrong = found.rates
    if wanted is None:
        best = int((sensitivity - wrong)[1:].argmax()) + 1
    else:
        best = int((sensitivity >= wanted - 1e-9).int().argmax())
    below = found.scores[min(best + 1, len(found.scores) - 1)]
    return ((found.scores[best] + below) / 2).item()


def temperature(kind: str, logits: Tensor, labels: Tensor) -> float:
    """By what logits (N, K) are to be divided for the likelihood of ``labels`` to be the largest (Guo et al.,
    arXiv 1706.04599), between 0.05 and 20."""
    logits = logits.double()

    def loss(log_scale: float) -> float:
        scaled = logits * math.exp(log_scale)
        if kind == "multilabel":
            return F.binary_cross_entropy_with_logits(scaled, labels.double()).item()
        return F.cross_entropy(scaled, labels).item()

    minimise = require("scipy.optimize", extra="study").minimize_scalar
    bounds = -math.log(_HOTTEST), -math.log(_COLDEST)
    return math.exp(-float(minimise(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def operating_point(kind: str, logits: Tensor, labels: Tensor, rule: str = "half") -> dict[str, Any]:
    """What is chosen on validation images.

    Args:
        logits, labels: as for :func:`isoconv.tasks.metrics.classification_metrics`.
        rule: ``"half"``, a probability of 1/2 (one class against the rest); ``"youden"``, the largest sum of
            sensitivity and specificity; ``"sensitivity=0.95"``, the highest threshold of at least that sensitivity.

    Returns:
        ``rule``, ``images``, ``temperature`` and ``thresholds``, the log-odds from which on an image is positive for
        each class; None where the validation images have no choice.

    Raises:
        ValueError: another rule.
    """
    check_threshold(rule)
    scores, truth = margins(kind, logits), one_hot(kind, labels, logits.shape[-1]).bool()
    thresholds = [_threshold(*pair, rule) for pair in zip(scores.T, truth.T, strict=True)]
    return {
        "rule": rule,
        "images": len(logits),
        "temperature": temperature(kind, logits, labels),
        "thresholds": thresholds,
    }


def clinical_scores(kind: str, logits: Tensor, labels: Tensor, point: dict[str, Any]) -> dict[str, list[Any]]:
    """Scores of each class against the rest, lists of K numbers, None where one is undefined.

    Args:
        point: what :func:`operating_point` gave.

    Returns:
        By the keys of :data:`SCORES`: decisions at the thresholds, with 95 % intervals of Wilson under ``_ci``;
        ``average_precision``; and ``calibration_error`` over 15 bins, of the probabilities as they are and,
        ``_scaled``, with the temperature. A network that gives all images the same probability has no calibration
        error: it would be small, and mean nothing.
    """
    truth = one_hot(kind, labels, logits.shape[-1]).bool()
    scores, scaled = margins(kind, logits), margins(kind, logits.double() / point["temperature"])
    rows = [_of_class(*columns) for columns in zip(scores.T, scaled.T, truth.T, point["thresholds"], strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _of_class(scores: Tensor, scaled: Tensor, positive: Tensor, threshold: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {name: None for measure in _MEASURES for name in (measure, f"{measure}_ci")}
    if threshold is not None:
        decided = scores >= threshold
        tp, fp, fn, tn = (int((a & b).sum()) for a in (decided, ~decided) for b in (positive, ~positive))
        for name, hits, misses in zip(_MEASURES, (tp, tn, tp, tn), (fn, fp, fp, fn), strict=True):
            found |= _share(name, hits, hits + misses)
    same = _same(scores)
    return {
        **found,
        "average_precision": _average_precision(cuts(scores, positive)),
        "calibration_error": None if same else _calibration_error(scores, positive),
        "calibration_error_scaled": None if same else _calibration_error(scaled, positive),
    }


def _same(scores: Tensor) -> bool:
    """Whether a network says the same of all images, but for rounding."""
    return (scores.amax() - scores.amin()).item() < 1e-6


def _share(name: str, hits: int, of: int) -> dict[str, Any]:
    if not of:
        return {}
    ends = require("scipy.stats", extra="study").binomtest(hits, of).proportion_ci(method="wilson")
    return {name: hits / of, f"{name}_ci": [float(ends.low), float(ends.high)]}


def _average_precision(found: Cuts) -> float | None:
    if not found.true[-1]:
        return None
    precision = found.true[1:] / (found.true + found.false)[1:]
    return (precision * found.rates[0].diff()).sum().item()


def reliability(scores: Tensor, positive: Tensor) -> dict[str, list[float]]:
    """Of images in 15 bins of equal width by probability, from log-odds (N,): their ``share``, mean ``probability``,
    and ``frequency`` of the label; bins without an image are left out."""
    chances = scores.sigmoid()
    place = (chances * _BINS).long().clamp(max=_BINS - 1)
    count, chance, label = (place.bincount(w, minlength=_BINS) for w in (None, chances, positive.double()))
    filled = count > 0
    means = {"share": count / len(scores), "probability": chance / count, "frequency": label / count}
    return {name: values[filled].tolist() for name, values in means.items()}


def _calibration_error(scores: Tensor, positive: Tensor) -> float:
    bins = reliability(scores, positive)
    return sum(s * abs(p - f) for s, p, f in zip(*(bins[n] for n in bins), strict=True))


def clinical_curves(kind: str, logits: Tensor, labels: Tensor, point: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Of each class against the rest, plain JSON values; None for a class without images or without others:

    - ``roc``: ``sensitivity`` over ``false_positive_rate``, and the ``auc``;
    - ``precision_recall``: the best ``precision`` of at least each ``recall``, and the ``prevalence``, which is that of
      chance;
    - ``reliability``: see :func:`reliability`, of the probabilities with the temperature;
    - ``decision``: ``net_benefit`` per image over the ``threshold`` probability, with the temperature, and that of
      calling ``all`` images positive; calling none positive has 0 (Vickers and Elkin, 2006).
    """
    truth = one_hot(kind, labels, logits.shape[-1]).bool()
    scores, scaled = margins(kind, logits), margins(kind, logits.double() / point["temperature"])
    return [_curves(*columns) for columns in zip(scores.T, scaled.T, truth.T, strict=True)]


def _curves(scores: Tensor, scaled: Tensor, positive: Tensor) -> dict[str, Any] | None:
    if positive.all() or not positive.any():
        return None
    found, prevalence = cuts(scores, positive), positive.double().mean().item()
    sensitivity, wrong = found.rates
    precision = (found.true / (found.true + found.false))[1:]
    grid = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)
    best = precision.flip(0).cummax(0).values.flip(0)  # of at least that recall
    at = torch.searchsorted(sensitivity[1:].contiguous(), grid - 1e-12)
    benefits, everyone = [], []
    for chance in _CHANCES:
        odds = chance / (1 - chance)
        decided = scaled >= math.log(odds)
        hits, alarms = ((decided & who).double().mean().item() for who in (positive, ~positive))
        benefits.append(hits - odds * alarms)
        everyone.append(prevalence - odds * (1 - prevalence))
    return {
        "roc": {
            "false_positive_rate": grid.tolist(),
            "sensitivity": _interpolated(grid, wrong, sensitivity),
            "auc": rank_auc(scores, positive),
        },
        "precision_recall": {"recall": grid.tolist(), "precision": best[at].tolist(), "prevalence": prevalence},
        "reliability": reliability(scaled, positive),
        "decision": {"threshold": _CHANCES, "net_benefit": benefits, "all": everyone},
    }


def _interpolated(grid: Tensor, x: Tensor, y: Tensor) -> list[float]:
    """On a polygon whose x do not fall; the highest y where it rises straight up."""
    after = torch.searchsorted(x.contiguous(), grid, right=True).clamp(1, len(x) - 1)
    width = x[after] - x[after - 1]
    share = torch.where(width > 0, (grid - x[after - 1]) / width.clamp_min(1e-300), torch.ones_like(grid))
    return (y[after - 1] + share * (y[after] - y[after - 1])).tolist()


def _notes(labels: Sequence[str], point: dict[str, Any]) -> list[str]:
    notes = []
    if undecided := [label for label, cut in zip(labels, point["thresholds"], strict=True) if cut is None]:
        names = ", ".join(map(repr, undecided))
        notes.append(f"the validation images do not tell where {names} begins: no threshold, no sensitivity")
    if not _COLDEST * 1.01 < point["temperature"] < _HOTTEST / 1.01:
        notes.append(
            f"the validation images do not tell the temperature, which is at its limit, {point['temperature']:.3g}"
        )
    return notes


def clinical(
    kind: str, labels: Sequence[str], records: Tensor, targets: Tensor, turned: Sequence[int], point: dict[str, Any]
) -> tuple[list[dict[str, list[Any]]], dict[str, Any]]:
    """An evaluation's part, from logits (positions, N, K), the upright position first, and the places of rotations.

    Returns:
        :func:`clinical_scores` of each position; and the entry ``clinical``, plain JSON values: ``rule``,
        ``validation_images``, ``temperature``, ``notes`` on what could not be chosen, and in ``classes`` for each label
        its ``threshold`` in log-odds, the scores ``upright`` and as means over rotations, ``rotated``, and the
        ``curves`` of the same, those of all rotations together.
    """
    rows = [clinical_scores(kind, logits, targets, point) for logits in records]
    everywhere = targets.repeat(len(turned), *[1] * (targets.dim() - 1))
    upright = clinical_curves(kind, records[0], targets, point)
    rotated = clinical_curves(kind, records[list(turned)].flatten(0, 1), everywhere, point)
    means = [name for name in rows[0] if not name.endswith("_ci")]
    classes = {
        label: {
            "threshold": point["thresholds"][c],
            "upright": {name: values[c] for name, values in rows[0].items()},
            "rotated": {name: mean_of([rows[i][name][c] for i in turned]) for name in means},
            "curves": {"upright": upright[c], "rotated": rotated[c]},
        }
        for c, label in enumerate(labels)
    }
    chosen = {"rule": point["rule"], "validation_images": point["images"], "temperature": point["temperature"]}
    return rows, {**chosen, "classes": classes, "notes": _notes(labels, point)}


def shown(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """The entry ``clinical`` as rows of a table for people: upright / mean over rotations."""
    return [
        {
            "label": label,
            "from probability": "-"
            if found["threshold"] is None
            else f"{torch.tensor(found['threshold']).double().sigmoid().item():.3g}",
            **{
                score.heading: " / ".join(score.number(found[place][score.key]) for place in ("upright", "rotated"))
                for score in SCORES
            },
        }
        for label, found in entry["classes"].items()
    ]


def told(entry: Mapping[str, Any]) -> str:
    """How the table of :func:`shown` came about, a sentence."""
    return (
        f"Each class against the rest, upright / mean over rotations; thresholds by the rule {entry['rule']}, "
        f"temperature {entry['temperature']:.3g}, from {count_of(entry['validation_images'], 'validation image')}."
    )
