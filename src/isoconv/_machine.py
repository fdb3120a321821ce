"""What this machine can bear: options beyond it are refused in one line before they end the process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["check_memory", "check_threads", "memory"]

_THREADS = 64  # any machine bears so many
_THREADS_PER_CORE = 4
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_threads(threads: int) -> None:
    """Raises ValueError for more CPU threads than make sense: many more end the process."""
    cores = os.cpu_count() or 1
    most = max(_THREADS, _THREADS_PER_CORE * cores)
    if not 1 <= threads <= most:
        raise ValueError(f"threads must be 1 to {most} on this machine, which has {cores} CPU cores, got {threads}")


def check_memory(size: float, what: str, remedy: str) -> None:
    """Raises ValueError where ``what`` needs more bytes, ``size``, than this process can have."""
    if (most := memory()) is not None and size > most:
        has = f"this process can have {most / 1e9:,.1f} GB"
        raise ValueError(f"{what} would take {size / 1e9:,.1f} GB of memory, {has}; {remedy}")


def memory() -> int | None:
    """Bytes that this process can have: of the machine, its container, or its user's limit; None if nothing tells."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CONTAINER:
        with suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(Path(path).read_text()))
    with suppress(ImportError):
        import resource

        if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            limits.append(limit)
    return min(limits, default=None)
