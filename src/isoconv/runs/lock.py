"""One process at a time works in a run directory.

The lock is one of the operating system, on the file `.lock`: it ends with the process that holds it, however that ends.
`.lock.json` says who holds it, and means nothing while the lock is free. Reading needs no lock.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from isoconv.runs.writing import write_json

__all__ = ["FILES", "BusyError", "holder", "lock"]

log = logging.getLogger(__name__)

_LOCK, _HOLDER = ".lock", ".lock.json"
FILES = (_LOCK, _HOLDER, f".{_HOLDER}.tmp")
"""What a lock may leave in a directory."""
_PATIENCE_S = 0.5  # who only looks whether the lock is free holds it for a moment
_POLL_S = 1.0


class BusyError(RuntimeError):
    """Another process works in the run directory."""


@contextmanager
def lock(path: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Work alone in a run directory.

    The directory is made if it is not there; if it holds no run in the end, nothing of the lock is left in it, and it
    goes away again if it is empty. A thread that holds the lock may take it once more. Under torchrun the first process
    holds it for all.

    Args:
        path: the run directory.
        doing: what the others are told, such as "training".
        wait: until it is free, however long that takes.

    Raises:
        BusyError: another process, or another thread of this one, holds it, and ``wait`` is false.
        OSError: the directory cannot be made or written.
        ValueError: ``wait`` under torchrun, where the other processes would not know of it.
    """
    if wait and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes of torchrun cannot --wait together; start them once the other is done")
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    guard = FileLock(path / _LOCK, is_singleton=True)
    if guard.is_locked:
        yield
        return
    _acquire(guard, path, wait)
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        write_json(path / _HOLDER, {"pid": os.getpid(), "host": platform.node(), "doing": doing, "since": since})
        yield
    finally:
        (path / _HOLDER).unlink(missing_ok=True)
        if not (path / "config.json").exists():
            with suppress(OSError):
                (path / _LOCK).unlink()
                path.rmdir()
        guard.release()


def holder(path: Path) -> str | None:
    """Who works in a run directory, in words.

    None where nobody does, and where that cannot be tried for lack of the permission to write there.
    """
    if not (path / _LOCK).exists():
        return None
    try:
        with FileLock(path / _LOCK, timeout=0):
            return None
    except Timeout:
        return _who(path)
    except OSError:
        return None


def _acquire(guard: FileLock, path: Path, wait: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=_PATIENCE_S)
        return
    except Timeout:
        busy = f"{path} is in use by {_who(path)}"
    except OSError as error:
        raise type(error)(
            f"cannot lock the run directory {path} ({error.strerror}); choose one that you may write to"
        ) from None
    if not wait:
        raise BusyError(f"{busy}; go on when that has ended, or let isoconv train or evaluate --wait for it")
    log.info("%s; waiting for it", busy)
    guard.acquire(poll_interval=_POLL_S)


def _who(path: Path) -> str:
    try:
        me = json.loads((path / _HOLDER).read_text())
        return f"process {me['pid']} on {me['host']}, {me['doing']} since {me['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
