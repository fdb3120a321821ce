"""How a trained network does on the test images, upright and in every other position of a protocol.

What is scored is the network chosen on the validation split; test images are used here only. See
:mod:`isoconv.evaluation.protocols` for the positions and :mod:`isoconv.tasks` for the scores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoconv._checks import count_of
from isoconv._progress import track
from isoconv.data import Dataset, DeviceBatches, Split, load, resize
from isoconv.evaluation.protocols import Condition, conditions, is_masked
from isoconv.evaluation.results import load_predictions
from isoconv.nn.dense import convolutions, cost
from isoconv.runs import RunDir, resolve_device
from isoconv.runs.lock import lock
from isoconv.symmetry import circular_mask
from isoconv.tasks import Task
from isoconv.tasks.clinical import check_threshold
from isoconv.tasks.summary import indices, summarise

__all__ = [
    "evaluate",
    "measure",
    "multiply_adds",
    "position_records",
    "dataset_of",
    "first_test_image",
    "with_progress",
]


def evaluate(
    run: RunDir | str | os.PathLike[str],
    protocol: str = "standard",
    batch_size: int | None = None,
    device: str = "auto",
    limit: int | None = None,
    wait: bool = False,
    threshold: str = "half",
) -> dict[str, Any]:
    """Measure the network of a run on its test split.

    The run directory gets an entry under the protocol's name in ``results.json`` and what the task records of every
    image in ``predictions.npz``; what another protocol found stays. :func:`isoconv.figures.save_all` draws it.

    Args:
        run: a run directory.
        protocol: one of :data:`isoconv.evaluation.protocols.PROTOCOLS`.
        batch_size: images per forward pass; None stands for 256 in 2D, 16 in 3D, in segmentation for 64 and 4.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        limit: only the first so many test images, for a quick look.
        wait: while another process works in the run directory.
        threshold: of a classification, by which rule each class is told from the rest: ``"half"``, a probability of
            1/2; or chosen on the validation images, ``"youden"`` or ``"sensitivity=0.95"``, see
            :func:`isoconv.tasks.clinical.operating_point`. Also there, a temperature is fitted.

    Returns:
        The entry, plain JSON values: what :func:`measure` gives, ``cost`` (``parameters``, ``training_seconds``, and
        what :func:`multiply_adds` counts), and what was evaluated; ``masked``: whether the images were black outside of
        the inscribed disc (ball).

    Raises:
        isoconv.runs.lock.BusyError: another process works in the run directory, and ``wait`` is false.
        FileNotFoundError: no run there, or it has no network yet; or its data set is gone.
        ValueError: unknown protocol; weights, earlier results or test images that are not as they should be.
        PermissionError: the run directory cannot be written; nothing is computed then.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    conditions(protocol, run.task.info.dims)  # refuses an unknown protocol before the work
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    check_threshold(threshold)
    if threshold != "half" and not run.task.has_operating_point:
        raise ValueError(f"a threshold is for classification, {run.path} is for {run.task.name}; leave it out")
    run.check_writable()
    with lock(run.path, f"evaluating by protocol {protocol}", wait):
        return _evaluate(run, protocol, batch_size, device, limit, threshold)


