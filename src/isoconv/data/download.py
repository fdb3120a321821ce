"""Downloads that are verified, resume where they were cut, and are safe when several processes want the same file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from isoconv._extras import require
from isoconv._text import remedy

__all__ = ["fetch"]

_RETRIES = 3  # public archives answer 503 now and then
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 8192  # bytes: what a cut connection can lose


def fetch(url: str, path: Path, md5: str) -> Path:
    """Download ``url`` to ``path``, which appears only once its MD5 is right. Needs the extra ``study``.

    What a cut download left in ``path + ".part"`` is kept and continued by the next call. Several processes may call
    this at once: one downloads, the others wait. Nothing is downloaded if ``path`` exists.

    Raises:
        ConnectionError: the server cannot be reached, or keeps failing.
        ValueError: the server sent another file.
        OSError: the folder cannot be written to.
    """
    pooch, requests, filelock = (require(name, "study") for name in ("pooch", "requests", "filelock"))
    part = path.with_name(path.name + ".part")
    elsewhere = "name another one by ISOCONV_DATA or --data-root"
    by_hand = f"put {url} (MD5 {md5}) into {path.parent} by hand"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {path.parent} ({error.strerror}); {elsewhere}") from None
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write to the folder {path.parent}; {elsewhere}")

    def resume(url: str, target: str, _: Any) -> None:
        _download(url, part)
        os.replace(part, target)

    known, urls = {path.name: f"md5:{md5}"}, {path.name: url}
    cache = pooch.create(path.parent, "", registry=known, urls=urls, retry_if_failed=_RETRIES)
    lock = path.with_name(path.name + ".lock")
    try:
        with filelock.FileLock(lock):
            try:
                if not path.exists():
                    cache.fetch(path.name, downloader=resume)
            finally:
                with suppress(OSError):  # Windows keeps a file that is open
                    lock.unlink()  # who waits for it finds the file, or at worst a checksum that is wrong
    except requests.RequestException as error:
        problem = f"cannot download {path.name} ({error})"
        raise ConnectionError(f"{problem}; call again to resume, or {by_hand}") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(f"cannot write {part} ({error.strerror}); {remedy(error)}, or {elsewhere}") from None
    except ValueError as error:
        raise ValueError(f"{error} To get around it, {by_hand}") from None
    return path


def _download(url: str, part: Path) -> None:
    """Append to ``part`` the bytes of ``url`` that it lacks, or start over if the server cannot continue."""
    requests, tqdm = require("requests", "study"), require("tqdm.auto", "study").tqdm
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing: cut between the last byte and the check
        response.raise_for_status()
        done *= response.status_code == requests.codes.partial_content
        total = done + int(response.headers.get("Content-Length", 0))
        with (
            part.open("ab" if done else "wb") as file,
            tqdm(desc=part.stem, initial=done, total=total or None, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
