"""Files, and sets of files, that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from isoconv._text import remedy

__all__ = ["atomic_write", "settle", "whole_folder", "write_json", "write_set", "writing"]

Write = Callable[[IO[bytes]], object]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system say what cannot be written, and what to do about it."""
    try:
        yield
    except OSError as error:
        kept = "; what was there before is intact" if path.exists() else ""
        raise type(error)(
            f"cannot write {path} ({error.strerror or error}){kept}; {remedy(error)}, then go on"
        ) from None


def atomic_write(path: Path, write: Write) -> None:
    """Replace ``path`` by what ``write`` puts into a file; whatever fails, the previous file stays as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            _write(temporary, write)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN), atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda f: f.write(text.encode()))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled. It becomes ``path``, which is not there or empty, when the block ends well."""
    with _filled(path, path) as made, writing(path):
        yield made


def write_set(files: Mapping[Path, Write]) -> None:
    """Replace files of one folder together.

    They are written into a folder beside them. Once that has its final name they move to their places one by one. A
    process that is killed leaves either the files that were there, or what :func:`settle` brings to its end.
    """
    first = next(iter(files))
    with writing(first):
        settle(first)
    with _filled(_ready(first), first) as made:
        for path, write in files.items():
            with writing(path):
                _write(made / path.name, write)
    with writing(first):
        settle(first)


def settle(first: Path) -> bool:
    """Bring to its end what a killed :func:`write_set` began, ``first`` being the first of its files.

    Any number of processes may do so at once. Raises OSError where the folder cannot be written.

    Returns:
        Whether there was something to do.
    """
    ready = _ready(first)
    try:
        waiting = sorted(ready.iterdir())
    except FileNotFoundError:
        return False
    for file in waiting:
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(file, first.with_name(file.name))
    with suppress(OSError):
        ready.rmdir()
    return True


def _ready(first: Path) -> Path:
    return first.with_name(f".{first.name}.set")


def _write(path: Path, write: Write) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _filled(path: Path, named: Path) -> Iterator[Path]:
    """As :func:`whole_folder`; errors name another path."""
    made = path.with_name(f".{path.name.lstrip('.')}.tmp")
    shutil.rmtree(made, ignore_errors=True)  # a process may have been killed here
    with writing(named):
        made.mkdir()
    try:
        yield made
        with writing(named):
            os.replace(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
