"""Argument checks shared by every layer of the library."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

T = TypeVar("T", int, float)
Function = TypeVar("Function", bound=Callable[..., Any])


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
