"""Argument checks shared by every layer of the library, and what this machine can bear: options beyond it are refused
in one line before they end the process."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T", int, float)
Function = TypeVar("Function", bound=Callable[..., Any])

_THREADS = 64  # any machine bears so many
_THREADS_PER_CORE = 4
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def ntuple(value: Any, n: int, name: str, kind: Callable[[Any], T] = int, per: str = "axis") -> tuple[T, ...]:
    """``value`` as a tuple of ``n`` numbers: one number stands for all axes, a sequence must have one per axis (or
    ``per`` something else)."""
    scalar = not isinstance(value, Iterable) or isinstance(value, str) or getattr(value, "ndim", 1) == 0
    values = (value,) * n if scalar else tuple(value)
    if len(values) != n:
        raise ValueError(f"{name} must be one number or {n} of them, one per {per}, got {len(values)}: {value!r}")
    whole = kind is int
    if any(isinstance(v, bool) or not isinstance(v, Real) or (whole and not float(v).is_integer()) for v in values):
        raise TypeError(f"{name} must be {'whole numbers' if whole else 'numbers'}, got {value!r}")
    return tuple(kind(v) for v in values)


def check_counts(**values: Any) -> None:
    """Raises ValueError for the first of the named values that is no whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the known names closest to ``name``, empty if none is close."""
    close = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_options(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises TypeError for the first name ``given`` that is not ``known``, with near matches."""
    for option in given:
        if option not in known:
            raise TypeError(
                f"{owner} has no option {option!r}: its options are {', '.join(known)}{did_you_mean(option, known)}"
            )


def spells_out(source: Callable[..., Any], without: Iterable[str] = ()) -> Callable[[Function], Function]:
    """Decorator of a function that hands its ``**options`` on to ``source``: its signature names the keyword-only
    arguments of ``source`` instead, and others are refused."""
    keywords = [p for p in inspect.signature(source).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        named = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        spelled = named | {p.name: p for p in keywords if p.name not in {*without, *named}}
        known = tuple(name for name in spelled if name != "self")

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            owner = type(args[0]) if function.__name__ == "__init__" else checked
            check_options(owner.__name__, kwargs, known)
            return function(*args, **kwargs)

        checked.__signature__ = own.replace(parameters=list(spelled.values()))  # type: ignore[attr-defined]
        return cast(Function, checked)

    return decorate


def count_of(n: int, noun: str, plural: str = "") -> str:
    """``"1 error"``, ``"1,200 errors"``: a number with its noun, for messages."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


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
