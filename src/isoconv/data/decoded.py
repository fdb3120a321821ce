"""What every reader returns, how much it may decode, and what it says of a file that it cannot read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoconv._files import NotRegularError
from isoconv._text import without_objects

__all__ = ["LIMITS", "MAX_PIXELS", "Axis", "Decoded", "Limits", "Spacing", "UnreadableError", "readable"]

Spacing = tuple[float, ...]
Axis = Literal["depth", "images", "pages", "unknown"]

MAX_PIXELS = "ISOCONV_MAX_PIXELS"
"""Environment variable: the limit on pixels where none is given in Python. `--max-pixels` sets it for a command and its
processes."""

_BYTES = 2**28
_BYTES_PER_BYTE = 16


@dataclass(frozen=True)
class Decoded:
    """An array from a file.

    Attributes:
        array: real numbers. Colours, one or three of them, are the last axis; of an ``"unknown"`` array they may be.
        leading: what an axis before height and width is: the ``"depth"`` of a volume; further ``"images"``, as
            moments in time are; ``"pages"``, which are either; or ``"unknown"``, where the file does not tell.
        spacing: millimetres between voxels along each spatial axis, None where the file does not tell.
        no_depth: why ``"images"`` are no volume, in words that follow the file's name.
    """

    array: np.ndarray
    leading: Axis = "pages"
    spacing: Spacing | None = None
    no_depth: str = ""


class UnreadableError(ValueError):
    """A file that cannot be read: why, and what to do about it. :func:`readable` adds which file."""

    def __init__(self, reason: str, remedy: str = "save it anew or leave it out", where: str = "") -> None:
        super().__init__(reason, remedy, where)
        self.reason, self.remedy, self.where = reason, remedy, where

    def __str__(self) -> str:
        return f"cannot read {self.where} ({self.reason}); {self.remedy}"


@contextmanager
def readable(where: object) -> Iterator[None]:
    """Makes whatever a reader raises an :class:`UnreadableError` that names ``where``: over damaged files libraries
    raise anything."""
    try:
        yield
    except (ImportError, NotRegularError):
        raise
    except UnreadableError as error:
        error.where = error.where or str(where)
        raise
    except Exception as error:
        reason = without_objects(" ".join(str(error).split())) or type(error).__name__
        raise UnreadableError(reason, where=str(where)) from error


@dataclass(frozen=True)
class Limits:
    """How much a reader takes in, checked by what a file declares, before it is decoded.

    Attributes:
        pixels: pixels (voxels) in one file, all its images together. None: what :data:`MAX_PIXELS` says; without it, no
            number of pixels, but an array of at most 256 MiB, or of 16 times the size of its file, whichever is more.
        rows: rows of a manifest.
    """

    pixels: int | None = None
    rows: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"the limit of {name} must be at least 1, got {value}")

    def check(self, pixels: int, size: int, held: int) -> None:
        """Refuse an array of ``pixels``, in memory ``size`` bytes, from a file of ``held`` bytes.

        Raises:
            UnreadableError: it is too large.
        """
        limit = self.pixels or _limit_of_environment()
        if limit is not None and pixels > limit:
            reason = f"it has {pixels:,} pixels, the limit is {limit:,}"
        elif limit is None and size > max(_BYTES, _BYTES_PER_BYTE * held):
            reason = f"its {pixels:,} pixels would take {size / 1e9:.2f} GB, the file has {held / 1e6:.2f} MB"
        else:
            return
        lifted = f"--max-pixels {pixels}, in Python limits=Limits(pixels={pixels})"
        raise UnreadableError(reason, f"make it smaller, or raise the limit: {lifted}")


def _limit_of_environment() -> int | None:
    text = os.environ.get(MAX_PIXELS)
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        raise UnreadableError(f"{MAX_PIXELS} is {text!r}, no number of pixels", "set it to one from 1, or unset it")
    return int(text)


LIMITS = Limits()
"""The default."""
