"""Training one network on one data set, through lightning.

What changes the weights says :mod:`isoconv.training.recipes`. The best network is chosen on the validation split; the
test split is never touched here. Everything random is a function of the seed, the epoch and the process, so a training
that was killed and resumed ends with the weights of one that was not.

Under torchrun each process computes its share of every batch. Normalisation statistics are those of the share; the
running statistics of the first process are given to all before each validation. Every process then validates on the
whole split with the same network: nothing to gather, and no image is counted twice. Only the first process writes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from isoconv._checks import check_memory, count_of
from isoconv._extras import require
from isoconv.bands import NORMS
from isoconv.data import DeviceBatches, find, own_path
from isoconv.data.augment import augmentation, input_size
from isoconv.models import create_model, list_models, model_info
from isoconv.models.pretrained import adopt, check_as_trained
from isoconv.runs import OnImages, RunDir, resolve_device, use_threads
from isoconv.runs.config import NETWORK_OPTIONS, Balance, Logger, TrainConfig
from isoconv.runs.lock import lock
from isoconv.tasks import Task, task_of
from isoconv.training.checkpoints import AtomicCheckpointIO, history_of
from isoconv.training.learner import Learner
from isoconv.training.loggers import check_logger, logger_of
from isoconv.training.recipes import optimiser, schedule
from isoconv.training.recorder import Recorder

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

__all__ = ["build", "is_first_process", "resolved", "train"]

log = logging.getLogger(__name__)

_UNEVEN = 3  # times the images of the smallest class, from which on recipe modern weights the classes
_ENVIRONMENTS = "lightning.fabric.plugins.environments"
_PROCESSES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}  # torchrun sets these; without it there is one process


def train(config: TrainConfig, resume: bool = False, wait: bool = False, logger: Logger | None = None) -> RunDir:
    """Train a network and return its run directory.

    Args:
        config: what to train; ``config.out`` is made.
        resume: continue the run in ``config.out``, which must have been started with the same config; a finished run
            is left as it is.
        wait: while another process works in ``config.out``.
        logger: a program that is told what `metrics.jsonl` is told.

    Raises:
        isoconv.runs.lock.BusyError: another process works in ``config.out``, and ``wait`` is false.
        FileExistsError: ``config.out`` exists and ``resume`` is false.
        ModuleNotFoundError: the library of ``logger`` is missing.
        ValueError: an unknown name or impossible value, more than this machine can bear, a damaged checkpoint, or
            ``resume`` with another config or other data.
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C or SIGTERM; it can be resumed.
        FloatingPointError: the loss became infinite or NaN; the last good checkpoint is kept.
        OSError: the run directory cannot be written; the last good checkpoint is kept.
    """
    if logger is not None:
        check_logger(logger)
    with lock(config.out, "training", wait):
        return _train(config, resume, logger)


def _train(config: TrainConfig, resume: bool, logger: Logger | None) -> RunDir:
    info, load = find(config.data, config.data_root, config.task, config.part)
    task = task_of(info)
    if config.task is None and own_path(config.data):
        log.info("%s looks like %s; --task overrides it", config.data, _described(task))
    config = resolved(config, task)
    size, batch_size, lr = cast(int, config.size), cast(int, config.batch_size), cast(float, config.lr)
    use_threads(config.threads)
    rank, world_size, local_size = (int(os.environ.get(name, n)) for name, n in _PROCESSES.items())
    device = resolve_device(config.device)
    if config.precision == "16-mixed" and device.type == "cpu":  # lightning would take bf16 instead
        raise ValueError("precision 16-mixed needs a GPU; use --precision bf16-mixed")

    pl.seed_everything(config.seed, verbose=False)
    seen = input_size(config.recipe, size)
    if device.type == "cpu":
        _check_memory(config, task, seen)
    net = build(config, task)
    if config.pretrained is not None:
        trained: Any = RunDir(config.pretrained).load_model()
        fresh = adopt(net, trained.net.state_dict(), config.pretrained)
        log.info("starting from %s%s", config.pretrained, f", {', '.join(fresh)} anew" if fresh else "")
    data = load(size)
    weights = task.class_weights(data.train.labels)
    config = replace(config, balance=_balance(config, task, weights))
    augment = augmentation(config.recipe, info.dims, seen, rotate=config.rotate) if task.turns_in_training else None
    batches = partial(DeviceBatches, batch_size=batch_size, device=device, seed=config.seed, resize=seen)
    train_batches = batches(
        data.train,
        shuffle=True,
        chances=weights[data.train.labels] if weights is not None and config.balance == "sampling" else None,
        augment=augment,
        rank=rank,
        world_size=world_size,
    )
    val_batches = batches(data.val, shuffle=False)
    model = OnImages(net, task.masked and config.recipe != "official", task.output_scale(data.train.labels))
    learner = Learner(
        model,
        task,
        partial(optimiser, config.recipe, lr=lr),
        schedule(config.recipe, lr, config.epochs, len(train_batches)),
        config.loss,
        weights if config.balance == "weights" else None,
        bool(config.precondition),
    )

    checkpoint = None
    if resume:
        run = RunDir(config.out)
        run.check_same(config)
        run.check_data(data.fingerprints)
        if run.last_checkpoint.exists():
            checkpoint = run.last_checkpoint
            history = history_of(checkpoint, learner.state_dict())
            log.info("%s: %d of %s done", run.path, len(history), count_of(config.epochs, "epoch"))
            if rank == 0:  # it may have been stopped between the checkpoint and this
                run.write_metrics(history)
            if len(history) >= config.epochs:
                return run
        if rank == 0:
            run.note_resumed(config)
    elif rank == 0:
        RunDir.create(config, data.fingerprints)
    trainer = _trainer(config, device, world_size, local_size, Recorder(config, train_batches, seen), logger)
    _fit(trainer, learner, train_batches, val_batches, checkpoint, config)
    return RunDir(config.out)


def _check_memory(config: TrainConfig, task: Task, size: int) -> None:
    """Refuse a training whose weights, or images and first feature maps of a batch, alone exceed the memory."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in build(config, task).parameters())
    width, batch_size, info = cast(int, config.width), cast(int, config.batch_size), task.info
    states = "weights, with gradients and momentum,"
    check_memory(12 * weights, f"the {states} of {config.model} of width {width}", "use a smaller --width")
    images = min(batch_size, info.counts[0])
    maps = images * (info.channels + width / (config.stem_stride or 1) ** info.dims)
    what = f"a batch of {count_of(images, 'image')} of {size} pixels with their first feature maps"
    check_memory(4 * maps * size**info.dims, what, "use a smaller --size, --batch-size or --width")


