"""Files from strangers: refused by size and kind before they are read, and never stored under a name of theirs."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fastapi import HTTPException, UploadFile
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from isoconv._extras import require
from isoconv.data import files, medical, nifti, tiff
from isoconv.data.decoded import readable
from isoconv.evaluation.prediction import Predictor

__all__ = ["GRACE", "RATE", "SUFFIXES", "BodyLimit", "Limits", "read_upload"]

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that any client has for a request, or to take of an answer what fills the buffers."""
RATE = 10_000
"""Bytes of a body that it has to send in each second after them."""
SUFFIXES = tuple(suffix for suffix in files.SUFFIXES if suffix != ".npz")
"""No archives: what is in them can be far larger than they are."""
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # by content: names prove nothing
_DICOM_SHAPE = ("NumberOfFrames", "Rows", "Columns")


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        megabytes: size of its body, all files together.
        files: their number.
        side: pixels along an axis of an image; an array has no more values than an RGBA image of this side.
    """

    megabytes: int = 20
    files: int = 64
    side: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"the limit of {name} must be at least 1, got {value}")


class BodyLimit:
    """ASGI middleware: 413 for a request whose body has more than ``limits.megabytes``, of which no more is kept, and
    408 for one whose body takes longer than :data:`GRACE` seconds and then comes slower than :data:`RATE`.

    What is too large is read to its end, as many clients do not look for an answer before that.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.megabytes = app, limits.megabytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.megabytes * 10**6
        size, began, unfinished = 0, asyncio.get_running_loop().time(), True
        too_large = int(Headers(scope=scope).get("content-length", 0)) > limit

        async def timely() -> Message:
            nonlocal size, unfinished
            try:
                async with asyncio.timeout_at(began + GRACE + min(size, limit) / RATE if unfinished else None):
                    message = await receive()
            except TimeoutError:
                text = f"the request comes too slowly, the limit is {RATE // 1000} kB a second; send less at once"
                raise HTTPException(408, text, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            unfinished = message.get("more_body", False)
            return message

        async def limited() -> Message:
            message = await timely()
            if too_large or size > limit:
                while unfinished:
                    await timely()
                raise HTTPException(
                    413, f"the request is too large, the limit is {self.megabytes} MB; send less at once"
                )
            return message

        await self.app(scope, limited, send)


def read_upload(upload: UploadFile, readers: Sequence[Predictor], limits: Limits) -> list[tuple[list[str], Tensor]]:
    """What each network reads from an uploaded file, see :meth:`isoconv.evaluation.prediction.Predictor.read`.

    The client's name is told in answers only.

    Raises:
        HTTPException: 415 for a kind of file that is not read; 413 for too large an image; 422 for one that cannot be
            read, or that a network cannot take.
    """
    name = upload.filename or "file"
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    with TemporaryDirectory(prefix="isoconv-serve-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        if not suffix and not medical.is_dicom(path):
            raise HTTPException(415, f"{name} is none of {', '.join(SUFFIXES)}; convert it to one of them")
        try:
            shape = _shape(path)
            if max(shape, default=0) > limits.side or math.prod(shape) > 4 * limits.side**2:
                size = " x ".join(map(str, shape))
                raise HTTPException(413, f"{name} is {size}, the limit is {limits.side} a side; send a smaller image")
            read = [reader.read(path) for reader in readers]
        except ValueError as error:
            log.debug("%s was refused", name, exc_info=True)
            raise HTTPException(422, str(error).replace(str(path), name)) from None
        except ImportError as error:  # for want of an extra
            log.error("%s: %s", name, error)
            raise HTTPException(415, f"this server does not read {suffix or 'DICOM'}; convert {name}") from None
    return [([each.replace(str(path), name) for each in names], images) for names, images in read]


def _shape(path: Path) -> tuple[int, ...]:
    """The shape that the head of a file tells; nothing is decoded."""
    with readable(path):
        if path.suffix == ".npy":
            return np.lib.format.open_memmap(path, mode="r").shape
        if path.suffix in tiff.SUFFIXES:
            with require("tifffile", "study").TiffFile(path) as file:
                return file.series[0].shape
        if path.name.endswith(nifti.SUFFIXES):
            return require("nibabel", "medical").load(path).shape
        if medical.is_dicom(path):
            head = medical.dataset(path, stop_before_pixels=True)
            return tuple(int(head.get(name) or 1) for name in _DICOM_SHAPE)
        with require("PIL.Image", "study").open(path, formats=_FORMATS) as file:
            return file.size
