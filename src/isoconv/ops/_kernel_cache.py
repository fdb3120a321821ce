"""Compiled code kept on disk: Numba's cache, made to survive what can happen to files.

Numba takes what it reads for whole. Here each file has a checksum at its end, and each piece of code says what it is
for: a file that is damaged, cannot be read, or was written by another process at the same time counts as absent.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc

__all__ = ["compiled"]

log = logging.getLogger(__name__)


def compiled(function, signature, **options) -> tuple[CFunc, bool]:
    """``function`` as C code, as ``numba.cfunc(signature, **options)`` makes it, and whether it was on disk."""
    code: Any = CFunc(function, (signature.args, signature.return_type), {}, options)
    try:
        code._cache = _Cache(function)  # as CFunc.enable_caching does
    except RuntimeError:  # Numba finds no folder
        _cannot_keep("no folder for it can be written")
    code.compile()
    return code, code.cache_hits > 0


class _Files(IndexDataCacheFile):
    """Numba's index and data files with checksums."""

    def save(self, key, data):
        super().save(key, (key, data))

    def load(self, key):
        found, data = super().load(key) or (None, None)
        return data if found == key else None

    @contextmanager
    def _open_for_write(self, filepath):
        with super()._open_for_write(filepath) as file:
            content = BytesIO()
            yield content
            file.write(content.getvalue() + sha256(content.getvalue()).digest())

    def _load_index(self):
        return super()._load_index() if _is_whole(Path(self._index_path)) else {}

    def _load_data(self, name):
        if not _is_whole(Path(self._data_path(name))):
            raise FileNotFoundError  # which Numba takes for what it is: nothing there
        return super()._load_data(name)


class _Cache(FunctionCache):
    def __init__(self, function):
        super().__init__(function)
        files = self._cache_file
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, files._source_stamp)

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _cannot_keep(f"{self._cache_path} cannot be written ({error.strerror})")


def _is_whole(path: Path) -> bool:
    """Whether the last bytes of a file are the checksum of the others; unpickling ignores them."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        _warn_once(f"the compiled code in {path} cannot be read ({error.strerror}); it is compiled anew")
        return False
    size = len(content) - sha256().digest_size
    whole = size > 0 and sha256(content[:size]).digest() == content[size:]
    if not whole:
        _warn_once(f"the compiled code in {path} is damaged; it is compiled anew")
    return whole


def _cannot_keep(reason: str) -> None:
    remedy = "set NUMBA_CACHE_DIR to a folder that you may write to"
    _warn_once(f"compiled code cannot be kept, {reason}: every start takes seconds to compile it; {remedy}")


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