def resolved(config: TrainConfig, task: Task) -> TrainConfig:
    """``config`` with every option that it leaves open as ``task`` has it, and data of users' own by an absolute path:
    a run is evaluated from any folder.

    Raises:
        ValueError: an option that the task has no use for.
    """
    if not task.turns_in_training and (config.rotate or config.recipe == "official"):
        raise ValueError(
            f"{task.name} trains by recipe standard or modern without rotation; leave out --recipe and --rotate"
        )
    if config.recipe == "modern" and config.precondition:
        raise ValueError("AdamW scales every gradient itself, so equal ones change nothing; leave out --precondition")
    defaults, dims = task.defaults, task.info.dims
    usual: dict[str, Any] = {
        "width": defaults.width,
        "size": defaults.size,
        "batch_size": defaults.batch_size[dims],
        "lr": model_info(config.model).lr if config.recipe == "modern" else defaults.lr[dims],
        "precondition": config.recipe == "standard",
        "norm": "unit" if config.recipe == "modern" and "norm" in model_info(config.model).options else NORMS[0],
    }
    if config.pretrained is not None:
        source = RunDir(config.pretrained).model_info["model"]
        usual["norm"] = NORMS[0]
        usual |= {name: source[name] for name in ("width", *NETWORK_OPTIONS) if name in source}
    left = {name: value for name, value in usual.items() if getattr(config, name) is None}
    data = str(own_path(config.data) or config.data)
    return replace(config, data=data, task=task.name, loss=task.loss_name(config.loss), **left)


