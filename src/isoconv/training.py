"""Training one network on one data set, through lightning.

The optimiser is the paper's (SGD, momentum 0.9, weight decay 1e-3 on all parameters, cosine to 1e-6). The best network is chosen on the
validation split; the test split is never touched here. Everything random is a function of (seed, epoch, process), so a training that was killed and
resumed ends with the weights of one that was not.

Under torchrun each process computes an equal share of every batch. Batch statistics are those of the share; running statistics are averaged
over the processes before each validation. Every process then validates on the whole split with the same weights: nothing to gather, and no image
is counted twice. Only the first process writes.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._extras import require
from .config import TrainConfig
from .data import DeviceBatches, Task, get_task, load
from .data.augment import augmentation
from .runs import Normalized, RunDir, atomic_write, check_state, resolve_device, task_info

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

log = logging.getLogger(__name__)

MOMENTUM, WEIGHT_DECAY, MIN_LR = 0.9, 1e-3, 1e-6
BATCH_SIZE, LR = {2: 128, 3: 4}, {2: 2e-2, 3: 1e-2}


def train(config: TrainConfig, resume: bool = False) -> RunDir:
    """Train a network and return its run directory.

    Args:
        config: what to train; ``config.out`` is made.
        resume: continue the run in ``config.out``, which must have been started with the same config; a finished run is left as it is.

    Raises:
        FileExistsError: ``config.out`` exists and ``resume`` is false.
        ValueError: an unknown name or impossible value, a damaged checkpoint, or ``resume`` with another config.
        FloatingPointError: the loss became infinite or NaN; the last good checkpoint is kept.
        OSError: the run directory cannot be written; the last good checkpoint is kept.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device, task = resolve_device(config.device), get_task(config.data)
    config = resolve(config, task)
    pl.seed_everything(config.seed, verbose=False)
    net = build(config, task)
    dataset = load(config.data, size=config.size, root=config.data_root)
    size = 32 if config.recipe == "official" else config.size
    batches = {"batch_size": config.batch_size, "device": device, "seed": config.seed, "resize": size if size != config.size else None}
    augment = augmentation(config.recipe, task.dims, size, rotate=config.rotate)
    train_batches = DeviceBatches(dataset.train, **batches, shuffle=True, augment=augment, rank=rank, world_size=world_size)
    val_batches = DeviceBatches(dataset.val, **batches, shuffle=False)
    classifier = Classifier(net, task.kind, config, steps_per_epoch=len(train_batches))

    checkpoint = None
    if resume:
        run = RunDir(config.out)
        run.check_same(config)
        if run.last_checkpoint.exists():
            checkpoint = run.last_checkpoint
            state = load_checkpoint(checkpoint)
            check_state(checkpoint, state["state_dict"], classifier.state_dict())
            done = len(state["callbacks"]["Recorder"]["history"])
            log.info("%s: %d of %d epochs are done", run.path, done, config.epochs)
            if done >= config.epochs:
                return run
    elif rank == 0:
        RunDir.create(config)

    info = {"model": None, "task": task_info(task), "size": size, "recipe": config.recipe}
    recorder = Recorder(config, task.kind, train_batches, info)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its INFO is hardware inventory and advertising
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        accelerator=device.type,
        devices=processes if world_size > 1 else [device.index] if device.type == "cuda" else 1,
        num_nodes=world_size // processes,
        strategy=pl.strategies.DDPStrategy(broadcast_buffers=False) if world_size > 1 else "auto",
        precision=config.precision,
        callbacks=[recorder, *progress_bar()],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=config.out,
    )
    with warnings.catch_warnings():
        # lightning 2.6 trips over a deprecation of torch 2.13 in its own code
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        trainer.fit(classifier, train_batches, val_batches, ckpt_path=checkpoint, weights_only=True)
    return RunDir(config.out)


def resolve(config: TrainConfig, task: Task) -> TrainConfig:
    """``config`` with the defaults that depend on the task filled in."""
    if config.model.endswith("_3d") != (task.dims == 3):
        name = config.model.removesuffix("_3d") if task.dims == 2 else config.model + "_3d"
        raise ValueError(f"{task.name} has {task.dims}D images, model {config.model!r} does not; use --model {name}")
    return replace(
        config,
        batch_size=BATCH_SIZE[task.dims] if config.batch_size is None else config.batch_size,
        lr=LR[task.dims] if config.lr is None else config.lr,
    )


def build(config: TrainConfig, task: Task) -> nn.Module:
    """The untrained network of ``config``."""
    from .models import create_model

    names = ("kernel_sizes", "stem_kernel", "stem_stride", "bands", "profile", "engine")
    options = {name: value for name in names if (value := getattr(config, name)) is not None}
    return create_model(config.model, in_channels=task.channels, num_classes=task.num_outputs, width=config.width, **options)


