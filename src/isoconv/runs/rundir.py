"""A run directory: what one training leaves behind, written so that a crash never costs more than the last epoch.

```
config.json            the TrainConfig, with every default resolved
environment.json       versions, platform, threads, device, commit; of users' own data the splits' fingerprints
metrics.jsonl          one line per finished epoch
checkpoints/last.ckpt  state of the whole training after the last finished epoch (lightning)
model.json             how to rebuild the best network, and the task that it was trained for
model.safetensors      weights of the best network, chosen on the validation split
```
Evaluation adds `predictions.npz`, `results.json` and `figures/`.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import nn

from isoconv._checks import count_of
from isoconv.runs.config import TrainConfig
from isoconv.runs.environment import environment
from isoconv.runs.network import OnImages, check_state
from isoconv.runs.writing import atomic_write, write_json
from isoconv.tasks import Task, task_of

log = logging.getLogger(__name__)

_MODEL_INFO = ("model", "task", "input_size", "masked", "outputs", "epoch")
_RESTORE = "restore it, or train again with another --out"
_CUT_START = ("checkpoints", "environment.json", ".environment.json.tmp", ".config.json.tmp")
# These say where a training runs, not what it computes: they may change when it is resumed.
_PLACE = ("out", "data_root", "device", "threads")


class RunDir:
    """An existing run directory.

    Raises:
        FileNotFoundError: there is no run at ``path``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(
                f"no run at {self.path} (it has no config.json); train one with: isoconv train --out {self.path}"
            )

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
        if changed := [f"{k} {old[k]!r} -> {new[k]!r}" for k in old if k not in _PLACE and old[k] != new[k]]:
            remedy = "repeat those, or choose another --out"
            raise ValueError(f"{self.path} was started with other options ({', '.join(changed)}); {remedy}")

    def check_has_data(self) -> None:
        """Raises FileNotFoundError where users' own data are not where they were in training."""
        data = Path(self.config.data)
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
        started = self._json("environment.json")
        resumed = [*started.get("resumed", []), environment(config)]
        write_json(self.path / "environment.json", {**started, "resumed": resumed})

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.from_json(self._json("config.json"))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each split of users' own data, as the run was started; empty for a set known by name."""
        return self._json("environment.json").get("data", {})

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        path = self.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except ValueError as error:
            remedy = "train again with the same options and --resume, which writes it anew"
            raise ValueError(f"{path} is damaged ({error}); {remedy}") from None

    def warn_unfinished(self) -> None:
        """Say so where the training stopped before its last epoch."""
        if (done := len(self.metrics())) < (epochs := self.config.epochs):
            log.warning("%s: %d of %s trained; --resume continues", self.path, done, count_of(epochs, "epoch"))

    def results(self) -> dict[str, Any]:
        """What `isoconv evaluate` found, by protocol."""
        command = f"isoconv evaluate {self.path}"
        return self._json(
            "results.json", missing=f"evaluate it first: {command}", damaged=f"delete it and do: {command}"
        )

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an npz file that the evaluation wrote; empty if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path / name
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return dict(archive)
        except FileNotFoundError:
            return {}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and evaluate again") from None

    @property
    def model_info(self) -> dict[str, Any]:
        """The best network: ``model`` (arguments of `create_model`), ``task``, ``input_size``, ``masked`` and
        ``outputs`` (see :class:`isoconv.runs.OnImages`) and ``epoch``."""
        info = self._json("model.json", "the training has not finished an epoch yet; continue it with --resume")
        if absent := [name for name in _MODEL_INFO if name not in info]:
            what = f"{self.path / 'model.json'} was written by another version of isoconv: it lacks {', '.join(absent)}"
            raise ValueError(f"{what}; use that version, or train again with another --out")
        return info

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
            ValueError: the weights are cut short or belong to another architecture.
        """
        from isoconv.models import create_model

        net = create_model(**self.model_info["model"])
        path = self.path / "model.safetensors"
        try:
            state = safetensors.load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete weights file ({error}); copy it again, or train again with another --out"
            ) from None
        check_state(path, state, net.state_dict())
        net.load_state_dict(state)
        info = self.model_info
        return OnImages(net, info["masked"], info["outputs"]).eval()

    def save_model(self, net: nn.Module, info: Mapping[str, Any]) -> None:
        """Replace the best network by ``net``, atomically."""
        weights = safetensors.save(
            {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
        )
        atomic_write(self.path / "model.safetensors", lambda f: f.write(weights))
        write_json(self.path / "model.json", info)

    def write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        atomic_write(self.path / "metrics.jsonl", lambda f: f.write(text.encode()))

    def _json(self, name: str, missing: str = _RESTORE, damaged: str = _RESTORE) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist; {missing}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); {damaged}") from None


def _is_free(path: Path) -> bool:
    """Whether nothing is there but what :meth:`RunDir.create` leaves if it is cut before there is a run to resume."""
    if not (path / "checkpoints").is_dir():
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))
    return all(file.relative_to(path).as_posix() in _CUT_START for file in path.rglob("*"))
