"""Scores of a classifier from its logits, for every kind of task, and what a test set of limited size says about them.

Decision rules: the largest logit, or for a multilabel task every label whose logit is above 0. Multilabel accuracy is
the mean over all images and labels, as in MedMNIST. A class that does not occur in the labels has no recall and no AUC
(None): means over classes are over those that occur, and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv._checks import count_of
from isoconv._extras import require

__all__ = [
    "bootstrap",
    "classification_metrics",
    "constant",
    "correct",
    "decide",
    "draws",
    "holm",
    "interval",
    "margins",
    "mcnemar",
    "number",
    "one_hot",
    "probabilities",
    "rank_auc",
    "sign_flip_test",
]

_CHUNK = 100  # resamples at once: bounds the memory on large test sets


def decide(kind: str, logits: Tensor) -> Tensor:
    """Decisions from logits (..., N, K): class numbers (..., N), or for a multilabel task zeros and ones (..., N,
    K)."""
    return (logits > 0).long() if kind == "multilabel" else logits.argmax(-1)


def probabilities(kind: str, logits: Tensor) -> Tensor:
    """Probabilities, float64, shaped as the logits: a sigmoid per label of a multilabel task, else a softmax over
    classes."""
    return logits.double().sigmoid() if kind == "multilabel" else logits.double().softmax(-1)


def margins(kind: str, logits: Tensor) -> Tensor:
    """Log-odds of each class against the rest, float64, shaped as the logits (..., K): they rank images as the
    probabilities do, which can be equal to 1 where these still differ. Equal ones are equal to the last bit, whatever
    the others' order and what is added to all logits of an image."""
    logits, classes = logits.double(), logits.shape[-1]
    if kind == "multilabel":
        return logits
    logits = logits - logits.amax(-1, keepdim=True)
    others = [torch.cat([logits[..., :c], logits[..., c + 1 :]], -1).sort(-1).values for c in range(classes)]
    return logits - torch.stack([each.logsumexp(-1) for each in others], -1)


def rank_auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: how often an image with the label has the larger score than one without, ties counting
    half.

    Args:
        scores: (N,).
        positive: boolean (N,), neither all nor none true.
    """
    ranks = torch.from_numpy(require("scipy.stats", extra="study").rankdata(scores.cpu().numpy()))
    positive = positive.cpu()
    with_it = int(positive.sum())
    return ((ranks[positive].sum() - with_it * (with_it + 1) / 2) / (with_it * (len(ranks) - with_it))).item()


def correct(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image (..., N) is decided as labelled; in a multilabel task all its labels have to be right."""
    right = decide(kind, logits) == labels
    return right.all(-1) if kind == "multilabel" else right