def loss_fn(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of (logits, labels) for a kind of task: a sigmoid per label where several may hold, else one softmax."""
    if kind == "multilabel":
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy


class Classifier(pl.LightningModule):
    """A network that learns a task. ``forward``: images in [0, 1] to logits."""

    def __init__(self, net: nn.Module, kind: str, config: TrainConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = Normalized(net)
        self.loss = loss_fn(kind)
        self.config = config
        self.steps_per_epoch = steps_per_epoch

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self(images).float(), labels

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.config.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """Share of the initial learning rate at a step: half a cosine, in steps; recipe official: in epochs, as the paper's code."""
        if self.config.recipe == "official":
            step -= step % self.steps_per_epoch
        low = MIN_LR / self.config.lr
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * step / (self.config.epochs * self.steps_per_epoch)))


class Recorder(pl.Callback):
    """Writes the run directory after each epoch.

    The history is part of the checkpoint, so the checkpoint alone says what is done; `metrics.jsonl` is its copy in plain sight.
    """

    def __init__(self, config: TrainConfig, kind: str, batches: DeviceBatches, info: Mapping[str, Any]) -> None:
        self.config, self.kind, self.batches, self.info = config, kind, batches, info
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches.set_epoch(trainer.current_epoch)
        self.losses: list[Tensor] = []
        self.images = 0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])
        self.images += len(batch[0]) * trainer.world_size

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # one transfer an epoch instead of one a step, which would stall a GPU
        losses = trainer.strategy.reduce(torch.stack(self.losses).float(), reduce_op="mean").tolist()
        self.seconds = time.perf_counter() - self.start
        for step, loss in enumerate(losses):
            self._check_finite(loss, f"training loss at epoch {trainer.current_epoch}, step {step} of {len(losses)}")
        self.train_loss = sum(losses) / len(losses)
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.logits.append(outputs[0])
        self.labels.append(outputs[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        val_loss = pl_module.loss(logits, labels).item()
        self._check_finite(val_loss, f"validation loss at epoch {trainer.current_epoch}")
        line = {
            "epoch": trainer.current_epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "val_loss": val_loss,
            **{f"val_{name}": value for name, value in scores(self.kind, logits, labels).items()},
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 1),
        }
        is_best = not self.history or rank_of(line) > max(map(rank_of, self.history))
        self.history = [*self.history, line]
        if trainer.is_global_zero:
            log.info(
                "epoch %d/%d: train loss %.4f, val loss %.4f, val auc %s, val acc %.4f, %.0f images/s%s",
                trainer.current_epoch + 1, self.config.epochs, self.train_loss, val_loss,
                "-" if line["val_auc"] is None else f"{line['val_auc']:.4f}", line["val_acc"], line["images_per_second"], ", best" if is_best else "",
            )  # fmt: skip
            if is_best:
                self._save_best(trainer, pl_module)
        run = RunDir(self.config.out)
        trainer.save_checkpoint(run.last_checkpoint)
        if trainer.is_global_zero:
            run.write_metrics(self.history)

    def _save_best(self, trainer: pl.Trainer, pl_module: Classifier) -> None:
        from .models import model_config

        net = pl_module.model.net
        RunDir(self.config.out).save_model(net, {**self.info, "model": model_config(net), "epoch": trainer.current_epoch})

    def _check_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{where} is {loss}; train again with a lower --lr than {self.config.lr:g}"
                + (", or with --precision bf16-mixed or 32-true" if self.config.precision == "16-mixed" else "")
                + f". The checkpoint of the last good epoch is kept in {self.config.out}"
            )


def rank_of(line: Mapping[str, Any]) -> tuple[float, float]:
    """Order of epochs: validation AUC (accuracy where a class is absent from the split, so that there is no AUC), then loss."""
    return (line["val_acc"] if line["val_auc"] is None else line["val_auc"]), -line["val_loss"]


def scores(kind: str, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """``auc`` (None if a class is absent), ``acc`` and ``balanced_acc`` of logits."""
    from torchmetrics.functional import classification as metrics

    outputs = logits.shape[1]
    if kind == "multilabel":
        decisions, probabilities = (logits > 0).long(), logits.sigmoid()
        defined = bool((labels.amin(0) < labels.amax(0)).all())
        auc = metrics.multilabel_auroc(probabilities, labels, num_labels=outputs).item() if defined else None
        recall = torch.stack([(decisions == labels)[labels == c].float().mean() for c in (0, 1)]).nanmean().item()
    else:
        decisions, probabilities = logits.argmax(1), logits.softmax(1)
        present = labels.bincount(minlength=outputs) > 0
        auc = metrics.multiclass_auroc(probabilities, labels, num_classes=outputs).item() if present.all() else None
        recall = torch.stack([(decisions == c)[labels == c].float().mean() for c in range(outputs) if present[c]]).mean().item()
    return {"auc": auc, "acc": (decisions == labels).float().mean().item(), "balanced_acc": recall}


class AtomicCheckpointIO(pl.plugins.TorchCheckpointIO):
    """Checkpoints that are either whole or not there, and are read without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        # in memory first: torch's writer answers a full disk with an unrelated error
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        atomic_write(Path(path), lambda f: f.write(buffer.getbuffer()))

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU.

    Raises:
        ValueError: the file is cut short or is no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise ValueError(f"{path} is cut short or no checkpoint of isoconv; restore it from a copy, or train again with another --out") from None


def progress_bar() -> list[pl.Callback]:
    """A bar on stderr, if that is a terminal; stdout is for results."""
    return [pl.callbacks.RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else []
