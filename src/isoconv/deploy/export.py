"""Trained networks as files that run without isoconv: exported programs, ONNX, and plain weights."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv._extras import require
from isoconv.convert import fuse
from isoconv.deploy.model_card import OUTPUTS, Usage, model_card
from isoconv.models import create_model
from isoconv.runs import OnImages, RunDir, settle, write_set, writing
from isoconv.runs.lock import lock

__all__ = ["FORMATS", "Export", "export_run"]

log = logging.getLogger(__name__)

FORMATS = ("pt2", "onnx", "safetensors")
"""What :func:`export_run` can write."""
KEY = "isoconv.json"  # under which each format carries what the file is
TOLERANCE = 1e-4  # of the largest logit
LARGE = 40

_Program: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Export:
    """What :func:`export_run` wrote.

    Attributes:
        path, card: the file, and its model card, Markdown.
        smallest: images of this size and up can be put in; None if only the size of the training can.
        difference: largest absolute difference between the logits of file and network on the images of the check.
    """

    path: Path
    card: Path
    smallest: int | None
    difference: float


def export_run(
    run: RunDir | str | os.PathLike[str], format: str = "pt2", out: str | os.PathLike[str] | None = None
) -> Export:
    """Write the best network of a run to a new file, with a model card beside it, named as the file and ``.md``.

    - ``"pt2"``: images in [0, 1] to logits, run by ``torch.export.load(path).module()``; needs torch alone.
    - ``"onnx"``: the same for ONNX Runtime, input ``images``, output ``logits``.
    - ``"safetensors"``: the weights, with dense kernels, of the network that comes after mask and normalisation:
      ``isoconv.fuse(isoconv.create_model(...))`` or the like.

    Logits are (N, labels), those of a segmentation (N, labels, *spatial).
    Batches and, of a network in which nothing hinders it, image sizes are free. The file is read back and its logits
    are compared with those of the network at several of them before it is put in place.

    Args:
        run: a run directory.
        format: one of the three.
        out: the file; None stands for ``model`` with the ending of the format in the folder ``export`` of the run.

    Raises:
        isoconv.runs.lock.BusyError: another process works in the run directory, into which the file shall go.
        FileNotFoundError: no run or no network there, or no folder for ``out``.
        FileExistsError: the file or its card exists; both stay as they are.
        ModuleNotFoundError: format onnx without the extra ``onnx``.
        ValueError: another format or ending, or logits that differ; nothing is written.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}{did_you_mean(format, FORMATS)}")
    with lock(run.path, "exporting") if out is None else nullcontext():  # else the run is only read
        return _export(run, format, out)


def _export(run: RunDir, format: str, out: str | os.PathLike[str] | None) -> Export:
    path = _free_path(run.path / "export" / f"model.{format}" if out is None else Path(out), format, make=out is None)
    card = path.with_name(f"{path.name}.md")
    write, read = _FORMATS[format]
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="onnx")
    info, network = run.model_info, run.load_model()
    about = {name: info[name] for name in ("task", "model", "input_size", "masked", "outputs")}
    about[OUTPUTS] = run.task.output_shape
    with torch.no_grad():
        payload = write(network, info, json.dumps(about))
        program = read(payload, info)
        smallest = smallest_size(program, info)
        difference = _difference(network, program, info, smallest)
    text = model_card(run, Usage(path.name, format, smallest, difference))
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_set({path: lambda f: f.write(payload), card: lambda f: f.write(text.encode())})
    return Export(path, card, smallest, difference)


def _free_path(path: Path, format: str, make: bool) -> Path:
    if path.suffix != f".{format}":
        raise ValueError(f"a file of format {format} ends in .{format}, got {path}")
    cut = settle(path)
    for file in (path, path.with_name(f"{path.name}.md")):
        if file.exists() and not cut:
            raise FileExistsError(f"{file} exists and is not overwritten; choose another --out, or delete it")
    if not make and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    return path


# The network as one program for all sizes


