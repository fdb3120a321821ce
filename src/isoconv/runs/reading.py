"""Files that are read back: bounded, checked against a schema, and refused in one line that names file and field."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from isoconv._checks import did_you_mean
from isoconv._files import NotRegularError, open_regular

__all__ = ["JSON_LIMIT", "check_json", "open_file", "parse_json", "read_bytes", "read_json"]

JSON_LIMIT = 64 * 2**20
"""Bytes that a JSON file may have: results of 1000 classes need a tenth of it."""

_SHOWN = 60  # characters of a value in an error


def open_file(path: Path, remedy: str, missing: str, limit: int | None = None) -> BinaryIO:
    """Open a file to read it as a whole; a pipe is refused before it blocks.

    Args:
        remedy: what to do about it, the end of the error.
        missing: the same where there is no such file.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is a folder, a pipe or a device, or larger than the limit.
    """
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist; {missing}") from None
    except NotRegularError:
        raise ValueError(f"{path} is a folder, a pipe or a device, expected a file; {remedy}") from None
    size = os.fstat(file.fileno()).st_size
    if limit is not None and size > limit:
        file.close()
        raise ValueError(f"{path} has {size:,} bytes, expected at most {limit:,}; {remedy}")
    return file


def read_bytes(path: Path, remedy: str, missing: str, limit: int | None = None) -> bytes:
    """The content of a file; arguments and errors as of :func:`open_file`."""
    try:
        with open_file(path, remedy, missing, limit) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}); make it readable, or {remedy}") from None


def read_json(path: Path, kind: Any, remedy: str, missing: str) -> Any:
    """The value in a JSON file of at most :data:`JSON_LIMIT` bytes.

    Args:
        kind: its schema, one of :mod:`isoconv.runs.schema`.
        remedy, missing: as of :func:`open_file`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no such file, no JSON or not of the schema.
    """
    return parse_json(str(path), read_bytes(path, remedy, missing, JSON_LIMIT), kind, remedy)


def parse_json(where: str, content: bytes, kind: Any, remedy: str) -> Any:
    """What :func:`read_json` does with the content of a file; ``where`` begins its errors."""
    try:
        _adapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        complaint = _complaint(error)
        raise ValueError(where + complaint + ("" if "; " in complaint else f"; {remedy}")) from None
    return json.loads(content)  # as it was written: pydantic puts the entries that it knows first


def check_json(where: str, value: Any, kind: Any, remedy: str) -> None:
    """Refuse a value, before it is written, that would be refused when it is read back. Raises ValueError."""
    parse_json(where, json.dumps(value).encode(), kind, remedy)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _complaint(error: ValidationError) -> str:
    """The first field that is not as it should be, what was expected and what came; follows the name of the file.

    A schema's own message may say what came, after ``", got "``, and, after ``"; "``, the remedy.
    """
    first, *others = error.errors(include_url=False, include_context=True)
    *above, name = first["loc"] or ("",)
    place = _place(first["loc"])
    match first["type"]:
        case "json_invalid":
            return f" is not valid JSON ({first['ctx']['error']})"
        case "missing":
            misspelt = [e["loc"][-1] for e in others if e["type"] == "extra_forbidden" and [*e["loc"][:-1]] == above]
            return f" lacks the entry {place}{did_you_mean(name, map(str, misspelt))}"
        case "extra_forbidden":
            return f" has an unknown entry {place}"
        case "value_error":
            wrong = str(first["ctx"]["error"])
        case _:
            _, should, expected = first["msg"].partition(" should ")
            wrong = f"must {expected}" if should else first["msg"]
    got = "" if ", got " in wrong or "; " in wrong else f", got {_short(repr(first['input']))}"
    return (f": {place} " if place else " ") + wrong + got


def _place(location: tuple[int | str, ...]) -> str:
    """Such as ``'task.labels[3]'``."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return _short(repr(steps.removeprefix("."))) if steps else ""


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
