"""How far a long job is, and how much longer it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from isoconv._extras import require

T = TypeVar("T")

_MINUTE, _HOUR = 60, 3600


def track(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The items, and in a terminal a bar on stderr with the time that is left; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        return items
    console = require("rich.console", extra="study").Console(stderr=True)
    return require("rich.progress", extra="study").track(items, what, total=total, console=console, transient=True)


def time_left(seconds: float, done: int, total: int) -> str:
    """``", 3 min left"`` where ``done`` things of ``total`` took so many seconds, empty where nothing is left."""
    left = seconds / done * (total - done)
    if done == total:
        return ""
    if left < 2 * _MINUTE:
        return f", {left:.0f} s left"
    return f", {left / _MINUTE:.0f} min left" if left < 2 * _HOUR else f", {left / _HOUR:.1f} h left"
