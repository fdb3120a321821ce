"""What differs between kinds of work, and nothing else does: a task is one object that the training, the evaluation and
everything after them ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv.data import Task as DataInfo
from isoconv.tasks.scores import Score, beside_scores, main_scores
from isoconv.tasks.summary import Position

__all__ = ["Defaults", "Loss", "Task", "Wording"]

Loss = Callable[..., Tensor]
"""(outputs, targets) to the mean over a batch; of classifications also with ``weight``, see
``Task.class_weights``."""


@dataclass(frozen=True)
class Wording:
    """What is said of a task to people.

    Attributes:
        does: what a network does, ``{images}`` standing for images or volumes: "Classifies {images}".
        reading: how outputs are read: "probabilities by softmax; decision: the largest".
        code: what turns outputs into what people read, in Python: ``"probabilities = {outputs}.softmax(1)"``.
        kept, lost: what a symmetric network keeps, before the name of the symmetry, and what another one loses.
    """

    does: str
    reading: str
    code: str
    kept: str
    lost: str


@dataclass(frozen=True)
class Defaults:
    """Options of a training that its config leaves open; by the number of dims where they depend on it."""

    width: int
    size: int
    batch_size: Mapping[int, int]
    lr: Mapping[int, float]


class Task(ABC):
    """A kind of work on a data set, of which ``info`` tells the facts.

    A network gives *outputs*. What is kept of them for each image and position is a *record*, from which all scores
    are computed: once in the training, again in an evaluation, and by whoever compares.

    Attributes:
        name: of the kind of work, as ``--task`` has it.
        kinds: of data (:data:`isoconv.data.Kind`) that it is for.
        networks: which networks fit, as :func:`isoconv.models.register_model` names their task.
        record_name: what records are called in files.
        defaults: of the training.
        evaluation_batch: images per forward pass, by the number of dims.
        losses: by name, the default one first.
        turns_in_training: whether images can be augmented, their targets staying what they are.
        masked: whether a network sees the inscribed disc (ball) alone, but for the recipe official.
        knows_disc: whether a network that is not masked has seen images cut to it in its training.
        pooled: whether the main score is of all images together, and not the mean over images.
        averages: whether the mean of records over turns of an image is the record of the mean output.
        answers_with_masks: whether answers have a ``mask``, the number of a label for each pixel, which is written to a
            file of its own.
        has_operating_point: whether thresholds and a temperature are chosen on validation images.
        answer_fields: what else answers have, with its type and what it is.
        main, others: the score that leads, and those that stand beside it; each has a value in every position.
        agreement: how far answers agree with the upright ones.
        of_main: the main score in each group of positions.
        scores: all scores of the ``summary`` of an evaluation, in the order in which they are shown.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    networks: ClassVar[str]
    record_name: ClassVar[str]
    defaults: ClassVar[Defaults]
    evaluation_batch: ClassVar[Mapping[int, int]] = {2: 256, 3: 16}
    turns_in_training: ClassVar[bool] = True
    masked: ClassVar[bool] = True
    knows_disc: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    answers_with_masks: ClassVar[bool] = False
    has_operating_point: ClassVar[bool] = False
    answer_fields: ClassVar[Mapping[str, tuple[Any, str]]]
    main: ClassVar[Score]
    others: ClassVar[tuple[Score, ...]] = ()
    agreement: ClassVar[Score]
    of_main: ClassVar[tuple[Score, ...]]
    scores: ClassVar[tuple[Score, ...]]

    def __init_subclass__(cls) -> None:
        cls.of_main = main_scores(cls.main)
        cls.scores = (*cls.of_main, cls.agreement, *beside_scores(cls.others))

    def __init__(self, info: DataInfo) -> None:
        self.info = info

    @property
    @abstractmethod
    def wording(self) -> Wording: ...

    @property
    @abstractmethod
    def losses(self) -> Mapping[str, Loss]: ...

    def loss_name(self, name: str | None) -> str:
        """``name``, or the default. Raises ValueError for a loss that this task does not have."""
        if name is None:
            return next(iter(self.losses))
        if name not in self.losses:
            known = ", ".join(self.losses)
            raise ValueError(
                f"loss of {self.info.kind} must be one of {known}, got {name!r}{did_you_mean(name, self.losses)}"
            )
        return name

    # Training

    def output_scale(self, targets: Tensor) -> dict[str, list[float]] | None:
        """``shift`` and ``scale`` of each output, see :class:`isoconv.runs.OnImages`, from the targets of the training
        split; None for outputs as they are."""
        return None

    def class_weights(self, targets: Tensor) -> Tensor | None:
        """A weight for each class, with which all classes weigh the same in the ``targets`` of a split; the mean over
        these is 1. None where an image has no class, or several."""
        return None

    def training_loss(self, model: nn.Module, loss: Loss, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """The loss of a batch, ``step`` counting from 0."""
        return loss(model(images), targets)

    def validation_loss(self, model: nn.Module, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs for images of the validation split."""
        return loss(outputs, targets)

    @abstractmethod
    def validation(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        """What ``metrics.jsonl`` tells of the validation split, from records (N, ...)."""

    @abstractmethod
    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        """Order of epochs, the best one the largest, from a line of ``metrics.jsonl``."""

    @abstractmethod
    def summary(self, line: Mapping[str, Any]) -> str:
        """The scores of an epoch, for the log."""

    # Records

    @abstractmethod
    def record(
        self, outputs: Tensor, targets: Tensor, upright: Tensor | None = None, inside: Tensor | None = None
    ) -> Tensor:
        """What is kept of outputs (N, ...) for images: (N, ...).

        Args:
            targets: as they are in the position of the images.
            upright: the decision for the upright images, moved as the images are; None if these are upright.
            inside: (*spatial), which pixels count; None for all of them.
        """

    def decision(self, outputs: Tensor) -> Tensor:
        """Outputs as targets are given."""
        return outputs

    def moved(self, values: Tensor, position: Any) -> Tensor:
        """Targets, or a decision, in a position of a protocol. Those of a whole image stay as they are."""
        return values

    def identity(self, targets: Tensor) -> Tensor:
        """What is kept of the targets (N, ...): it tells test images from other ones."""
        return targets

    def no_targets(self, images: Tensor) -> Tensor:
        """In the place of targets, for images (N, C, *spatial) of which none are known."""
        return images.new_zeros(len(images)).long()

    def check_records(self, records: Any, targets: Any) -> str | None:
        """Why arrays from a file are no records (positions, N, ...) and targets (N, ...) of this task, or None."""
        return None

    # Scores

    @abstractmethod
    def table(self, records: Tensor, targets: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
        """Scores of each position from records (positions, N, ...).

        Returns:
            A row per position, plain JSON values: the scores by their keys, with intervals under ``_ci``; and the main
            score in a bootstrap over images, float64 (resamples, positions).
        """

    @abstractmethod
    def agreements(self, records: Tensor) -> Tensor:
        """How far each image's answer agrees with the upright one, float64 (positions, N), from records whose first
        position is upright."""

    @abstractmethod
    def by_image(self, records: Tensor, targets: Tensor) -> Tensor:
        """The main score of each image alone, float64 (positions, N); NaN where it has none."""

    def over_turns(self, records: Tensor, targets: Tensor) -> dict[str, float | None]:
        """What only all rotations together tell, from records (1 + rotations, N, ...), the upright position first."""
        return {}

    def details(
        self, records: Tensor, targets: Tensor, positions: Sequence[Position], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What else an evaluation tells, by the name of the entry."""
        return {}

    def operating_point(self, records: Tensor, targets: Tensor, threshold: str) -> dict[str, Any]:
        """What is chosen on validation images, from records (N, ...), for :meth:`clinical`. Raises ValueError for a
        ``threshold`` that this task does not know."""
        raise NotImplementedError(f"{self.name} has no operating point")

    def clinical(
        self, records: Tensor, targets: Tensor, turned: Sequence[int], point: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What a row of each position, and the entry ``clinical`` of an evaluation, have of it; see
        :func:`isoconv.tasks.clinical.clinical`."""
        raise NotImplementedError(f"{self.name} has no operating point")

    @abstractmethod
    def notes(self, records: Tensor, targets: Tensor) -> list[str]:
        """What is undefined or worthless in the upright scores, and why."""

    def constant(self, records: Tensor) -> str | None:
        """Why the agreement of the answers under rotation is worthless, from upright records (N, ...): they are all the
        same. None where they are not."""
        return None

    # Pairs of networks on the same images

    @abstractmethod
    def prepared(self, records: Tensor, targets: Tensor) -> Any:
        """What :meth:`paired` needs of a network: from records (1 + rotations, N, ...), the upright position first."""

    @abstractmethod
    def paired(self, a: Any, b: Any) -> dict[str, Any]:
        """Paired tests of two prepared networks: ``upright_p``, ``rotated_mean_difference_ci``, ``rotated_mean_p`` and
        what else there is, plain JSON values."""

    # Answers

    @abstractmethod
    def answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        """What a network says of images: a row for each of the outputs (N, ...), plain JSON values but for masks."""

    @abstractmethod
    def columns(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """A row of :meth:`answers` as cells of a CSV table."""

    @property
    @abstractmethod
    def readings(self) -> tuple[Score, ...]:
        """The numbers of an answer: what they are called, and their units."""

    @abstractmethod
    def read(self, answer: Mapping[str, Any]) -> list[float]:
        """The numbers of a row of :meth:`answers`, in the order of :attr:`readings`."""

    def said(self, answer: Mapping[str, Any]) -> str:
        """What a row of :meth:`answers` decides, in a few words; empty where its numbers say everything."""
        return ""

    def told(self, target: Tensor) -> str:
        """The target of an image in a few words, those of :meth:`said` where that says any."""
        return ""

    def shown(self, answer: Mapping[str, Any]) -> dict[str, str | None]:
        """A row of :meth:`answers` as cells of a table for people."""
        return {
            reading.title: reading.text(value) for reading, value in zip(self.readings, self.read(answer), strict=True)
        }

    def curves(
        self, answer: Mapping[str, Any], upright: Mapping[str, Any], agreement: float
    ) -> list[tuple[Score, float]]:
        """What is drawn against the angle while an image turns: of the answer at an angle, given the upright one and
        how far it agrees with that, numbers with their names and units. The names are those of the upright answer."""
        return list(zip(self.readings, self.read(answer), strict=True))

    def examples(self, targets: Tensor, count: int) -> list[int]:
        """Up to ``count`` of the images with these targets (N, ...), to be shown as examples."""
        return list(range(min(count, len(targets))))

    def explained(self, outputs: Tensor) -> int:
        """Which of the outputs (1, ...) of an image is asked for when its answer is to be explained: the largest on
        average."""
        return int(outputs[0].reshape(self.info.num_outputs, -1).mean(1).argmax())

    @property
    def output_shape(self) -> str:
        """Of the outputs, in words: ``"(N, 9)"``."""
        return f"(N, {self.info.num_outputs})"
