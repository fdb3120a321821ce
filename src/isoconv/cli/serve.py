"""The command that puts a trained network on a page: `isoconv serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isoconv.cli.options import Computes, ReadsImages, RunPath
from isoconv.runs.config import Device


@dataclass(frozen=True, kw_only=True)
class Serve(ReadsImages, Computes):
    """Show a trained network on a local web page, and answer programs at /predict.

    The page turns an image, and shows whether the answer changes.
    """

    path: RunPath
    plain: Path | None = None
    """Run of another network for the same data, shown beside it."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but the default lets other machines in, without password or encryption."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    max_megabytes: int = 20
    """Largest request, all its files together."""
    max_files: int = 64
    """Most files in a request."""
    max_side: int = 4096
    """Most pixels along an axis of an image."""

    def work(self) -> None:
        from isoconv.serve import Limits, serve

        limits = Limits(self.max_megabytes, self.max_files, self.max_side)
        serve(self.path, self.plain, host=self.host, port=self.port, device=self.device, limits=limits)
