"""Opening files that others put there."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import BinaryIO

__all__ = ["NotRegularError", "open_regular"]

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRegularError(ValueError):
    """A path that is there, but is no regular file."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading in binary. A pipe, a socket or a device never blocks the caller.

    Raises:
        FileNotFoundError, PermissionError, OSError: as :func:`open` does.
        NotRegularError: it is of another kind.
    """
    _check(path, os.stat(path).st_mode)  # before it is opened: that alone can act on a device
    with ExitStack() as closing:
        file = closing.enter_context(open(path, "rb", opener=_at_once))
        _check(path, os.fstat(file.fileno()).st_mode)
        closing.pop_all()
    return file


def _at_once(path: str, flags: int) -> int:
    """A pipe that took the file's place since it was looked at would wait for someone to write."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise NotRegularError(f"{os.fspath(path)} is {kind}, a regular file is expected; leave it out")
