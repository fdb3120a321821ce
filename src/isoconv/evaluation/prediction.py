"""What a trained network makes of a user's own images, and whether turning one changes its mind."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoconv.data import DeviceBatches, Split, read_images
from isoconv.data.files import split_index
from isoconv.evaluation.measuring import BATCH_SIZE, position_logits, with_progress
from isoconv.evaluation.protocols import AS_IS, conditions
from isoconv.runs import RunDir, atomic_write, resolve_device
from isoconv.tasks.metrics import correct, decide, probabilities

__all__ = ["Predictor", "check_output", "predict", "write_predictions"]

log = logging.getLogger(__name__)


def predict(
    run: RunDir | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    batch_size: int | None = None,
    device: str = "auto",
    rotations: bool = True,
) -> list[dict[str, Any]]:
    """Let the network of a run decide on image files, resized to the size that it was trained at.

    Args:
        run: a run directory.
        paths: PNG, JPEG, TIFF, npy or npz files, or folders of them; what they may hold says
            :func:`isoconv.data.read_images`.
        batch_size: images per forward pass; None stands for 256 in 2D, 16 in 3D.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        rotations: also measure ``consistency``, for which each image is decided some 35 times more.

    Returns:
        A row per image, plain JSON values:

        - ``source``: the file, of an npz archive with ``:array``;
        - ``index``: its place in a stack, None for a single image;
        - ``label``: the name of the class; of a multilabel task the list of the labels whose probability exceeds 1/2;
        - ``probabilities``: by label;
        - ``consistency``: the share of the standard protocol's rotations in which the image is decided as upright, all
          of them within the inscribed disc (ball). Over a test set its mean is the ``consistency`` that
          :func:`isoconv.evaluation.evaluate` finds.

    Raises:
        FileNotFoundError: no run or no network there, a path does not exist, or a folder holds no image.
        ValueError: an image that cannot be read or that the network cannot take, named.
        FloatingPointError: logits that are not finite.
    """
    predictor = Predictor(run, device)
    return predictor.predict(*predictor.read(paths), batch_size=batch_size, rotations=rotations, progress=True)


class Predictor:
    """The network of a run, loaded once to decide on images again and again, as :func:`predict` does.

    Attributes:
        run: its run directory.
        task: what it was trained for: ``kind``, ``dims``, ``channels``, ``labels``, ``title``.
        size: side in pixels of the images that it takes.
        model: images (N, C, *spatial) in [0, 1] to logits (N, K), in eval mode on ``device``.
    """

    def __init__(self, run: RunDir | str | os.PathLike[str], device: str = "auto") -> None:
        self.run = run if isinstance(run, RunDir) else RunDir(run)
        self.run.check_classifies("predict")
        info = self.run.model_info
        self.task: dict[str, Any] = info["task"]
        self.size: int = info["input_size"]
        self.device = resolve_device(device)
        self.model = self.run.load_model().to(self.device)

    def read(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[list[str], Tensor]:
        """The images in files, named, as :func:`isoconv.data.read_images` reads them for this network."""
        channels = self.task["channels"]
        names, images = read_images(paths, channels=channels, size=self.size, dims=self.task["dims"])
        if channels == 3 and (grey := (images == images[:, :1]).flatten(1).all(1).sum().item()):
            log.info("%d of %d images are grey: repeated in red, green and blue", grey, len(images))
        return names, images

    def predict(
        self,
        names: Sequence[str],
        images: Tensor,
        *,
        batch_size: int | None = None,
        rotations: bool = True,
        progress: bool = False,
    ) -> list[dict[str, Any]]:
        """The rows of :func:`predict` for what :meth:`read` returned; ``progress`` shows a bar in a terminal."""
        task, labels = self.task, self.task["labels"]
        unlabelled = Split(images, torch.zeros(len(images), dtype=torch.int64))
        batch_size = BATCH_SIZE[task["dims"]] if batch_size is None else batch_size
        batches = DeviceBatches(unlabelled, batch_size, device=self.device, seed=0, shuffle=False)
        upright, *others = conditions("standard", task["dims"])
        turned = [upright, *(p for p in others if p.group == "rotation")] if rotations else []
        shown = with_progress(batches) if progress else batches
        logits = self.finite(position_logits(self.model, shown, [AS_IS, *turned]))

        rows = []
        for name, label, chances in zip(names, self.label(logits[0]), self.chances(logits[0]), strict=True):
            source, index = split_index(name)
            by_label = dict(zip(labels, chances, strict=True))
            rows.append({"source": source, "index": index, "label": label, "probabilities": by_label})
        if rotations:
            same = correct(task["kind"], logits[1:], decide(task["kind"], logits[1]))
            counted = [i for i, position in enumerate(turned) if position.group == "rotation"]
            for row, share in zip(rows, same[counted].double().mean(0).tolist(), strict=True):
                row["consistency"] = share
        return rows

    def finite(self, logits: Tensor) -> Tensor:
        """``logits``, or FloatingPointError."""
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"the network of {self.run.path} gives logits that are not finite; train again with a lower --lr"
            )
        return logits

    def label(self, logits: Tensor) -> list[Any]:
        """The ``label`` of :func:`predict` for each row of logits (N, K)."""
        kind, labels = self.task["kind"], self.task["labels"]
        return [
            [labels[i] for i in decision.nonzero().flatten()] if kind == "multilabel" else labels[int(decision)]
            for decision in decide(kind, logits)
        ]

    def chances(self, logits: Tensor) -> list[list[float]]:
        """Probabilities for each row of logits (N, K), in the order of the labels."""
        return probabilities(self.task["kind"], logits).tolist()


def check_output(path: Path) -> None:
    """Refuse a file that :func:`write_predictions` would refuse, before the work."""
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"predictions are written as {' or '.join(_WRITERS)}, got {path}; choose one of these endings")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another name or delete it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written; choose another or get permission")


def write_predictions(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write the rows of :func:`predict` to a new file: ``.json`` as they are, ``.csv`` as a table.

    In the table, several labels of an image are joined by semicolons, and the probability of each label has a column
    ``p(label)``.

    Raises:
        ValueError: another ending.
        FileExistsError: the file exists; it stays as it is.
        OSError: it cannot be written; nothing is left of it then.
    """
    path = Path(path)
    check_output(path)
    content = _WRITERS[path.suffix.lower()](rows).encode(errors="surrogateescape")  # names of files may be any bytes
    atomic_write(path, lambda f: f.write(content))


def _json(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    flat = [
        {
            **{name: value for name, value in row.items() if name != "probabilities"},
            "label": "; ".join(row["label"]) if isinstance(row["label"], list) else row["label"],
            **{f"p({label})": chance for label, chance in row["probabilities"].items()},
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else ["source", "index", "label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


_WRITERS = {".csv": _csv, ".json": _json}