def _balance(config: TrainConfig, task: Task, weights: torch.Tensor | None) -> Balance:
    """What is done for rare classes, decided by the ``weights`` of all where ``config`` leaves it open."""
    if weights is None:
        if config.balance not in (None, "none"):
            raise ValueError(f"{task.name} ({task.info.kind}) has no classes to balance; leave out --balance")
        return "none"
    if config.balance is not None:
        return config.balance
    ratio = (weights.max() / weights.min()).item()
    if config.recipe != "modern" or ratio < _UNEVEN:
        return "none"
    log.info("the largest class has %.1f times the images of the smallest: --balance weights, none turns it off", ratio)
    return "weights"


def _described(task: Task) -> str:
    info = task.info
    labels = f"{', '.join(info.labels[:8])}{', ...' if len(info.labels) > 8 else ''}"
    kind = "" if info.kind == task.name else f"{info.kind}, "
    return f"{task.name} ({kind}{info.dims}D: {labels})"


def _trainer(
    config: TrainConfig,
    device: torch.device,
    world_size: int,
    local_size: int,
    recorder: Recorder,
    logger: Logger | None,
) -> pl.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # their INFO is an inventory of the hardware and advertising
    in_terminal = sys.stderr.isatty()
    bar = [pl.callbacks.RichProgressBar(console_kwargs={"stderr": True})] if in_terminal else []
    # else lightning asks SLURM and MPI for processes, and answers SLURM's signals by requeueing the job
    alone = [require(_ENVIRONMENTS, extra="study").LightningEnvironment()] if world_size == 1 else []
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=device.type,
        devices=local_size if world_size > 1 else 1,
        num_nodes=world_size // local_size,
        strategy="ddp" if world_size > 1 else "auto",
        precision=config.precision,
        callbacks=[recorder, *bar],
        plugins=[AtomicCheckpointIO(), *alone],
        enable_progress_bar=in_terminal,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=logger_of(logger, config.out) if logger else False,
        log_every_n_steps=1,  # nothing is logged by the step, but lightning warns of fewer steps than this
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=config.out,
    )


def _fit(
    trainer: pl.Trainer,
    learner: Learner,
    train_batches: DeviceBatches,
    val_batches: DeviceBatches,
    checkpoint: Path | None,
    config: TrainConfig,
) -> None:
    with warnings.catch_warnings():
        # lightning 2.6 trips over a deprecation of torch 2.13 in its own code
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        try:
            trainer.fit(learner, train_batches, val_batches, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # lightning ends with status 1 on Ctrl-C, and on SIGTERM with that of success
            log.info("%s: stopped; it can be resumed after its last finished epoch", config.out)
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            sys.exit(stop.code or 128 + signal.SIGTERM)


def is_first_process() -> bool:
    """False in all processes of torchrun but one."""
    return int(os.environ.get("RANK", 0)) == 0


def build(config: TrainConfig, task: Task) -> nn.Module:
    """The untrained network of ``config``.

    Raises:
        ValueError, TypeError: it is for other work or other dims, or has no such option; the message names one that
            fits.
    """
    info, model = task.info, model_info(config.model)
    if model.task != task.networks:
        fitting = ", ".join(list_models(dims=info.dims, task=task.networks))
        raise ValueError(f"network {config.model!r} is not for {task.name}; use --model with one of {fitting}")
    if model.dims != info.dims:
        fitting = model.twin(info.dims) or ", ".join(list_models(dims=info.dims, task=task.networks))
        raise ValueError(
            f"{info.name} has {info.dims}D images, network {config.model!r} does not; use --model {fitting}"
        )
    options = {name: value for name in NETWORK_OPTIONS if (value := getattr(config, name)) is not None}
    if config.norm == NORMS[0]:  # also of networks without bands
        del options["norm"]
    width = task.defaults.width if config.width is None else config.width
    if config.pretrained is None:
        return create_model(config.model, info.channels, info.num_outputs, width=width, **options)
    source = RunDir(config.pretrained).model_info["model"]
    if source["name"] != config.model:
        raise ValueError(
            f"{config.pretrained} is a {source['name']}, not a {config.model}; use --model {source['name']}"
        )
    check_as_trained({"width": width} | options, model.options | source, config.pretrained)
    return create_model(**source | {"in_channels": info.channels, "num_classes": info.num_outputs})