def _evaluate(
    run: RunDir, protocol: str, batch_size: int | None, device: str, limit: int | None, threshold: str
) -> dict[str, Any]:
    info, config, task = run.model_info, run.config, run.task
    run.check_has_data()
    run.warn_unfinished()
    earlier = run.results() if (run.path / "results.json").exists() else {}
    predictions: dict[str, Any] = load_predictions(run)
    target = resolve_device(device)
    model = run.load_model().to(target)
    dataset = dataset_of(run)
    facts = ("dims", "labels")
    if any(getattr(dataset.task, name) != getattr(task.info, name) for name in facts):
        trained = ", ".join(task.info.labels)
        raise ValueError(f"{config.data} has other classes now than in the training, which were {trained}; train anew")
    run.check_data(dataset.fingerprints, ["val", "test"])
    test = Split(dataset.test.images[:limit], dataset.test.labels[:limit])
    shown = {"masked": run.masked, "size": info["input_size"], "batch_size": batch_size, "device": target}
    point = _operating_point(model, task, dataset.val, protocol, threshold, **shown)
    scores, records, identity = measure(model, task, test, protocol, **shown)
    if point is not None:
        turned = indices(conditions(protocol, task.info.dims, run.masked), "rotation")
        rows, clinical = task.clinical(records, identity, turned, point)
        for condition, row in zip(scores["conditions"], rows, strict=True):
            condition |= row
        scores |= {"clinical": clinical, "notes": [*scores["notes"], *clinical.pop("notes")]}
    image = resize(test.images[:1].to(target).float().div(255), info["input_size"])
    result = {
        "protocol": protocol,
        "masked": is_masked(protocol, run.masked),
        "data": {
            "name": config.data,
            "size": dataset.size,
            "test_images": len(test),
            "labels": list(task.info.labels),
        },
        "model": info["model"],
        "training": {
            "recipe": config.recipe,
            "rotate": config.rotate,
            "seed": config.seed,
            "epochs": config.epochs,
            "best_epoch": info["epoch"],
        },
        "cost": {
            "parameters": sum(p.numel() for p in model.parameters()),
            **multiply_adds(model, image),
            "training_seconds": round(sum(line["seconds"] for line in run.metrics()), 3),
        },
        **scores,
    }
    predictions |= {
        f"{protocol}_{task.record_name}": records.numpy(),
        f"{protocol}_labels": identity.numpy(),
        f"{protocol}_conditions": np.array([c["name"] for c in scores["conditions"]]),
    }
    run.save_results({**earlier, protocol: result}, predictions)
    return result


def _operating_point(
    model: nn.Module,
    task: Task,
    val: Split,
    protocol: str,
    threshold: str,
    *,
    masked: bool,
    size: int,
    batch_size: int | None,
    device: torch.device,
) -> dict[str, Any] | None:
    """Chosen on validation images, upright as the protocol shows them."""
    if not task.has_operating_point:
        return None
    upright = conditions(protocol, task.info.dims, masked)[:1]
    batches = _batches(task, val, size, batch_size, device)
    (records,) = position_records(model, task, batches, upright)
    return task.operating_point(records, val.labels.cpu(), threshold)


def _batches(task: Task, split: Split, size: int | None, batch_size: int | None, device: Any) -> DeviceBatches:
    batch_size = task.evaluation_batch[task.info.dims] if batch_size is None else batch_size
    return DeviceBatches(split, batch_size, device=device, seed=0, shuffle=False, resize=size)


