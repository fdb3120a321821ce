"""Images inside of a page, as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from isoconv._extras import require

__all__ = ["drawing", "label_colours", "overlay", "photograph", "png"]

_QUALITY = 65  # of WebP: images of 32 pixels look the same, in less than a third of the bytes of PNG
_COLOURS = 64
_OPACITY = 150  # of 255


def png(pixels: np.ndarray) -> str:
    """Without loss, and small images only: uint8 (H, W), (H, W, 3) or (H, W, 4)."""
    return _uri(_pillow().fromarray(pixels), "png", optimize=True)


def photograph(pixels: np.ndarray) -> str:
    """With a loss that nobody sees: uint8 (H, W) or (H, W, 3)."""
    return _uri(_pillow().fromarray(pixels), "webp", quality=_QUALITY, method=6)


def label_colours(count: int) -> list[str]:
    """Of the labels of a mask, of which the first is the background: "#rrggbb", that of the background "transparent".

    Up to six are those of Okabe and Ito, for all kinds of colour vision."""
    few = ("#f0e442", "#cc79a7", "#56b4e9", "#009e73", "#d55e00", "#0072b2")
    if count - 1 <= len(few):
        return ["transparent", *few[: count - 1]]
    rainbow = require("matplotlib", "study").colormaps["turbo"](np.linspace(0, 1, count - 1), bytes=True)
    return ["transparent", *(f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in rainbow)]


def overlay(mask: np.ndarray, labels: int) -> np.ndarray:
    """A mask (H, W) of numbers of ``labels`` in their colours, through which an image is seen, uint8 (H, W, 4); the
    background is transparent."""
    shades = [[*bytes.fromhex(colour[1:]), _OPACITY] for colour in label_colours(labels)[1:]]
    return np.array([[0, 0, 0, 0], *shades], np.uint8)[mask]


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