def _exported(network: Any, info: dict[str, Any]) -> torch.export.ExportedProgram:
    """``network`` as a program for any batch, and for any image size if it can be."""
    whole = OnImages(fuse(network.net), network.masked, network.outputs).eval()
    size, spatial = info["input_size"], range(2, 2 + info["task"]["dims"])
    # An axis that shrinks to one pixel is taken for one of a fixed size, so the example is large; if that happens to
    # images of the size of the training too, only they can be taken
    for example, free in ((max(LARGE, size), (0, *spatial)), (size, (0,))):
        shapes = (dict.fromkeys(free, torch.export.Dim.AUTO),)
        program = torch.export.export(whole, (_images(info, 2, example),), dynamic_shapes=shapes)
        if _runs(program.module(), _images(info, 1, size)):
            break
    for node in program.graph.nodes:  # they name the files of this machine
        node.meta.pop("stack_trace", None)
    return program


def _images(info: dict[str, Any], batch: int, *size: int) -> Tensor:
    task = info["task"]
    spatial = size if len(size) > 1 else size * task["dims"]
    return torch.rand(batch, task["channels"], *spatial, generator=torch.Generator().manual_seed(batch))


def _runs(program: _Program, images: Tensor) -> bool:
    try:
        program(images)
    except (RuntimeError, AssertionError, ValueError):  # by its guards
        return False
    return True


def smallest_size(program: _Program, info: dict[str, Any]) -> int | None:
    """The smallest size of images, up to that of the training, that ``program`` takes; None if sizes are not free."""
    size = info["input_size"]
    if not _runs(program, _images(info, 1, size + 1)):
        return None
    return next((n for n in range(1, size) if _runs(program, _images(info, 1, n))), size)


def _difference(network: nn.Module, program: _Program, info: dict[str, Any], smallest: int | None) -> float:
    size, dims = info["input_size"], info["task"]["dims"]
    images = [_images(info, batch, size) for batch in (1, 3)]
    if smallest is not None:
        images += [_images(info, 2, *(size + 1 + 2 * i for i in range(dims))), _images(info, 1, smallest)]
    worst = 0.0
    for x in images:
        expected, got = network(x), program(x)
        difference = (got - expected).abs().max().item() if got.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f"the exported file differs from the network by {difference:.2g} on images {tuple(x.shape)}; nothing "
                "is written; try another --format"
            )
        worst = max(worst, difference)
    return worst


# Formats: a network to bytes, which hold what it is about; and these to what runs them


def _write_pt2(network: nn.Module, info: dict[str, Any], about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(_exported(network, info), file, extra_files={KEY: about})
    return file.getvalue()


def _read_pt2(payload: bytes, _info: dict[str, Any]) -> _Program:
    return torch.export.load(io.BytesIO(payload)).module()


def _write_onnx(network: nn.Module, info: dict[str, Any], about: str) -> bytes:
    program = _exported(network, info)
    exporter = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it misses torchvision, of which nothing is needed
    try:
        with warnings.catch_warnings():
            # torch 2.13 trips over a deprecation of its own
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
            onnx: Any = torch.onnx.export(
                program, input_names=["images"], output_names=[OUTPUTS], dynamo=True, verbose=False
            )
    finally:
        exporter.setLevel(level)
    proto = onnx.model_proto
    proto.metadata_props.add(key=KEY, value=about)
    return proto.SerializeToString()


def _read_onnx(payload: bytes, _info: dict[str, Any]) -> _Program:
    session = require("onnxruntime", extra="onnx").InferenceSession(payload, providers=["CPUExecutionProvider"])

    def program(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        except Exception as error:  # onnxruntime's own, which have no class in common
            raise ValueError(f"onnxruntime cannot run on images {tuple(images.shape)}: {error}") from error

    return program


def _write_safetensors(network: Any, _info: dict[str, Any], about: str) -> bytes:
    weights = {name: value.contiguous() for name, value in fuse(network.net).state_dict().items()}
    return safetensors.save(weights, {KEY: about})


def _read_safetensors(payload: bytes, info: dict[str, Any]) -> _Program:
    net = fuse(create_model(**info["model"]))
    net.load_state_dict(safetensors.load(payload))
    return OnImages(net, info["masked"], info["outputs"]).eval()


_FORMATS = {
    "pt2": (_write_pt2, _read_pt2),
    "onnx": (_write_onnx, _read_onnx),
    "safetensors": (_write_safetensors, _read_safetensors),
}