def classification_metrics(
    kind: str, logits: Tensor, labels: Tensor, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """All scores of one pass over a test set.

    Args:
        kind: ``"multiclass"``, ``"binary"``, ``"ordinal"`` or ``"multilabel"``.
        logits: (N, K), finite; K = 2 for a binary task.
        labels: (N,) class numbers, or (N, K) of zeros and ones for a multilabel task.
        names: of the K classes, for the notes.

    Returns:
        Plain JSON values: ``accuracy``, ``balanced_accuracy`` (mean recall; multilabel: mean of sensitivities and
        specificities), ``macro_f1``, ``auc`` (one class against the rest, by :func:`margins`, mean over classes), for
        an ordinal task also ``mean_absolute_error`` and ``quadratic_kappa``; ``per_class`` lists of ``recall``,
        ``precision``, ``auc``, ``support``; ``confusion`` (row: label, column: decision; multilabel: a 2 x 2 table per
        label); ``notes`` on what is undefined.

    Raises:
        ValueError: if shapes do not fit, the set is empty, a label is out of range or a logit is not finite.
    """
    _check(kind, logits, labels)
    torchmetrics = require("torchmetrics.functional.classification", extra="study")
    classes = logits.shape[1]
    decisions = decide(kind, logits)
    decided, truth = one_hot(kind, decisions, classes), one_hot(kind, labels, classes)
    table = torchmetrics.multilabel_confusion_matrix(decided, truth, num_labels=classes)
    tn, fp, fn, tp = table.flatten(1).double().unbind(1)

    recall, precision, f1 = tp / (tp + fn), tp / (tp + fp), 2 * tp / (2 * tp + fp + fn)
    hits, total = (tp + tn, tn + fp + fn + tp) if kind == "multilabel" else (tp, tp + fn)
    recalls = torch.cat([recall, tn / (tn + fp)]) if kind == "multilabel" else recall
    present = tp + fn > 0
    comparable = present & (tn + fp > 0)
    ranked = margins(kind, logits)
    auc = torch.full_like(recall, math.nan)
    for c in comparable.nonzero().flatten().tolist():
        auc[c] = rank_auc(ranked[:, c], truth[:, c].bool())

    confusion = table
    scores = {
        "accuracy": hits.sum() / total.sum(),
        "balanced_accuracy": recalls.nanmean(),
        "macro_f1": f1[present].mean(),
        "auc": auc.nanmean(),
    }
    if kind == "ordinal":
        scores["mean_absolute_error"] = (decisions - labels).abs().double().mean()
        scores["quadratic_kappa"] = torchmetrics.multiclass_cohen_kappa(decisions, labels, classes, weights="quadratic")
    if kind != "multilabel":
        confusion = torchmetrics.multiclass_confusion_matrix(decisions, labels, classes)
    return {
        **{name: number(value.item()) for name, value in scores.items()},
        "per_class": {
            "recall": _numbers(recall),
            "precision": _numbers(precision),
            "auc": _numbers(auc),
            "support": (tp + fn).long().tolist(),
        },
        "confusion": confusion.tolist(),
        "notes": _notes(names or [str(c) for c in range(classes)], decided, present, comparable),
    }


def constant(names: Sequence[str], decided: Tensor) -> str | None:
    """What is worthless where all images are decided alike; None where they are not.

    Args:
        names: of the K classes.
        decided: zeros and ones (N, K).
    """
    if (decided != decided[0]).any():
        return None
    given = [repr(name) for name, it_is in zip(names, decided[0].tolist(), strict=True) if it_is]
    answer = f"decided as {', '.join(given)}" if given else "given no label"
    return f"every image is {answer}, whatever it shows: that this is invariant says nothing"


def bootstrap(kind: str, logits: Tensor, labels: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Accuracy and balanced accuracy on ``resamples`` sets of images drawn with replacement from the test set.

    Args:
        logits: (M, N, K): M passes over the N images, all resampled alike, so that differences between passes are
            paired.
        labels: as for :func:`classification_metrics`.

    Returns:
        Two float64 tensors (resamples, M). The same N and seed always give the same resamples, so two networks can be
        paired too.
    """
    decisions, (m, n, classes) = decide(kind, logits), logits.shape
    truth = one_hot(kind, labels, classes)
    right = decisions == labels
    if kind == "multilabel":  # the images with and those without each label: sensitivity and specificity
        groups, right = torch.cat([truth, 1 - truth], -1), torch.cat([right, right], -1)
    else:
        groups, right = truth, right[..., None]
    groups = groups.float()
    hits = (right * groups).transpose(0, 1).reshape(n, -1)

    accuracy, balanced = [], []
    for times in draws(n, resamples, seed):
        times = times.to(logits.device)
        hit = (times @ hits).view(len(times), m, -1).double()
        size = (times @ groups)[:, None].double()
        accuracy.append(hit.sum(-1) / size.sum(-1))
        balanced.append((hit / size).nanmean(-1))
    return torch.cat(accuracy).cpu(), torch.cat(balanced).cpu()


def draws(n: int, resamples: int, seed: int = 0) -> Iterator[Tensor]:
    """How often each of ``n`` images is drawn for each resample, n draws with replacement: float32 (some resamples, n)
    at a time. The same arguments always give the same draws."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, _CHUNK):
        drawn = torch.randint(n, (min(_CHUNK, resamples - start), n), generator=generator)
        yield torch.zeros(drawn.shape).scatter_add_(1, drawn, torch.ones(drawn.shape))


def interval(samples: Tensor, level: float = 0.95) -> list[list[float]]:
    """The central ``level`` of bootstrap samples (resamples, M), as M pairs [low, high]; NaN is left out."""
    tail = (1 - level) / 2
    return samples.nanquantile(torch.tensor([tail, 1 - tail], dtype=samples.dtype), dim=0).T.tolist()


def mcnemar(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Exact McNemar test of two classifiers on the same images.

    Args:
        a, b: boolean (N,), which images each got right.

    Returns:
        ``only_a`` and ``only_b``, the images that only one got right, and ``p``, two-sided: how likely a split of those
        images at least this uneven is, if each fell to either side with probability 1/2.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a paired test needs the same images, got {len(a)} and {len(b)}; evaluate both on one test set"
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    stats = require("scipy.stats", extra="study")
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def sign_flip_test(differences: Tensor, permutations: int = 9999) -> float:
    """Paired permutation test on the mean of differences (N,) of two networks, image by image: were they alike, either
    sign would be as likely. Returns the two-sided p."""
    if not differences.any():
        return 1.0
    return float(
        require("scipy.stats", extra="study")
        .permutation_test(
            (differences.double().numpy(),),
            lambda values, axis: values.mean(axis),
            permutation_type="samples",
            n_resamples=permutations,
            batch=_CHUNK,
            rng=np.random.default_rng(0),
        )
        .pvalue
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the order given. Below 0.05, the chance that any of them is a
    false alarm is at most 5 %."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def number(value: float) -> float | None:
    """The value, or None for NaN, as JSON has it."""
    return None if math.isnan(value) else value


def _check(kind: str, logits: Tensor, labels: Tensor) -> None:
    expected = logits.shape if kind == "multilabel" else logits.shape[:1]
    if logits.dim() != 2 or labels.shape != expected or not len(labels):
        raise ValueError(
            f"{kind} metrics need logits (N, K) and labels {'(N, K)' if kind == 'multilabel' else '(N,)'} of at least "
            f"one image, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    highest = 1 if kind == "multilabel" else logits.shape[1] - 1
    if not 0 <= labels.min() <= labels.max() <= highest:
        raise ValueError(
            f"labels must lie in 0..{highest}, got {labels.min().item()}..{labels.max().item()}; check the data set"
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"the logits of {bad} of {count_of(len(logits), 'image')} are not finite; the training diverged, train "
            "again with a lower --lr"
        )


def one_hot(kind: str, labels: Tensor, classes: int) -> Tensor:
    """Class numbers (N,) as zeros and ones (N, K), which those of a multilabel task are already."""
    return labels if kind == "multilabel" else F.one_hot(labels, classes)


def _notes(names: Sequence[str], decided: Tensor, present: Tensor, comparable: Tensor) -> list[str]:
    def named(chosen: Tensor) -> list[str]:
        return [name for name, it_is in zip(names, chosen.tolist(), strict=True) if it_is]

    absent, alone = named(~present), named(present & ~comparable)
    notes = []
    if absent:
        notes.append(
            f"no image of the test set is labelled {', '.join(map(repr, absent))}: "
            "without recall and AUC, left out of means over classes"
        )
    if alone:
        notes.append(f"every image of the test set is labelled {', '.join(map(repr, alone))}: without AUC")
    if not alone and (note := constant(names, decided)):
        notes.append(note)
    return notes


def _numbers(values: Tensor) -> list[float | None]:
    return [number(value) for value in values.tolist()]
