"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace ``path`` by what ``write`` puts into a file; whatever fails, the previous file stays as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; what was there before is intact" if path.exists() else ""
        raise type(error)(
            f"cannot write {path} ({error.strerror or error}){kept}; free disk space or get permission, then go on"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN), atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda f: f.write(text.encode()))
