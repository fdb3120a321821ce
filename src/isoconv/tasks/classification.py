"""Classification: one label for each image, or any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoconv.tasks.base import Defaults, Loss, Task, Wording
from isoconv.tasks.clinical import clinical, operating_point
from isoconv.tasks.metrics import (
    bootstrap,
    classification_metrics,
    constant,
    correct,
    decide,
    interval,
    mcnemar,
    one_hot,
    probabilities,
    sign_flip_test,
)
from isoconv.tasks.scores import Score
from isoconv.tasks.summary import Position

__all__ = ["Classification", "goodness"]


class _Prepared(NamedTuple):
    """Of each image: whether it is decided rightly upright, and in every rotation, and its share of rotations in which
    it is; and the bootstrapped mean over rotations (resamples,)."""

    upright: Tensor
    always: Tensor
    share: Tensor
    rotated_mean: Tensor


class Classification(Task):
    """Records are the logits, float32 (N, K)."""

    name = "classification"
    kinds = ("multiclass", "binary", "ordinal", "multilabel")
    networks = "classification"
    record_name = "logits"
    defaults = Defaults(width=64, size=28, batch_size={2: 128, 3: 4}, lr={2: 2e-2, 3: 1e-2})
    averages = True
    has_operating_point = True
    answer_fields = {
        "label": (str | list[str], "the class; with several labels, those whose probability exceeds 1/2"),
        "probabilities": (dict[str, float], "by label"),
    }
    main = Score("accuracy", "accuracy")
    others = (Score("balanced_accuracy", "balanced accuracy"), Score("auc", "AUC"), Score("macro_f1", "macro-F1"))
    agreement = Score("consistency", "same answer as upright")

    @property
    def wording(self) -> Wording:
        if self.info.kind == "multilabel":
            chances, decision, code = "a sigmoid each", "each label whose probability exceeds 1/2", "sigmoid()"
        else:
            chances, decision, code = "softmax", "the largest", "softmax(1)"
        return Wording(
            does=f"Classifies {{images}}, {self.info.kind}",
            reading=f"probabilities by {chances}; decision: {decision}",
            code=f"probabilities = {{outputs}}.{code}",
            kept="Its answer is the same for an image and its",
            lost="its answer can change when an image is turned",
        )

    @property
    def losses(self) -> Mapping[str, Loss]:
        if self.info.kind == "multilabel":
            return {"bce": _entropy, "focal": _focal}
        return {"cross_entropy": _entropy, "focal": _focal}

    def class_weights(self, targets: Tensor) -> Tensor | None:
        if self.info.kind == "multilabel":
            return None
        counts = targets.bincount(minlength=self.info.num_outputs).clamp_min(1)
        return len(targets) / (len(counts) * counts)

    def validation(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        scores = classification_metrics(self.info.kind, records, targets)
        names = {"val_auc": "auc", "val_acc": "accuracy", "val_balanced_acc": "balanced_accuracy"}
        return {name: scores[key] for name, key in names.items()}

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        return goodness(line)

    def summary(self, line: Mapping[str, Any]) -> str:
        if line["val_auc"] is None:
            return f"acc {line['val_acc']:.4f} (no AUC, a class is absent from the validation split)"
        return f"auc {line['val_auc']:.4f} acc {line['val_acc']:.4f}"

    def record(
        self, outputs: Tensor, targets: Tensor, upright: Tensor | None = None, inside: Tensor | None = None
    ) -> Tensor:
        return outputs.float()

    def no_targets(self, images: Tensor) -> Tensor:
        shape = (len(images), self.info.num_outputs) if self.info.kind == "multilabel" else (len(images),)
        return torch.zeros(shape, dtype=torch.int64)

    def check_records(self, records: Any, targets: Any) -> str | None:
        outputs, images = self.info.num_outputs, records.shape[1]
        several = self.info.kind == "multilabel"
        if records.dtype.kind != "f" or records.shape[2:] != (outputs,):
            return f"logits must be numbers (positions, images, {outputs})"
        if targets.dtype.kind not in "iu" or targets.shape != ((images, outputs) if several else (images,)):
            return f"labels must be whole numbers of {images} images"
        below = 2 if several else outputs
        if images and not 0 <= targets.min() <= targets.max() < below:
            return f"labels must lie in 0..{below - 1}"
        return None

    def table(self, records: Tensor, targets: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
        kind, labels = self.info.kind, self.info.labels
        metrics = [classification_metrics(kind, logits, targets, labels) for logits in records]
        accuracy, balanced = bootstrap(kind, records, targets)
        rows = []
        for scores, accuracy_ci, balanced_ci in zip(metrics, interval(accuracy), interval(balanced), strict=True):
            row = {score.key: scores[score.key] for score in (self.main, *self.others)}
            intervals = {"accuracy_ci": accuracy_ci, "balanced_accuracy_ci": balanced_ci}
            rows.append({**row, **intervals, "recall": scores["per_class"]["recall"]})
        return rows, accuracy

    def agreements(self, records: Tensor) -> Tensor:
        return correct(self.info.kind, records, decide(self.info.kind, records[0])).double()

    def by_image(self, records: Tensor, targets: Tensor) -> Tensor:
        right = (decide(self.info.kind, records) == targets).double()
        return right.mean(-1) if self.info.kind == "multilabel" else right

    def over_turns(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        same = correct(self.info.kind, records, decide(self.info.kind, records[0]))
        always = correct(self.info.kind, records[1:], targets).all(0)
        return {"constant": same.all(0).double().mean().item(), "always_right": always.double().mean().item()}

    def details(
        self, records: Tensor, targets: Tensor, positions: Sequence[Position], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        scores = classification_metrics(self.info.kind, records[0], targets, self.info.labels)
        return {"upright": {name: value for name, value in scores.items() if name != "notes"}}

    def operating_point(self, records: Tensor, targets: Tensor, threshold: str) -> dict[str, Any]:
        return operating_point(self.info.kind, records, targets, threshold)

    def clinical(
        self, records: Tensor, targets: Tensor, turned: Sequence[int], point: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return clinical(self.info.kind, self.info.labels, records, targets, turned, point)

    def notes(self, records: Tensor, targets: Tensor) -> list[str]:
        return classification_metrics(self.info.kind, records, targets, self.info.labels)["notes"]

    def constant(self, records: Tensor) -> str | None:
        kind, labels = self.info.kind, self.info.labels
        return constant(labels, one_hot(kind, decide(kind, records), len(labels)))

    def prepared(self, records: Tensor, targets: Tensor) -> _Prepared:
        kind, turned = self.info.kind, records[1:]
        return _Prepared(
            upright=correct(kind, records[0], targets),
            always=correct(kind, turned, targets).all(0),
            share=self.by_image(turned, targets).mean(0),
            rotated_mean=bootstrap(kind, turned, targets)[0].mean(1),
        )

    def paired(self, a: _Prepared, b: _Prepared) -> dict[str, Any]:
        return {
            **{f"upright_{name}": value for name, value in mcnemar(a.upright, b.upright).items()},
            "rotated_mean_difference_ci": interval((a.rotated_mean - b.rotated_mean)[:, None])[0],
            "rotated_mean_p": sign_flip_test(a.share - b.share),
            **{f"always_right_{name}": value for name, value in mcnemar(a.always, b.always).items()},
        }

    def answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        kind, labels = self.info.kind, self.info.labels
        return [
            {
                "label": [labels[i] for i in decided.nonzero().flatten()] if kind == "multilabel" else labels[decided],
                "probabilities": dict(zip(labels, chances.tolist(), strict=True)),
            }
            for decided, chances in zip(decide(kind, outputs), probabilities(kind, outputs), strict=True)
        ]

    def columns(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        label = answer["label"]
        chances = {f"p({name})": chance for name, chance in answer["probabilities"].items()}
        return {"label": "; ".join(label) if isinstance(label, list) else label, **chances}

    @property
    def readings(self) -> tuple[Score, ...]:
        return tuple(Score(label, label) for label in self.info.labels)

    def read(self, answer: Mapping[str, Any]) -> list[float]:
        return list(answer["probabilities"].values())

    def said(self, answer: Mapping[str, Any]) -> str:
        return _words([answer["label"]] if isinstance(answer["label"], str) else answer["label"])

    def told(self, target: Tensor) -> str:
        numbers = target.nonzero().flatten() if target.dim() else [target]
        return _words([self.info.labels[i] for i in numbers])

    def shown(self, answer: Mapping[str, Any]) -> dict[str, str | None]:
        labels = [answer["label"]] if isinstance(answer["label"], str) else answer["label"]
        chances = (f"{100 * answer['probabilities'][label]:.1f} %" for label in labels)
        return {"label": ", ".join(labels) or None, "probability": ", ".join(chances) or None}

    def curves(
        self, answer: Mapping[str, Any], upright: Mapping[str, Any], agreement: float
    ) -> list[tuple[Score, float]]:
        """The probability of the label that is the likeliest upright."""
        label = max(upright["probabilities"], key=upright["probabilities"].__getitem__)
        return [(Score("probability", f"probability of {label}"), answer["probabilities"][label])]

    def examples(self, targets: Tensor, count: int) -> list[int]:
        """The first image of each label, with several labels of each the first that has no other."""
        if self.info.kind == "multilabel":
            alone = targets.sum(1) == 1
            has = [alone & (label == 1) for label in targets.T]
        else:
            has = [targets == label for label in range(self.info.num_outputs)]
        return [int(each.int().argmax()) for each in has if each.any()][:count] or super().examples(targets, 1)


def goodness(line: Mapping[str, Any]) -> tuple[float, float]:
    """Order of epochs: validation AUC, or accuracy where all images have one label so that there is no AUC; loss."""
    return (line["val_acc"] if line["val_auc"] is None else line["val_auc"]), -line["val_loss"]


def _words(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"


def _entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the logarithm of the probability of each label, (N, K) for several labels, else (N,)."""
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, labels, reduction="none")


def _entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    return _mean(_entropies(logits, labels), labels, weight)


def _focal(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Focal loss (Lin et al., arXiv 1708.02002) with its exponent 2."""
    each = _entropies(logits, labels)
    return _mean(torch.expm1(-each).square() * each, labels, weight)


def _mean(each: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    return each.mean() if weight is None else (weight.to(each)[labels] * each).mean()