def measure(
    model: nn.Module,
    task: Task,
    split: Split,
    protocol: str = "standard",
    *,
    masked: bool = True,
    size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Show a network the images of a split in every position of a protocol.

    Args:
        model: images (N, C, *spatial) in [0, 1] to outputs (N, K), or (N, K, *spatial) in segmentation; used in eval
            mode, its mode restored.
        task: what the outputs mean.
        split: the images.
        masked: whether the network knows the mask; see :func:`isoconv.evaluation.protocols.conditions`.
        size: side in pixels to which images are resized before they are turned; None leaves them as they are.
        batch_size: as in :func:`evaluate`.
        device: where the model is.

    Returns:
        Plain JSON values, and what the task records of every image, (positions, N, ...) and (N, ...), on the CPU. The
        values are:

        - ``conditions``: for each position its name, group, angle, and the scores of the task with their intervals;
        - ``summary``: of the main score what :func:`isoconv.tasks.summary.summarise` says, the task's agreement with
          the upright answer, averaged over rotations, and what only all rotations together tell. In the official
          protocol each share is rounded to 0.01 % before averaging, as its code does;
        - ``notes``: what is undefined or worthless, and why;
        - what else the task tells, such as ``upright`` of a classification and ``classes`` of a segmentation.

    Raises:
        ValueError: the split is empty, or outputs are not finite or not as the task needs them.
    """
    positions = conditions(protocol, task.info.dims, masked)
    if not len(split):
        raise ValueError(f"the test split of {task.info.name} is empty; there is nothing to evaluate")
    batches = _batches(task, split, size, batch_size, device)
    records = position_records(model, task, with_progress(batches), positions)
    targets = task.identity(split.labels.cpu())
    rows, resampled = task.table(records, targets)
    decimals = 2 if protocol == "official" and task.main.unit == "%" else None
    summary, table = summed_up(task, positions, records, targets, rows, resampled, decimals)
    values = {
        "summary": summary,
        "conditions": table,
        **task.details(records, targets, positions, rows),
        "notes": task.notes(records[0], targets),
    }
    return values, records, targets


def summed_up(
    task: Task,
    positions: Sequence[Condition],
    records: Tensor,
    targets: Tensor,
    rows: Sequence[Mapping[str, Any]],
    resampled: Tensor,
    decimals: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ``summary`` and the ``conditions`` of :func:`measure`, from what a task records (positions, N, ...), the
    upright position first, and what :meth:`isoconv.tasks.Task.table` gave for it."""
    agreement = task.agreements(records).nanmean(1).tolist()
    table = [
        {"name": p.name, "group": p.group, "angle": p.angle, **row, task.agreement.key: agree}
        for p, row, agree in zip(positions, rows, agreement, strict=True)
    ]
    summary = summarise(positions, table, resampled, task.main, (*task.others, task.agreement), decimals)
    summary[task.agreement.key] = summary.pop(f"rotated_{task.agreement.key}")
    del summary[f"upright_{task.agreement.key}"]
    turned = indices(positions, "rotation")
    return {**summary, **task.over_turns(records[[0, *turned]], targets)}, table


def multiply_adds(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Multiply-adds of the convolutions and linear layers for ``images``.

    ``multiply_adds_dense`` counts every tap of a kernel, as for the fused plain network; ``multiply_adds_banded``
    counts an isotropic layer as channels x bands per output, what is left once the taps of a band are summed first."""
    counts = {"multiply_adds_dense": 0, "multiply_adds_banded": 0}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if (found := cost(layer, inputs[0], output)) is not None:
            counts["multiply_adds_dense"] += found.dense
            counts["multiply_adds_banded"] += found.banded

    counted = [m for _, m in convolutions(model)] + [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in counted]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@torch.inference_mode()
def position_records(
    model: nn.Module, task: Task, batches: Iterable[tuple[Tensor, Tensor]], positions: Sequence[Condition]
) -> Tensor:
    """What a task records (positions, N, ...), on the CPU, of images in each of the positions, the first of which is
    upright; the model in eval mode."""
    rows = []
    with in_eval_mode(model):
        for images, targets in batches:
            inside = circular_mask(images.shape[2:], device=images.device)
            upright = None
            records = []
            for position in positions:
                outputs = model(position.apply(images)).float()
                _check_outputs(task, outputs, position.name)
                upright = task.decision(outputs) if upright is None else upright
                place = task.moved(targets, position), task.moved(upright, position)
                records.append(task.record(outputs, *place, inside if position.inside else None).cpu())
            rows.append(torch.stack(records))
    return torch.cat(rows, dim=1)


def _check_outputs(task: Task, outputs: Tensor, position: str) -> None:
    if outputs.shape[1:2] != (task.info.num_outputs,):
        raise ValueError(
            f"the network gives outputs {tuple(outputs.shape)}, {task.info.kind} needs {task.output_shape}; evaluate "
            "it on the data that it was trained on"
        )
    if not (finite := outputs.isfinite().flatten(1).all(1)).all():
        raise ValueError(
            f"the outputs for {(~finite).sum().item()} of {count_of(len(outputs), 'image')} in position {position} are "
            "not finite; the training diverged, train again with a lower --lr"
        )


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The mode of each module is restored afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def first_test_image(run: RunDir) -> Tensor:
    """The first test image of a run, as its network sees it: (1, C, *spatial) in [0, 1]."""
    return resize(dataset_of(run).test.images[:1].float().div(255), run.model_info["input_size"])


def dataset_of(run: RunDir, root: Path | None = None, *, download: bool = True) -> Dataset:
    """The images that a run was trained on, its fold among them, at the size that it asked for; ``root`` and
    ``download`` as in :func:`isoconv.data.load`."""
    config = run.config
    return load(
        config.data,
        size=config.size or run.task.defaults.size,
        root=root or config.data_root,
        download=download,
        task=config.task,
        part=config.part,
    )


def with_progress(batches: DeviceBatches) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches, and in a terminal a bar that tells how many are done."""
    return track(batches, "test images", len(batches))
