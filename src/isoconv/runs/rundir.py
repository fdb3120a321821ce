"""A run directory: what one training leaves behind, written so that a crash never costs more than the last epoch.

```
config.json            the TrainConfig, with every default resolved
environment.json       versions, platform, threads, device, commit; of users' own data the splits' fingerprints
metrics.jsonl          one line per finished epoch
checkpoints/last.ckpt  state of the whole training after the last finished epoch (lightning)
model.json             how to rebuild the best network, the task that it was trained for, the checksum of its weights
model.safetensors      weights of the best network, chosen on the validation split
```
Evaluation adds `predictions.npz`, `results.json` and `figures/`. `.lock` and `.lock.json`: see
:mod:`isoconv.runs.lock`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import torch as safetensors
from torch import nn

from isoconv._checks import count_of, did_you_mean
from isoconv.data.augment import input_size
from isoconv.models.pretrained import list_pretrained, pretrained_folder
from isoconv.runs import schema
from isoconv.runs.arrays import read_arrays
from isoconv.runs.config import TrainConfig
from isoconv.runs.environment import environment
from isoconv.runs.lock import FILES as LOCK_FILES
from isoconv.runs.network import OnImages, build, read_weights, sha256
from isoconv.runs.reading import JSON_LIMIT, check_json, parse_json, read_bytes, read_json
from isoconv.runs.writing import atomic_write, settle, write_json, write_set
from isoconv.tasks import Task, task_of

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"
_RESTORE = "restore it, or train again with another --out"
_UNTRAINED = "the training has not finished an epoch yet; continue it with --resume"
_CUT_START = {"checkpoints", "environment.json", ".environment.json.tmp", ".config.json.tmp"}
# These say where a training runs, not what it computes: they may change when it is resumed.
_PLACE = ("out", "data_root", "device", "threads")


class RunDir:
    """An existing run directory, or by its name a network that comes with isoconv
    (:func:`isoconv.models.list_pretrained`).

    Raises:
        FileNotFoundError: there is no run at ``path``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            if (shipped := pretrained_folder(str(path))) is None:
                raise FileNotFoundError(
                    f"no run at {self.path} (it has no config.json), nor does a trained network of that name come with "
                    f"isoconv{did_you_mean(path, list_pretrained())}; train one with: isoconv train --out {self.path}"
                )
            self.path = shipped
        with suppress(OSError):  # a run that is only read may be read-only
            settle(self.path / PREDICTIONS)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, config: TrainConfig, fingerprints: Mapping[str, str] | None = None) -> RunDir:
        """Make the directory ``config.out`` with its config and environment, in which the data's fingerprints are.

        Raises:
            FileExistsError: the directory exists and is not empty.
            OSError: it cannot be made or written.
        """
        path = config.out
        if not _is_free(path):
            raise FileExistsError(
                f"{path} exists and is not empty; choose another --out, or continue a stopped run with --resume"
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                f"cannot make the run directory {path} ({error.strerror}); choose an --out that you may write to"
            ) from None
        write_json(path / "environment.json", {**environment(config), "data": dict(fingerprints or {})})
        write_json(path / "config.json", config.to_json())
        return cls(path)

    def check_same(self, config: TrainConfig) -> None:
        """Refuse to continue this run with a config that would train something else."""
        old, new = self.config.to_json(), config.to_json()
        if changed := [f"{k} {old[k]!r:.60} -> {new[k]!r:.60}" for k in old if k not in _PLACE and old[k] != new[k]]:
            remedy = f"repeat those, which are in {self.path / 'config.json'}, or choose another --out"
            raise ValueError(f"{self.path} was started with other options ({', '.join(changed)}); {remedy}")

    def check_has_data(self) -> None:
        """What can be said before the data are read.

        Raises:
            FileNotFoundError: users' own data are not where they were in training.
            ValueError: they would be read in another size than the network was trained at.
        """
        config, trained = self.config, self.model_info["input_size"]
        if (size := input_size(config.recipe, config.size or self.task.defaults.size)) != trained:
            files = (
                f"{self.path / 'config.json'} makes images of {size} pixels, {self.path / 'model.json'} of {trained}"
            )
            raise ValueError(f"{files}; {_RESTORE}")
        data = Path(config.data)
        if self.fingerprints and not data.exists():
            raise FileNotFoundError(
                f"{data}, the data set of {self.path}, is gone; restore it or, if it has moved, write where it is now "
                f'as "data" in {self.path / "config.json"}'
            )

    def check_data(self, fingerprints: Mapping[str, str], splits: Iterable[str] = ("train", "val", "test")) -> None:
        """Refuse splits, of users' own data, that are not those which this run was started with."""
        started = self.fingerprints if fingerprints else {}
        if changed := [s for s in splits if s in started and started[s] != fingerprints[s]]:
            raise ValueError(
                f"{self.config.data} has other images or labels in {', '.join(changed)} than when {self.path} was "
                "started; restore them, or train again with another --out"
            )

    def note_resumed(self, config: TrainConfig) -> None:
        """Add what the training goes on with to the environment that it was started in."""
        started = self.environment
        resumed = [*started.get("resumed", []), environment(config)]
        write_json(self.path / "environment.json", {**started, "resumed": resumed})

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.from_json(self._json("config.json", schema.CONFIG))

    @property
    def environment(self) -> dict[str, Any]:
        """What the training ran on: that of :func:`isoconv.runs.environment`, ``data`` with :attr:`fingerprints`, and
        the environments in which it was ``resumed``."""
        return self._json("environment.json", schema.ENVIRONMENT)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each split of users' own data, as the run was started; empty for a set known by name."""
        return self.environment["data"]

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        path, remedy = (
            self.path / "metrics.jsonl",
            "train again with the same options and --resume, which writes it anew",
        )
        if not path.exists():
            return []
        lines = read_bytes(path, remedy, missing=remedy, limit=JSON_LIMIT).splitlines()
        rows = [parse_json(f"{path}, line {i}", line, schema.METRICS_LINE, remedy) for i, line in enumerate(lines, 1)]
        if [row["epoch"] for row in rows] != list(range(len(rows))):
            raise ValueError(f"{path} must have a line for each epoch in their order, it has others; {remedy}")
        return rows

    def warn_unfinished(self) -> None:
        """Say so where the training stopped before its last epoch."""
        if (done := len(self.metrics())) < (epochs := self.config.epochs):
            log.warning("%s: %d of %s trained; --resume continues", self.path, done, count_of(epochs, "epoch"))

    def results(self) -> dict[str, Any]:
        """What `isoconv evaluate` found, by protocol."""
        command = f"isoconv evaluate {self.path}"
        return self._json(
            "results.json", schema.RESULTS, f"delete it and do: {command}", f"evaluate it first: {command}"
        )

    def save_results(self, results: Mapping[str, Any], predictions: Mapping[str, Any]) -> None:
        """Replace what the evaluation wrote: what it found by protocol, and what it recorded of every image."""
        text = json.dumps(results, indent=2, allow_nan=False) + "\n"
        write_set(
            {
                self.path / PREDICTIONS: lambda f: np.savez(f, **predictions),
                self.path / "results.json": lambda f: f.write(text.encode()),
            }
        )

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an npz file that the evaluation wrote; empty if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path / name
        return read_arrays(path, "delete it and evaluate again") if path.exists() else {}

    @property
    def model_info(self) -> dict[str, Any]:
        """The best network: ``model`` (arguments of `create_model`), ``task``, ``input_size``, ``masked`` and
        ``outputs`` (see :class:`isoconv.runs.OnImages`), ``epoch``, and the ``sha256`` of its weights."""
        return self._json("model.json", schema.MODEL_INFO, missing=_UNTRAINED)

    def check_writable(self) -> None:
        """Raises PermissionError where what is to be computed could not be saved."""
        if not os.access(self.path, os.W_OK):
            raise PermissionError(
                f"{self.path} cannot be written and would lose the results; get permission or copy it"
            )

    @property
    def task(self) -> Task:
        """What the network was trained for."""
        return task_of(self.model_info["task"])

    @property
    def masked(self) -> bool:
        """Whether the network knows images that are black outside of the inscribed disc (ball) from its training."""
        return self.model_info["masked"] or self.task.knows_disc

    def load_model(self) -> nn.Module:
        """The best network in eval mode: images in [0, 1], shape (N, C, *spatial), to logits (N, outputs).

        Raises:
            FileNotFoundError: no epoch has finished yet.
            ValueError: the weights are cut short, damaged or of another network.
        """
        info = self.model_info
        net = build(str(self.path / "model.json"), info["model"])
        if (dims := getattr(net, "dims", info["task"]["dims"])) != info["task"]["dims"]:
            what = f"a network for {dims}D images, its task has {info['task']['dims']}D ones"
            raise ValueError(f"{self.path / 'model.json'} describes {what}; {_RESTORE}")
        remedy = "copy it again, or train again with another --out"
        path = self._pending if self._is_pending(info["sha256"]) else self.path / "model.safetensors"
        net.load_state_dict(read_weights(path, net.state_dict(), info["sha256"], "model.json", remedy), assign=True)
        return OnImages(net, info["masked"], info["outputs"]).eval()

    @property
    def _pending(self) -> Path:
        return self.path / "model.safetensors.new"

    def _is_pending(self, checksum: str) -> bool:
        """Whether :meth:`save_model` was stopped before its last step."""
        return self._pending.is_file() and sha256(self._pending.read_bytes()) == checksum

    def save_model(self, net: nn.Module, info: Mapping[str, Any]) -> None:
        """Replace the best network by ``net``.

        Two files cannot be replaced at once. So the new weights stand beside the old ones until ``model.json`` names
        their checksum: whenever this is stopped, there are weights to what that says.

        Raises:
            ValueError: the network has options that could not be read back.
        """
        weights = safetensors.save(
            {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
        )
        info = {**info, "sha256": sha256(weights)}
        check_json("the network", info, schema.MODEL_INFO, "it would not come back")
        atomic_write(self._pending, lambda f: f.write(weights))
        write_json(self.path / "model.json", info)
        os.replace(self._pending, self.path / "model.safetensors")

    def write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        atomic_write(self.path / "metrics.jsonl", lambda f: f.write(text.encode()))

    def _json(self, name: str, kind: Any, remedy: str = _RESTORE, missing: str = _RESTORE) -> Any:
        return read_json(self.path / name, kind, remedy, missing)


def _is_free(path: Path) -> bool:
    """Whether nothing is there but the lock and what :meth:`RunDir.create` leaves if it is cut before there is a run to
    resume."""
    if not path.is_dir():
        return not path.exists()
    left = {file.relative_to(path).as_posix() for file in path.rglob("*")} - set(LOCK_FILES)
    return not left or {"checkpoints"} <= left <= _CUT_START
