"""Options that several commands share, as types of their fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
Wait = Annotated[bool, tyro.conf.arg(help="Wait while another process works in the run directory.")]
DataRoot = Annotated[
    Path | None, tyro.conf.arg(help="Folder of the MedMNIST files; None stands for $ISOCONV_DATA, else ~/.medmnist.")
]
RunPath = tyro.conf.Positional[
    Annotated[Path, tyro.conf.arg(metavar="RUN", help="Run directory that `isoconv train` wrote.")]
]


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
