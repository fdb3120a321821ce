"""Options that several commands share, as types of their fields."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isoconv._checks import count_of
from isoconv._extras import require

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")

log = logging.getLogger(__name__)

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print the result as JSON.")]
Threshold = Annotated[
    str,
    tyro.conf.arg(
        metavar="half|youden|sensitivity=S",
        help="Where a class begins: at probability 1/2; or chosen on validation images, by Youden's index or at a "
        "sensitivity, such as sensitivity=0.95.",
    ),
]
Wait = Annotated[bool, tyro.conf.arg(help="Wait while another process works in the run directory.")]
DataRoot = Annotated[
    Path | None,
    tyro.conf.arg(
        help="Folder of the MedMNIST files.", help_behavior_hint="(default: $ISOCONV_DATA, else ~/.medmnist)"
    ),
]
Threads = Annotated[int | None, tyro.conf.arg(help="CPU threads.", help_behavior_hint="(default: torch's choice)")]
RunPath = tyro.conf.Positional[
    Annotated[Path, tyro.conf.arg(metavar="RUN", help="Run directory that `isoconv train` wrote.")]
]


@dataclass(frozen=True, kw_only=True)
class Working(ABC):
    """A command whose work is prepared by what it inherits from."""

    def run(self) -> None:
        self.work()

    @abstractmethod
    def work(self) -> None:
        """Do what the command is for."""


@dataclass(frozen=True, kw_only=True)
class Computes(Working):
    """A command that computes with a network."""

    threads: Threads = None

    def run(self) -> None:
        from isoconv.runs import use_threads

        use_threads(self.threads)
        super().run()


@dataclass(frozen=True, kw_only=True)
class ReadsImages(Working):
    """A command that reads image files of users."""

    max_pixels: int | None = None
    """Most pixels (voxels) in an image file of yours; None stands for as many as 256 MiB or 16 times its size hold."""

    def run(self) -> None:
        from isoconv.data.decoded import MAX_PIXELS, Limits

        if self.max_pixels is None:
            super().run()
            return
        Limits(self.max_pixels)  # refuses less than 1
        before = os.environ.get(MAX_PIXELS)
        os.environ[MAX_PIXELS] = str(self.max_pixels)
        try:
            super().run()
        finally:
            if before is None:
                del os.environ[MAX_PIXELS]
            else:
                os.environ[MAX_PIXELS] = before


def check_plot(path: Path | None) -> None:
    """Raises ValueError, before any work, where no PNG file can be written."""
    if path is not None and (path.suffix != ".png" or not path.parent.is_dir()):
        raise ValueError(f"--plot must be a .png file in a folder that exists, got {path}")


def check_all_done(failed: Sequence[Exception], done: int, noun: str, verb: str) -> None:
    """Where some things of many failed, say why and how many, once the others, of which ``done`` counts, are done.

    Raises:
        RuntimeError: some failed; or the error of the only thing that there was.
    """
    if len(failed) == 1 and not done:
        raise failed[0]
    for error in failed:
        log.warning("not %s: %s", verb, error)
    if failed:
        others = "; the others are done" if done else ""
        raise RuntimeError(f"{count_of(len(failed), noun)} could not be {verb}, see above{others}")
