"""Options that several commands share, as types of their fields."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isoconv._extras import require

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="study")

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
