"""Images inside of a page, as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from isoconv._extras import require

__all__ = ["drawing", "photograph", "png"]

_QUALITY = 65  # of WebP: images of 32 pixels look the same, in less than a third of the bytes of PNG
_COLOURS = 64


def png(pixels: np.ndarray) -> str:
    """Without loss, and small images only: uint8 (H, W), (H, W, 3) or (H, W, 4)."""
    return _uri(_pillow().fromarray(pixels), "png", optimize=True)


def photograph(pixels: np.ndarray) -> str:
    """With a loss that nobody sees: uint8 (H, W) or (H, W, 3)."""
    return _uri(_pillow().fromarray(pixels), "webp", quality=_QUALITY, method=6)


def drawing(path: Path) -> str:
    """A figure of few colours from a file."""
    with _pillow().open(path) as image:
        return _uri(image.convert("RGB").quantize(_COLOURS).convert("RGB"), "webp", lossless=True)


def _pillow() -> Any:
    return require("PIL.Image", extra="study")


def _uri(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
