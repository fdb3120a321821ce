"""Training one network on one data set, through lightning.

The optimiser is the paper's: SGD, momentum 0.9, weight decay 1e-3 on all parameters, cosine to 1e-6 (recipe standard:
lowered every step; official: every epoch). The best network is chosen on the validation split; the test split is never
touched here. Everything random is a function of the seed, the epoch and the process, so a training that was killed and
resumed ends with the weights of one that was not.

Under torchrun each process computes its share of every batch. Normalisation statistics are those of the share; the
running statistics of the first process are given to all before each validation. Every process then validates on the
whole split with the same network: nothing to gather, and no image is counted twice. Only the first process writes.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoconv._extras import require
from isoconv.data import Dataset, DeviceBatches, Task, find, own_path
from isoconv.data.augment import augmentation, input_size
from isoconv.models import create_model, list_models, model_config
from isoconv.nn import precondition_
from isoconv.runs import OnImages, RunDir, resolve_device
from isoconv.runs.config import MIN_LR, TrainConfig
from isoconv.tasks.metrics import classification_metrics
from isoconv.training.checkpoints import AtomicCheckpointIO, history_of

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = require("lightning.pytorch", extra="study")

__all__ = ["Classifier", "TrainConfig", "fit", "is_first_process", "loss_fn", "train"]

log = logging.getLogger(__name__)

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-3
BATCH_SIZE, LR = {2: 128, 3: 4}, {2: 2e-2, 3: 1e-2}
_ENVIRONMENTS = "lightning.fabric.plugins.environments"
_PROCESSES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}  # torchrun sets these; without it there is one process


def train(config: TrainConfig, resume: bool = False) -> RunDir:
    """Train a network and return its run directory.

    Args:
        config: what to train; ``config.out`` is made.
        resume: continue the run in ``config.out``, which must have been started with the same config; a finished run
            is left as it is.

    Raises:
        FileExistsError: ``config.out`` exists and ``resume`` is false.
        ValueError: an unknown name or impossible value, a damaged checkpoint, or ``resume`` with another config or
            other data.
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C or SIGTERM; it can be resumed.
        FloatingPointError: the loss became infinite or NaN; the last good checkpoint is kept.
        OSError: the run directory cannot be written; the last good checkpoint is kept.
    """
    task, dataset = find(config.data, size=config.size, root=config.data_root)
    size = input_size(config.recipe, config.size)
    return fit(
        config,
        task,
        dataset,
        Classifier,
        augment=augmentation(config.recipe, task.dims, size, rotate=config.rotate),
        masked=config.recipe == "standard",
        resume=resume,
    )


def fit(
    config: TrainConfig,
    task: Task,
    dataset: Callable[[], Dataset],
    learner: Callable[..., Classifier],
    *,
    augment: nn.Module | None,
    masked: bool,
    resume: bool,
) -> RunDir:
    """What :func:`train` does, for any task: ``learner`` says what the loss is and how epochs are compared.

    ``dataset`` is called once it is known that the network can be built."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rank, world_size, local_size = (int(os.environ.get(name, n)) for name, n in _PROCESSES.items())
    device = resolve_device(config.device)
    if config.precision == "16-mixed" and device.type == "cpu":  # lightning would take bf16 instead
        raise ValueError("precision 16-mixed needs a GPU; use --precision bf16-mixed")
    lr = LR[task.dims] if config.lr is None else config.lr
    batch_size = BATCH_SIZE[task.dims] if config.batch_size is None else config.batch_size
    precondition = config.recipe == "standard" if config.precondition is None else config.precondition
    source = str(own_path(config.data) or config.data)  # a run is evaluated from any folder
    config = replace(config, data=source, lr=lr, batch_size=batch_size, precondition=precondition)

    pl.seed_everything(config.seed, verbose=False)
    net = build(config, task)
    data = dataset()
    size = input_size(config.recipe, config.size)
    batches = partial(DeviceBatches, batch_size=batch_size, device=device, seed=config.seed, resize=size)
    train_batches = batches(data.train, shuffle=True, augment=augment, rank=rank, world_size=world_size)
    val_batches = batches(data.val, shuffle=False)
    steps = len(train_batches)
    schedule = partial(cosine, lr=lr, steps=config.epochs * steps, every=steps if config.recipe == "official" else 1)
    classifier = learner(net, task, lr, schedule, masked=masked, precondition=precondition)

    checkpoint = None
    if resume:
        run = RunDir(config.out)
        run.check_same(config)
        run.check_data(data.fingerprints)
        if run.last_checkpoint.exists():
            checkpoint = run.last_checkpoint
            history = history_of(checkpoint, classifier.state_dict())
            log.info("%s: %d of %d epochs are done", run.path, len(history), config.epochs)
            if rank == 0:  # it may have been stopped between the checkpoint and this
                run.write_metrics(history)
            if len(history) >= config.epochs:
                return run
        if rank == 0:
            run.note_resumed(config)
    elif rank == 0:
        RunDir.create(config, data.fingerprints)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # their INFO is an inventory of the hardware and advertising
    in_terminal = sys.stderr.isatty()
    bar = [pl.callbacks.RichProgressBar(console_kwargs={"stderr": True})] if in_terminal else []
    # else lightning asks SLURM and MPI for processes, and answers SLURM's signals by requeueing the job
    alone = [require(_ENVIRONMENTS, extra="study").LightningEnvironment()] if world_size == 1 else []
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        accelerator=device.type,
        devices=local_size if world_size > 1 else 1,
        num_nodes=world_size // local_size,
        strategy="ddp" if world_size > 1 else "auto",
        precision=config.precision,
        callbacks=[Recorder(config, train_batches, size), *bar],
        plugins=[AtomicCheckpointIO(), *alone],
        enable_progress_bar=in_terminal,
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
        try:
            trainer.fit(classifier, train_batches, val_batches, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # lightning ends with status 1 on Ctrl-C, and on SIGTERM with that of success
            log.info("%s: stopped; it can be resumed after its last finished epoch", config.out)
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            sys.exit(stop.code or 128 + signal.SIGTERM)
    return RunDir(config.out)


def is_first_process() -> bool:
    """False in all processes of torchrun but one."""
    return int(os.environ.get("RANK", 0)) == 0


def build(config: TrainConfig, task: Task) -> nn.Module:
    """The untrained network of ``config``."""
    if config.model.endswith("_3d") != (task.dims == 3):
        fitting = config.model.removesuffix("_3d") if task.dims == 2 else config.model + "_3d"
        raise ValueError(
            f"{task.name} has {task.dims}D images, network {config.model!r} does not; use --model {fitting}"
        )
    names = ("kernel_sizes", "stem_kernel", "stem_stride", "bands", "profile", "init", "downsample", "engine")
    options = {name: value for name in names if (value := getattr(config, name)) is not None}
    if (config.model in list_models("*unet*")) != (task.kind == "segmentation"):
        command, fitting = ("segment train", "sre_unet") if task.kind == "segmentation" else ("train", "sre_resnet18")
        raise ValueError(f"`isoconv {command}` has no use for network {config.model!r}; use one such as {fitting}")
    return create_model(config.model, task.channels, task.num_outputs, width=config.width, **options)


def loss_fn(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of (logits, labels) for a kind of task: a sigmoid per label where several may hold, else one softmax."""
    if kind == "multilabel":
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy


def cosine(step: int, *, lr: float, steps: int, every: int) -> float:
    """Share of the initial learning rate at a step of ``steps``: half a cosine to 1e-6, lowered every so many steps."""
    low = MIN_LR / lr
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - step % every) / steps))


class Classifier(pl.LightningModule):
    """A network that learns a task. ``forward``: images in [0, 1] to logits."""

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        lr: float,
        schedule: Callable[[int], float],
        masked: bool = False,
        precondition: bool = False,
    ) -> None:
        super().__init__()
        self.model = OnImages(net, masked)
        self.task, self.lr, self.schedule, self.precondition = task, lr, schedule, precondition
        self.loss = loss_fn(task.kind)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(images))
        return loss

    def on_before_optimizer_step(self, _: torch.optim.Optimizer) -> None:
        if self.precondition:
            precondition_(self)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        return {"logits": self(images).float(), "labels": labels}

    def validation_loss(self, outputs: Sequence[Mapping[str, Tensor]]) -> float:
        """From what ``validation_step`` gave, batch by batch."""
        return self.loss(*_joined(outputs, "logits", "labels")).item()

    def scores(self, outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, float | None]:
        """What else `metrics.jsonl` says of the validation split."""
        logits, labels = _joined(outputs, "logits", "labels")
        scores = classification_metrics(self.task.kind, logits, labels)
        return {
            "val_auc": scores["auc"],
            "val_acc": scores["accuracy"],
            "val_balanced_acc": scores["balanced_accuracy"],
        }

    def goodness(self, line: Mapping[str, Any]) -> tuple[float, float]:
        """Order of epochs, the best one the largest."""
        return goodness(line)

    def summary(self, line: Mapping[str, Any]) -> str:
        """The scores of an epoch, for the log."""
        auc = "" if line["val_auc"] is None else f"auc {line['val_auc']:.4f} "
        return f"{auc}acc {line['val_acc']:.4f}"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Recorder(pl.Callback):
    """Writes the run directory after each epoch.

    The history is part of the checkpoint: the checkpoint alone says what is done, `metrics.jsonl` shows it to people.
    """

    def __init__(self, config: TrainConfig, batches: DeviceBatches, input_size: int) -> None:
        self.config, self.batches, self.input_size = config, batches, input_size
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.set_epoch(trainer.current_epoch)
        self.losses: list[Tensor] = []
        self.images = 0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, batch: Any, *__: Any) -> None:
        self.losses.append(outputs["loss"])
        self.images += len(batch[0]) * trainer.world_size

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # one transfer an epoch: one a step would stall a GPU
        losses = trainer.strategy.reduce(torch.stack(self.losses).float(), reduce_op="mean").tolist()
        self.seconds = time.perf_counter() - self.start
        for step, loss in enumerate(losses):
            self._check_finite(loss, f"training loss at epoch {trainer.current_epoch}, step {step} of {len(losses)}")
        self.train_loss = sum(losses) / len(losses)
        self.outputs: list[dict[str, Tensor]] = []
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_batch_end(self, _: Any, __: Any, outputs: Any, *___: Any) -> None:
        self.outputs.append(outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        val_loss = pl_module.validation_loss(self.outputs)
        self._check_finite(val_loss, f"validation loss at epoch {trainer.current_epoch}")
        line = {
            "epoch": trainer.current_epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "val_loss": val_loss,
            **pl_module.scores(self.outputs),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 1),
        }
        is_best = not self.history or pl_module.goodness(line) > max(map(pl_module.goodness, self.history))
        self.history = [*self.history, line]
        run = RunDir(self.config.out)
        if trainer.is_global_zero:
            self._log(line, pl_module.summary(line), is_best)
            if is_best:
                run.save_model(pl_module.model.net, self._info(pl_module))
        trainer.save_checkpoint(run.last_checkpoint)
        if trainer.is_global_zero:
            run.write_metrics(self.history)

    def _info(self, classifier: Classifier) -> dict[str, Any]:
        names = ("name", "title", "kind", "dims", "channels", "labels")
        return {
            "model": model_config(classifier.model.net),
            "task": {name: getattr(classifier.task, name) for name in names},
            "input_size": self.input_size,
            "masked": classifier.model.masked,
            "epoch": len(self.history) - 1,
        }

    def _log(self, line: Mapping[str, Any], summary: str, is_best: bool) -> None:
        log.info(
            f"epoch {line['epoch'] + 1}/{self.config.epochs}: train loss {line['train_loss']:.4f}, "
            f"val loss {line['val_loss']:.4f} {summary}, "
            f"{line['images_per_second']:.0f} images/s{', best so far' if is_best else ''}"
        )
        if line.get("val_auc", 0) is None and line["epoch"] == 0:
            log.info(
                "a class is absent from the validation split: there is no AUC, the best epoch is chosen by accuracy"
            )

    def _check_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            precise = ", or with --precision 32-true" if self.config.precision != "32-true" else ""
            kept = (
                f"; the state after epoch {len(self.history) - 1} is kept in {self.config.out}" if self.history else ""
            )
            raise FloatingPointError(
                f"{where} is {loss}; train again with an --lr below {self.config.lr:g}{precise}{kept}"
            )


def _joined(outputs: Sequence[Mapping[str, Tensor]], *names: str) -> list[Tensor]:
    return [torch.cat([batch[name] for batch in outputs]) for name in names]


def goodness(line: Mapping[str, Any]) -> tuple[float, float]:
    """Order of epochs: validation AUC, or accuracy where all images have one label so that there is no AUC; loss."""
    return (line["val_acc"] if line["val_auc"] is None else line["val_auc"]), -line["val_loss"]
