"""What a trained network makes of a user's own images, and whether turning an image changes its answer."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from isoconv._checks import count_of
from isoconv._extras import require
from isoconv._text import csv_table
from isoconv.data import DeviceBatches, Split
from isoconv.data.files import read_each, split_index
from isoconv.evaluation.measuring import in_eval_mode, position_records, with_progress
from isoconv.evaluation.protocols import conditions
from isoconv.runs import RunDir, atomic_write, resolve_device, whole_folder
from isoconv.tasks import Task
from isoconv.tasks.summary import indices

__all__ = ["Predictor", "check_output", "predict", "write_predictions"]

log = logging.getLogger(__name__)

_PLACE = ("source", "index", "mask")  # of an answer, the first columns of a table
OnError = Callable[[Path, Exception], object]
_log_note = partial(log.warning, "note: %s")


def predict(
    run: RunDir | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    batch_size: int | None = None,
    device: str = "auto",
    rotations: bool = True,
    onerror: OnError | None = None,
) -> list[dict[str, Any]]:
    """Let the network of a run answer on image files, resized to the size that it was trained at.

    Args:
        run: a run directory.
        paths: image files, or folders of them; what they may hold says :func:`isoconv.data.read_images`.
        batch_size: images per forward pass; None leaves it to the task.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        rotations: also measure how far the answers to the turned image agree with that to the upright one, for which
            each image is answered some 35 times more.
        onerror: called with each path that cannot be read and its error; the others are answered. None raises the
            first error instead.

    Returns:
        A row per image:

        - ``source``: the file, of an npz archive with ``:array``;
        - ``index``: its place in a stack, None for a single image;
        - what :meth:`isoconv.tasks.base.Task.answers` gives: of a classification ``label``, the name of the class (with
          several labels the list of those whose probability exceeds 1/2), and ``probabilities`` by label; of a
          segmentation ``mask``, uint8 label numbers (*spatial), and ``shares`` of the pixels by label;
        - the agreement of the task, such as ``consistency``: over the standard protocol's rotations, all of them within
          the inscribed disc (ball). Over a test set its mean is what :func:`isoconv.evaluation.evaluate` finds.

    Raises:
        FileNotFoundError: no run or no network there, a path does not exist, or a folder holds no image.
        ValueError: an image that cannot be read or that the network cannot take, named.
        FloatingPointError: outputs that are not finite.
    """
    predictor = Predictor(run, device)
    read = predictor.read(paths, onerror)
    return predictor.predict(*read, batch_size=batch_size, rotations=rotations, progress=True)


class Predictor:
    """The network of a run, loaded once to answer on images again and again, as :func:`predict` does.

    Attributes:
        run: its run directory.
        task: what it was trained for.
        size: side in pixels of the images that it takes.
        model: images (N, C, *spatial) in [0, 1] to outputs, in eval mode on ``device``.
    """

    def __init__(self, run: RunDir | str | os.PathLike[str], device: str = "auto") -> None:
        self.run = run if isinstance(run, RunDir) else RunDir(run)
        self.task: Task = self.run.task
        self.size: int = self.run.model_info["input_size"]
        self.device = resolve_device(device)
        self.model = self.run.load_model().to(self.device)

    def read(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], onerror: OnError | None = None
    ) -> tuple[list[str], Tensor]:
        """The images in files, named, as :func:`isoconv.data.read_images` reads them for this network; ``onerror`` as
        in :func:`predict`."""
        info = self.task.info
        names: list[str] = []
        parts = [torch.empty(0, info.channels, *[self.size] * info.dims, dtype=torch.uint8)]
        for path, found in read_each(paths, channels=info.channels, size=self.size, dims=info.dims):
            if not isinstance(found, Exception):
                names += found[0]
                parts.append(found[1])
            elif onerror is None:
                raise found
            else:
                onerror(path, found)
        images = torch.cat(parts)
        if info.channels == 3 and (grey := (images == images[:, :1]).flatten(1).all(1).sum().item()):
            log.info("%d of %s grey: repeated in red, green and blue", grey, count_of(len(images), "image"))
        return names, images

    def predict(
        self,
        names: Sequence[str],
        images: Tensor,
        *,
        batch_size: int | None = None,
        rotations: bool = True,
        progress: bool = False,
        onnote: Callable[[str], object] = _log_note,
    ) -> list[dict[str, Any]]:
        """The rows of :func:`predict` for what :meth:`read` returned; ``progress`` shows a bar in a terminal.
        ``onnote`` is told why the agreement under rotation says nothing, where that is so."""
        if not names:
            return []
        task = self.task
        unlabelled = Split(images, task.no_targets(images))
        batch_size = task.evaluation_batch[task.info.dims] if batch_size is None else batch_size
        batches = DeviceBatches(unlabelled, batch_size, device=self.device, seed=0, shuffle=False)
        answers = [row for each, _ in batches for row in task.answers(self.outputs(each))]
        rows = []
        for name, answer in zip(names, answers, strict=True):
            source, index = split_index(name)
            rows.append({"source": source, "index": index, **answer})
        if rotations:
            upright, *others = conditions("standard", task.info.dims)
            turned = [upright, *(p for p in others if p.group == "rotation")]
            shown = with_progress(batches) if progress else batches
            records = position_records(self.model, task, shown, turned)
            if (note := self._constant(records[0])) is not None:
                onnote(note)
            agreement = task.agreements(records)
            means = agreement[indices(turned, "rotation")].mean(0).tolist()
            for row, mean in zip(rows, means, strict=True):
                row[task.agreement.key] = mean
        return rows

    def _constant(self, upright: Tensor) -> str | None:
        """Answers that do not depend on the image agree under rotation, too; the test images tell whether they do."""
        if (note := self.task.constant(upright)) is None:
            return None
        try:
            evaluated = self.run.results()
        except (FileNotFoundError, ValueError):
            unknown = (
                "the answers are all the same; if the network knows no other, that they are invariant says nothing"
            )
            return f"{unknown}; see: isoconv evaluate {self.run.path}"
        return note if any(note in entry["notes"] for entry in evaluated.values()) else None

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> Tensor:
        """Outputs, float32 on the CPU, for images (N, C, *spatial) in [0, 1] on the device.

        Raises:
            FloatingPointError: they are not finite.
        """
        with in_eval_mode(self.model):
            outputs = self.model(images).float().cpu()
        if not outputs.isfinite().all():
            raise FloatingPointError(
                f"the network of {self.run.path.name} gives outputs that are not finite; train again with a lower --lr"
            )
        return outputs


def check_output(path: Path, folder: bool = False) -> None:
    """Refuse, before the work, a file that cannot be written anew; or a ``folder``, unless it is empty or can be made.

    Raises:
        ValueError: a file of another ending than those of :func:`write_predictions`.
        FileExistsError, FileNotFoundError, PermissionError: as the names say.
    """
    if not folder and path.suffix.lower() not in _WRITERS:
        raise ValueError(f"a table is written as {' or '.join(_WRITERS)}, got {path}; choose one of these endings")
    if path.exists() and not (folder and path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not overwritten; choose another name or delete it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written; choose another or get permission")


def write_predictions(task: Task, rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Write the rows of :func:`predict` to a new file: ``.json`` as they are, ``.csv`` as a table. Masks go to a new
    folder, a PNG file for each image and an npy file for each volume, with the table of all rows, ``masks.csv``.

    In the table, several labels of an image are joined by semicolons, and the probability of each label has a column
    ``p(label)``.

    Returns:
        The rows, with the file of each mask in its place.

    Raises:
        ValueError: another ending; or two masks would get the same name.
        FileExistsError: the file or folder exists; it stays as it is.
        OSError: it cannot be written; nothing is left of a file then.
    """
    path, folder = Path(path), bool(rows) and "mask" in rows[0]
    check_output(path, folder)
    if not folder:
        table = _table(task, rows, path.suffix)
        atomic_write(path, lambda f: f.write(table))
        return list(rows)
    files = [_stem(row) + (".png" if row["mask"].ndim == 2 else ".npy") for row in rows]
    if len(set(files)) < len(files):
        raise ValueError("several images have the same name, their masks would be one file; predict them apart")
    written = [{**row, "mask": str(path / file)} for file, row in zip(files, rows, strict=True)]
    with whole_folder(path) as made:
        for file, row in zip(files, rows, strict=True):
            with (made / file).open("wb") as opened:
                _write_mask(row["mask"], opened)
        (made / "masks.csv").write_bytes(_table(task, written, ".csv"))
    return written


