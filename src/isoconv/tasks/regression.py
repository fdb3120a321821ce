"""Regression: one or several real numbers for each image.

A network is trained on targets of mean 0 and deviation 1, those of the training split, and gives them in their own
unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoconv.tasks.base import Defaults, Loss, Task, Wording
from isoconv.tasks.metrics import draws, interval, number, sign_flip_test
from isoconv.tasks.scores import Score
from isoconv.tasks.summary import Position, indices

__all__ = ["Regression"]

_LIMITS = 1.96  # standard deviations, of Bland and Altman's limits of agreement

_ALIKE = "the same for every image, whatever it shows: that this is invariant says nothing"


class _Prepared(NamedTuple):
    """Absolute error of each image, the mean over targets: upright (N,), and the mean over rotations (N,)."""

    upright: Tensor
    rotated: Tensor


class Regression(Task):
    """Records are the outputs, float32 (N, targets), in the unit of the targets. Errors of several targets are
    averaged."""

    name = "regression"
    kinds = ("regression",)
    networks = "classification"
    record_name = "values"
    averages = True
    answer_fields = {"values": (dict[str, float], "by target, in the unit of the training data")}
    defaults = Defaults(width=64, size=28, batch_size={2: 128, 3: 4}, lr={2: 2e-2, 3: 1e-2})
    main = Score("mae", "mean absolute error", "", higher_is_better=False)
    others = (
        Score("rmse", "root mean square error", "", higher_is_better=False),
        Score("r2", "R²", ""),
        Score("correlation", "correlation", ""),
    )
    agreement = Score("change", "change from the upright answer", "", higher_is_better=False)

    def explained(self, outputs: Tensor) -> int:
        """The first: numbers of several units cannot be compared."""
        return 0

    @property
    def wording(self) -> Wording:
        return Wording(
            does=f"Tells {', '.join(self.info.labels)} of {{images}}",
            reading=f"numbers in the unit of the training data, {', '.join(self.info.labels)}",
            code="values = {outputs}",
            kept="Its answer is the same for an image and its",
            lost="its answer can change when an image is turned",
        )

    @property
    def losses(self) -> Mapping[str, Loss]:
        return {"huber": F.huber_loss, "l1": F.l1_loss, "l2": F.mse_loss}

    def output_scale(self, targets: Tensor) -> dict[str, list[float]]:
        deviation = targets.std(0, correction=0)
        return {"shift": targets.mean(0).tolist(), "scale": torch.where(deviation > 0, deviation, 1.0).tolist()}

    def training_loss(self, model: nn.Module, loss: Loss, images: Tensor, targets: Tensor, step: int) -> Tensor:
        return self.validation_loss(model, loss, model(images), targets)

    def validation_loss(self, model: nn.Module, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        scale = getattr(model, "scale", None)
        return loss(outputs, targets) if scale is None else loss(outputs / scale, targets / scale)

    def validation(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        scores = _scores(records, targets)
        return {f"val_{name}": number(scores[name].mean().item()) for name in ("mae", "r2")}

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        return -line["val_mae"], -line["val_loss"]

    def summary(self, line: Mapping[str, Any]) -> str:
        r2 = "-" if line["val_r2"] is None else f"{line['val_r2']:.4f}"
        return f"mae {line['val_mae']:.4g} r2 {r2}"

    def record(
        self, outputs: Tensor, targets: Tensor, upright: Tensor | None = None, inside: Tensor | None = None
    ) -> Tensor:
        return outputs.float()

    def no_targets(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), self.info.num_outputs)

    def check_records(self, records: Any, targets: Any) -> str | None:
        wanted = (records.shape[1], self.info.num_outputs)
        if records.shape[1:] != wanted or targets.shape != wanted:
            return f"values must be (positions, images, {self.info.num_outputs} targets)"
        return None

    def table(self, records: Tensor, targets: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
        errors = self.by_image(records, targets)
        resampled = _bootstrap(errors)
        rows = []
        for values, ends in zip(records, interval(resampled), strict=True):
            scores = _scores(values, targets)
            row = {score.key: number(scores[score.key].mean().item()) for score in (self.main, *self.others)}
            rows.append({**row, f"{self.main.key}_ci": ends})
        return rows, resampled

    def agreements(self, records: Tensor) -> Tensor:
        return (records.double() - records[0].double()).abs().mean(-1)

    def by_image(self, records: Tensor, targets: Tensor) -> Tensor:
        return (records.double() - targets.double()).abs().mean(-1)

    def over_turns(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        """``spread``: of each image the standard deviation of its answers over all rotations, the mean over images."""
        return {"spread": records[1:].double().std(0, correction=0).mean().item()}

    def details(
        self, records: Tensor, targets: Tensor, positions: Sequence[Position], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """``targets``: of each the scores upright and as means over rotations, and Bland and Altman's limits of
        agreement (Lancet 1986): the mean of answer minus truth, and 1.96 standard deviations to either side."""
        turned = indices(positions, "rotation")
        found: dict[str, Any] = {}
        for i, label in enumerate(self.info.labels):
            shown = {"upright": records[:1, :, i], "rotated": records[turned][..., i]}
            found[label] = {
                f"{position}_{name}": number(value)
                for position, values in shown.items()
                for name, value in _of_target(values, targets[:, i]).items()
            }
        return {"targets": found}

    def notes(self, records: Tensor, targets: Tensor) -> list[str]:
        notes, constant = [], self.constant(records)
        for values, truth, label in zip(records.unbind(1), targets.unbind(1), self.info.labels, strict=True):
            if truth.max() == truth.min():
                notes.append(f"{label} is the same for all test images: without R² and correlation")
            if _alike(values) and not constant:
                notes.append(f"{label} is {_ALIKE}")
        return [*notes, *filter(None, [constant])]

    def constant(self, records: Tensor) -> str | None:
        if not all(map(_alike, records.unbind(1))):
            return None
        labels = self.info.labels
        told = labels[0] if len(labels) == 1 else f"each of {', '.join(labels)}"
        return f"{told} is {_ALIKE}"

    def prepared(self, records: Tensor, targets: Tensor) -> _Prepared:
        errors = self.by_image(records, targets)
        return _Prepared(errors[0], errors[1:].mean(0))

    def paired(self, a: _Prepared, b: _Prepared) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, difference in (("upright", a.upright - b.upright), ("rotated_mean", a.rotated - b.rotated)):
            found[f"{name}_difference_ci"] = interval(_bootstrap(difference[None]))[0]
            found[f"{name}_p"] = sign_flip_test(difference)
        return found

    def answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        return [{"values": dict(zip(self.info.labels, row, strict=True))} for row in outputs.tolist()]

    def columns(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return dict(answer["values"])

    @property
    def readings(self) -> tuple[Score, ...]:
        return tuple(Score(label, label, "") for label in self.info.labels)

    def read(self, answer: Mapping[str, Any]) -> list[float]:
        return list(answer["values"].values())

    def told(self, target: Tensor) -> str:
        return ", ".join(f"{label} {value:.4g}" for label, value in zip(self.info.labels, target.tolist(), strict=True))


def _scores(values: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of each target, from values (N, targets): ``mae``, ``rmse``, ``r2`` and ``correlation``; NaN where undefined."""
    values, targets = values.double(), targets.double()
    errors, truth, found = values - targets, targets - targets.mean(0), values - values.mean(0)
    square = errors.square().mean(0)
    known = truth.square().mean(0)
    product = (truth.square().sum(0) * found.square().sum(0)).sqrt()
    return {
        "mae": errors.abs().mean(0),
        "rmse": square.sqrt(),
        "r2": torch.where(known > 0, 1 - square / known, torch.nan),
        "correlation": torch.where(product > 0, (truth * found).sum(0) / product, torch.nan),
    }


def _bootstrap(values: Tensor, resamples: int = 1000) -> Tensor:
    """Means (resamples, M) of values (M, N) over images that are drawn with replacement, alike for all M."""
    n = values.shape[1]
    return torch.cat([times.double() @ values.T / n for times in draws(n, resamples)])


def _alike(values: Tensor) -> bool:
    return (values.max() - values.min()).item() < 1e-6 * max(1.0, values.abs().max().item())


def _of_target(values: Tensor, targets: Tensor) -> dict[str, float]:
    """Means over positions of values (positions, N) of one target."""
    each = [_scores(one[:, None], targets[:, None]) for one in values]
    scores = {name: torch.stack([scores[name] for scores in each]).mean().item() for name in each[0]}
    errors = (values.double() - targets.double()).flatten()
    bias, deviation = errors.mean().item(), errors.std().item() if len(errors) > 1 else 0.0
    low, high = bias - _LIMITS * deviation, bias + _LIMITS * deviation
    return {**scores, "bias": bias, "lower_limit": low, "upper_limit": high}
