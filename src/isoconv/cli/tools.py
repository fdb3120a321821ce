"""The commands for networks of one's own and for what comes after training: `isoconv doctor` and `export`."""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from isoconv._checks import check_memory, did_you_mean
from isoconv._extras import require
from isoconv.cli.display import show, show_lines
from isoconv.cli.options import Computes, Json, RunPath

if TYPE_CHECKING:
    import tyro
    from torch import nn
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Doctor(Computes):
    """Measure which layers of a PyTorch network break its symmetry, with the reason and the remedy.

    isoconv doctor my_package.networks:make_network --input 1x3x224x224
    """

    target: tyro.conf.Positional[
        Annotated[
            str,
            tyro.conf.arg(
                metavar="MODULE:FACTORY",
                help="Where the network is: a Python module, in this folder or installed, and in it a network, or a "
                "function that returns one without arguments.",
            ),
        ]
    ]
    input: Annotated[str, tyro.conf.arg(metavar="NxCxHxW", help="Shape of the input; 1 to 3 spatial axes.")]
    angle: float = 30.0
    """Angle to measure besides 90 degrees and flips."""
    seed: int = 0
    """Seed of the input, which is smooth noise, and of the network's initial weights."""
    html: Path | None = None
    """HTML file to write as well, with the costs of each layer; an existing file is replaced."""
    as_json: Json = False

    def work(self) -> None:
        import torch

        from isoconv.diagnosis.examination import doctor
        from isoconv.runs import atomic_write

        shape = _shape(self.input)
        if self.html is not None and (self.html.is_dir() or not self.html.parent.is_dir()):
            raise ValueError(f"--html must be a file in a folder that exists, got {self.html}")
        torch.manual_seed(self.seed)
        diagnosis = doctor(_network(self.target), shape, angle=self.angle, seed=self.seed)
        if self.html is not None:
            page = diagnosis.to_html().encode()
            atomic_write(self.html, lambda f: f.write(page))
            log.info("the page is %s", self.html)
        show_lines((diagnosis.to_json() if self.as_json else str(diagnosis)).splitlines())


_EXPORT = {
    "path": "file",
    "card": "model card",
    "smallest": "smallest images that it takes, pixels a side",
    "difference": "logits differ from those of the network by at most",
}


@dataclass(frozen=True, kw_only=True)
class Export(Computes):
    """Write a trained network to a file that runs without isoconv, with a model card beside it.

    The file is checked against the network before it is put in place. Nothing is overwritten.
    """

    path: RunPath
    format: Literal["pt2", "onnx", "safetensors"] = "pt2"
    """What to write: pt2 (a program for torch.export.load), onnx (for ONNX Runtime) or safetensors (weights)."""
    out: Path | None = None
    """File to write, its card gets .md appended; None stands for RUN/export/model and the ending of the format."""
    as_json: Json = False

    def work(self) -> None:
        from isoconv.deploy.export import export_run

        done = export_run(self.path, self.format, self.out)
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(done).items()}
        if not self.as_json:
            if done.smallest is None:
                values["smallest"] = "those of the training, no others"
            values = {_EXPORT[name]: value for name, value in values.items()}
        show(values, self.as_json, title=f"export of {self.path}")


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not 3 <= len(parts) <= 5 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--input is a shape such as 1x3x224x224 (images x channels x spatial axes), got {text!r}")
    shape = tuple(map(int, parts))
    check_memory(4 * math.prod(shape), f"an input of {text}", "use a smaller --input")
    return shape


def _network(target: str) -> nn.Module:
    """The network that ``MODULE:FACTORY`` stands for."""
    from torch import nn

    module_name, colon, factory_name = target.partition(":")
    if not (colon and factory_name and all(part.isidentifier() for part in module_name.split("."))):
        raise ValueError(f"the network is given as MODULE:FACTORY, such as my_package.networks:make, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    found: Any = _own_code(f"cannot import module {module_name!r}", importlib.import_module, module_name)
    for name in factory_name.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise ValueError(f"there is no {name!r} in {target.partition(':')[0]!r}{did_you_mean(name, known)}")
        found = getattr(found, name)
    net = found if isinstance(found, nn.Module) else _own_code(f"{target} fails when called without arguments", found)
    if not isinstance(net, nn.Module):
        raise TypeError(f"{target} must be or return a torch.nn.Module, got {type(net).__name__}")
    return net


def _own_code(what: str, call: Any, *args: Any) -> Any:
    """Call the user's code, whose errors may be any."""
    try:
        return call(*args)
    except Exception as error:
        raise ValueError(f"{what} ({type(error).__name__}: {error}); --debug shows where") from error
