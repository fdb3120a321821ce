"""Networks in a folder, or a repository of the Hugging Face Hub: ``config.json``, which rebuilds the network, and its
weights in ``model.safetensors``. Nothing in them is code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import torch as safetensors
from torch import nn

from isoconv._checks import did_you_mean
from isoconv._extras import require
from isoconv._version import __version__
from isoconv.models import model_config
from isoconv.models.pretrained import pretrained_folder
from isoconv.runs import OnImages, RunDir, check_state, whole_folder
from isoconv.runs.network import build, read_weights, sha256
from isoconv.runs.reading import check_json, read_json
from isoconv.runs.schema import HUB_VERSION, SAVED_NETWORK

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_AGAIN = "copy or download it again, or save the network again with isoconv.save_pretrained"


def save_pretrained(net: nn.Module | RunDir, folder: str | os.PathLike[str]) -> Path:
    """Write a network to a new folder, from which :func:`from_pretrained` rebuilds it.

    Args:
        net: what :func:`isoconv.create_model` built; or a run, then its best network with the labels of its task and a
            model card; or what :meth:`isoconv.runs.RunDir.load_model` gives. What torch.compile made of a network is
            saved as that network. The card, ``README.md``, of a network without its run knows no task and no scores.
        folder: must not exist, or be empty. It is written whole or not at all.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty.
        FileNotFoundError: there is no folder to make it in.
        ValueError: ``net`` was built otherwise, or changed since, so that it could not be rebuilt; or it has no weights
            yet.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose another folder, or delete it")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent} to make {folder.name} in; make it first")
    run = net if isinstance(net, RunDir) else None
    module = net.load_model() if isinstance(net, RunDir) else getattr(net, "_orig_mod", net)  # without torch.compile
    inner: Any = module.net if isinstance(module, OnImages) else module
    model = model_config(inner)
    config = {
        "version": HUB_VERSION,
        "isoconv": __version__,
        "model": model,
        "images": {"masked": module.masked, "outputs": module.outputs} if isinstance(module, OnImages) else None,
        "task": None if run is None else {**run.model_info["task"], "size": run.model_info["input_size"]},
    }
    state = inner.state_dict()
    built, changed = build("the network", model), "the network was changed after create_model built it"
    check_state(changed, state, built.state_dict(), "build it anew")
    owners: dict[int, str] = {}
    for name, value in state.items():
        if value.is_meta:
            raise ValueError(f"{name} is on the meta device, without values; load the network's weights first")
        if (owner := owners.setdefault(value.untyped_storage().data_ptr(), name)) != name:
            raise ValueError(f"{changed}: {owner} and {name} share their values; build it anew")
    for got, expected in zip(str(inner).splitlines(), str(built).splitlines(), strict=False):
        if got != expected:
            raise ValueError(f"{changed}: it has {got.strip()}, expected {expected.strip()}; build it anew")
    weights = safetensors.save({name: value.cpu().contiguous() for name, value in state.items()})
    config["sha256"] = sha256(weights)
    check_json("the network", config, SAVED_NETWORK, "it would not come back")
    card = _card(run, module, folder.name)
    with whole_folder(folder) as made:
        (made / WEIGHTS).write_bytes(weights)
        (made / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
        (made / CARD).write_text(card, encoding="utf-8")
    return folder


def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None) -> nn.Module:
    """The network in a folder that :func:`save_pretrained` wrote, or in such a repository of the Hugging Face Hub.

    Args:
        source: a folder; or, where there is no such folder, the name of a network that comes with isoconv
            (:func:`isoconv.models.list_pretrained`); or ``"owner/name"`` of a repository, which needs the extra ``hub``
            and is downloaded once.
        revision: of the repository: branch, tag or commit.

    Returns:
        The network in eval mode, on the CPU, its dtype that of the weights. One that was saved from a run takes images
        in [0, 1], shape (N, C, *spatial).

    Raises:
        FileNotFoundError: there is no such folder or repository, or a file is missing.
        ValueError: the files are cut short, of a newer version, or do not belong together.
    """
    folder = Path(source)
    if not folder.is_dir():
        if (shipped := pretrained_folder(str(source))) is not None:
            return RunDir(shipped).load_model()
        folder = _download(str(source), revision)
    if (folder / "environment.json").is_file():
        raise ValueError(
            f"{folder} is a run directory; load its network with isoconv.runs.RunDir({str(folder)!r}).load_model(), or "
            "write it to a folder with isoconv.save_pretrained first"
        )
    missing = "was the folder written by save_pretrained?"
    config = read_json(folder / CONFIG, SAVED_NETWORK, _AGAIN, missing)
    net = build(str(folder / CONFIG), config["model"])
    state = read_weights(folder / WEIGHTS, net.state_dict(), config["sha256"], CONFIG, _AGAIN)
    net.load_state_dict(state, assign=True)
    images = config["images"]
    return (net if images is None else OnImages(net, images["masked"], images["outputs"])).eval()


def push_to_hub(
    folder: str | os.PathLike[str], repository: str, *, private: bool = True, message: str = "Upload network"
) -> str:
    """Upload a folder that :func:`save_pretrained` wrote to the Hugging Face Hub, as you are logged in there.

    Args:
        folder: with a model card in it, ``README.md``.
        repository: ``"owner/name"``; made if it does not exist.
        private: whether a repository that is made is private.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: the folder has no network or no card.
        ValueError: :func:`from_pretrained` cannot load it, or the repository is not named ``"owner/name"``.
        ModuleNotFoundError: without the extra ``hub``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; write it with isoconv.save_pretrained")
    if not _is_repository(repository):
        raise ValueError(f"a repository is named 'owner/name', got {repository!r}")
    from_pretrained(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"{folder / CARD} does not exist; write a model card: what the network is for, its data, scores and limits"
        )
    api = require("huggingface_hub", extra="hub").HfApi()
    url = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD], commit_message=message
    )
    return str(url)


def _download(repository: str, revision: str | None) -> Path:
    path = Path(repository)
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    missing = f"there is no folder {repository!r}{did_you_mean(path.name, siblings)}"
    if not _is_repository(repository):
        raise FileNotFoundError(f"{missing} (a repository of the Hugging Face Hub is named 'owner/name')")
    try:
        hub, kinds = (require(name, extra="hub") for name in ("huggingface_hub", "huggingface_hub.errors"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{missing}; to look for that repository {error}", name=error.name) from None
    errors = (kinds.HfHubHTTPError, kinds.LocalEntryNotFoundError, kinds.OfflineModeIsEnabled, OSError)
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except errors as error:
        first = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{missing}, and no such repository can be downloaded: {first}") from error


def _is_repository(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def _card(run: RunDir | None, module: nn.Module, folder: str) -> str:
    from isoconv.deploy.export import smallest_size
    from isoconv.deploy.model_card import Usage, minimal_card, model_card

    tags = ["rotation-equivariance"] if run is None else [f"image-{run.task.name}", "rotation-equivariance"]
    head = "\n".join(["---", "library_name: isoconv", "tags:", *(f"- {tag}" for tag in tags), "---", "", ""])
    if run is None:
        return head + minimal_card(module, folder)
    return head + model_card(run, Usage(folder, "pretrained", smallest_size(module, run.model_info)))
