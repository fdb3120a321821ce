"""Segmentation: a label for each pixel.

The loss is cross-entropy plus soft Dice (Isensee et al., nnU-Net, 2021). Networks see images in one orientation only,
whole ones and ones cut to the inscribed disc by turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoconv.symmetry import circular_mask
from isoconv.tasks.base import Defaults, Loss, Task, Wording
from isoconv.tasks.dice import bootstrap, count, foreground, permutation_test, pooled
from isoconv.tasks.metrics import interval, number
from isoconv.tasks.scores import Score
from isoconv.tasks.summary import Position, summarise

__all__ = ["Segmentation", "segmentation_loss"]


class _Prepared(NamedTuple):
    """Counts (1 + rotations, N, K, 3), and bootstrapped Dice upright and rotated (resamples, 2)."""

    counts: Tensor
    resampled: Tensor


class Segmentation(Task):
    """Records are counts, int64 (N, K, 5): the three of :mod:`isoconv.tasks.dice` for the answer and the mask, then the
    pixels in which the answer is that for the upright image, and the pixels of the latter."""

    name = "segmentation"
    kinds = ("segmentation",)
    networks = "segmentation"
    record_name = "counts"
    defaults = Defaults(width=32, size=64, batch_size={2: 8, 3: 8}, lr={2: 2e-2, 3: 1e-2})
    evaluation_batch = {2: 64, 3: 4}
    turns_in_training = False
    masked = False
    knows_disc = True
    pooled = True
    answers_with_masks = True
    answer_fields = {"shares": (dict[str, float], "of the pixels, by label")}
    main = Score("dice", "Dice")
    agreement = Score("consistency", "same mask as upright (Dice)")

    @property
    def wording(self) -> Wording:
        return Wording(
            does="Gives each pixel of {images} a label",
            reading="probabilities by softmax at each pixel; decision: the largest there",
            code="probabilities = {outputs}.softmax(1)",
            kept="Its labels move with the image under",
            lost="a structure can get another label when the image is turned",
        )

    @property
    def losses(self) -> Mapping[str, Loss]:
        return {"dice_ce": segmentation_loss, "cross_entropy": _cross_entropy, "dice": _soft_dice}

    def training_loss(self, model: nn.Module, loss: Loss, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Every second batch is cut to the inscribed disc, as turned images are: a network has to know both."""
        if step % 2 == 0:
            return loss(model(images), targets)
        disc = circular_mask(images.shape[2:], device=images.device)
        return loss(model(images * disc)[..., disc], targets[..., disc])

    def validation(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        return {"val_dice": number(foreground(pooled(records[..., :3])).item())}

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        return -1.0 if line["val_dice"] is None else line["val_dice"], -line["val_loss"]

    def summary(self, line: Mapping[str, Any]) -> str:
        return f"dice {self.main.text(line['val_dice'])}"

    def decision(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def explained(self, outputs: Tensor) -> int:
        """The class that the most pixels have, but for the background."""
        found = outputs[0].argmax(0).flatten().bincount(minlength=self.info.num_outputs)
        return int(found[1:].argmax()) + 1

    def record(
        self, outputs: Tensor, targets: Tensor, upright: Tensor | None = None, inside: Tensor | None = None
    ) -> Tensor:
        found, classes = outputs.argmax(1), outputs.shape[1]
        others = (targets, found if upright is None else upright)
        pixels = ... if inside is None else (slice(None), inside)
        (with_mask, with_upright) = (count(found[pixels], other[pixels], classes) for other in others)
        return torch.cat([with_mask, with_upright[..., [0, 2]]], dim=-1)

    def moved(self, values: Tensor, position: Any) -> Tensor:
        """The class of the largest share where the masks of the classes are moved as images are; what comes from
        outside is background."""
        shares = F.one_hot(values.long(), self.info.num_outputs).movedim(-1, 1).float()
        found = position.move(shares[:, 1:])
        return torch.cat([1 - found.sum(1, keepdim=True), found], dim=1).argmax(1)

    def identity(self, targets: Tensor) -> Tensor:
        """Pixels of each class (N, K): no two test sets share them all."""
        return F.one_hot(targets.flatten(1).long(), self.info.num_outputs).sum(1)

    def no_targets(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)

    def check_records(self, records: Any, targets: Any) -> str | None:
        if records.dtype.kind != "i" or records.shape[2:] != (self.info.num_outputs, 5):
            return f"counts must be whole numbers (positions, images, {self.info.num_outputs} classes, 5)"
        overlap, found, true, same, upright = (records[..., i] for i in range(5))
        shared = ((overlap, found), (overlap, true), (same, found), (same, upright))
        if records.min() < 0 or any((part > whole).any() for part, whole in shared):
            return "counts of pixels that cannot be"
        return None

    def table(self, records: Tensor, targets: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
        dice, samples = pooled(records[..., :3]), bootstrap(records[..., :3])
        mean, mean_ci = foreground(dice).tolist(), _intervals(foreground(samples))
        rows = [
            {
                "dice": number(mean[i]),
                "dice_ci": mean_ci[i],
                "classes": dict(zip(self.info.labels, map(number, dice[i].tolist()), strict=True)),
                "classes_ci": dict(zip(self.info.labels, _intervals(samples[:, i]), strict=True)),
            }
            for i in range(len(dice))
        ]
        return rows, foreground(samples)

    def agreements(self, records: Tensor) -> Tensor:
        """Dice with the upright answer; 1 where neither has anything but background."""
        shared, found, upright = (records[..., 1:, i].double() for i in (3, 1, 4))
        return (2 * shared / (found + upright)).nanmean(-1).nan_to_num(nan=1.0)

    def by_image(self, records: Tensor, targets: Tensor) -> Tensor:
        overlap, found, true = (records[..., 1:, i].double() for i in range(3))
        return (2 * overlap / (found + true)).nanmean(-1)

    def details(
        self, records: Tensor, targets: Tensor, positions: Sequence[Position], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        samples = bootstrap(records[..., :3])
        classes = {
            label: summarise(positions, [{"dice": row["classes"][label]} for row in rows], samples[..., i], self.main)
            for i, label in enumerate(self.info.labels)
        }
        return {"classes": classes}

    def notes(self, records: Tensor, targets: Tensor) -> list[str]:
        true = records[..., 2].sum(0).tolist()
        notes = []
        if absent := [label for label, n in zip(self.info.labels, true, strict=True) if n == 0]:
            notes.append(f"no mask of the test set holds {', '.join(absent)}")
        return [*notes, *filter(None, [self.constant(records)])]

    def constant(self, records: Tensor) -> str | None:
        found = [label for label, n in zip(self.info.labels, records[..., 1].sum(0).tolist(), strict=True) if n]
        if len(found) > 1:
            return None
        return f"every pixel is taken for {found[0]}, whatever it shows: that this is invariant says nothing"

    def prepared(self, records: Tensor, targets: Tensor) -> _Prepared:
        counts = records[..., :3]
        return _Prepared(counts, _upright_and_rotated(bootstrap(counts)))

    def paired(self, a: _Prepared, b: _Prepared) -> dict[str, Any]:
        upright, rotated = interval(a.resampled - b.resampled)
        upright_p, rotated_p = permutation_test(a.counts, b.counts, _upright_and_rotated)
        return {
            "upright_difference_ci": upright,
            "upright_p": upright_p,
            "rotated_mean_difference_ci": rotated,
            "rotated_mean_p": rotated_p,
        }

    def answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        masks = outputs.argmax(1).to(torch.uint8)
        shares = F.one_hot(masks.flatten(1).long(), outputs.shape[1]).double().mean(1).tolist()
        return [
            {"mask": mask.cpu().numpy(), "shares": dict(zip(self.info.labels, share, strict=True))}
            for mask, share in zip(masks, shares, strict=True)
        ]

    def columns(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return {f"share of {label}": share for label, share in answer["shares"].items()}

    @property
    def readings(self) -> tuple[Score, ...]:
        return tuple(Score(label, label) for label in self.info.labels)

    def read(self, answer: Mapping[str, Any]) -> list[float]:
        return list(answer["shares"].values())

    def curves(
        self, answer: Mapping[str, Any], upright: Mapping[str, Any], agreement: float
    ) -> list[tuple[Score, float]]:
        """The agreement with the upright mask, and the share of each label but the background."""
        shares = [(Score(label, f"share of {label}"), answer["shares"][label]) for label in self.info.labels[1:]]
        return [(self.agreement, agreement), *shares]

    @property
    def output_shape(self) -> str:
        return f"(N, {self.info.num_outputs}, {', '.join('DHW'[-self.info.dims :])})"


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice loss, ``1 - mean over classes of 2 |P T| / (|P| + |T|)``, sums over the batch.

    Args:
        logits: (N, K, *spatial).
        labels: (N, *spatial), whole numbers 0..K-1.
    """
    return _cross_entropy(logits, labels) + _soft_dice(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.long())


def _soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    pixels = [0, *range(2, logits.dim())]
    target = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)
    share = logits.float().softmax(1)
    overlap, sizes = (share * target).sum(pixels), (share + target).sum(pixels)
    return 1 - ((2 * overlap + 1) / (sizes + 1)).mean()  # 1: for absent classes


def _upright_and_rotated(dice: Tensor) -> Tensor:
    """Dice (..., 1 + rotations, K), the upright position first, to the two scores (..., 2)."""
    each = foreground(dice)
    return torch.stack([each[..., 0], each[..., 1:].nanmean(-1)], dim=-1)


def _intervals(samples: Tensor) -> list[list[float] | None]:
    return [None if math.isnan(low) else [low, high] for low, high in interval(samples)]