def _table(task: Task, rows: Sequence[dict[str, Any]], ending: str) -> bytes:
    return _WRITERS[ending.lower()](task, rows).encode(errors="surrogateescape")  # names of files may be any bytes


def _stem(row: Mapping[str, Any]) -> str:
    """``"cell"`` of ``"scans/cell.png"``, ``"stack_7"`` of ``"stack.npy[7]"``, ``"set_images_7"`` of
    ``"set.npz:images[7]"``."""
    path, *array = re.split(r"(?<=\.npz):", row["source"], flags=re.IGNORECASE)
    return "_".join([Path(path).stem, *array, *([] if row["index"] is None else [str(row["index"])])])


def _write_mask(mask: np.ndarray, file: IO[bytes]) -> None:
    if mask.ndim == 2:
        require("PIL.Image", "study").fromarray(mask).save(file, format="PNG")
    else:
        np.save(file, mask, allow_pickle=False)


def _json(_task: Task, rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _csv(task: Task, rows: Sequence[dict[str, Any]]) -> str:
    def cells(row: Mapping[str, Any]) -> dict[str, Any]:
        first, last = ({n: row[n] for n in names if n in row} for names in (_PLACE, (task.agreement.key,)))
        return {**first, **task.columns(row), **last}

    flat = [cells(row) for row in rows]
    heads = list(flat[0]) if flat else ["source", "index"]
    return csv_table([heads, *([row[head] for head in heads] for row in flat)])


_WRITERS = {".csv": _csv, ".json": _json}
