"""Text from elsewhere, such as names of files and labels, escaped for where it is shown: a function per format. And how
a program says in one line that it failed.

HTML has one of Python's, :func:`html.escape`, and jinja2 its autoescape.
"""

from __future__ import annotations

import csv
import errno
import io
import re
from collections.abc import Iterable

__all__ = ["code_span", "csv_table", "markdown", "one_line", "printable", "remedy", "without_objects"]

_ENTITY = re.compile(r"&(?=#?\w+;)")
_INLINE = re.compile(r"([\\`*_\[\]|~])")  # what Markdown acts on anywhere in a line
_LEADING = re.compile(r"^(\d*)([#=+.)-])")  # and at its beginning

_OBJECT = re.compile(r"<class '([\w.]+)'>|<([\w.]+)[^<>]* at 0x[0-9a-f]+>")

_REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space, of which you have used your share",
    errno.EACCES: "get permission, or choose another place",
    errno.EPERM: "get permission, or choose another place",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "let processes open more files at once (ulimit -n)",
}

_NO_MEMORY = ("can't allocate memory", "out of memory")  # PyTorch's errors, on the CPU and on a GPU
_FORESEEN = (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError)


def printable(text: str) -> str:
    """For a terminal: what is no character to be seen, which a terminal may act on, is spelt out, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def without_objects(text: str) -> str:
    """A library's message without the addresses of objects: ``"<_io.BytesIO object at 0x7f>"`` is ``"_io.BytesIO"``."""
    return _OBJECT.sub(lambda found: found[1] or found[2], text)


def markdown(text: str) -> str:
    """For Markdown: one line that shows the text as it is, in paragraphs, lists and tables."""
    escaped = _ENTITY.sub("&amp;", printable(text.strip())).replace("<", "&lt;").replace(">", "&gt;")
    escaped = _INLINE.sub(r"\\\1", escaped)
    return _LEADING.sub(r"\1\\\2", escaped)


def code_span(text: str) -> str:
    """For Markdown: the text as code in a line; not for tables."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * (len(fence) > 1)
    return f"{fence}{space}{text}{space}{fence}"


def csv_table(rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV, the heads being its first row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def one_line(error: Exception, traceback: str) -> str:
    """Such as ``"error: no run at x; train one with ..."``.

    Args:
        traceback: how to see where an error came from that nobody foresaw.
    """
    text = printable(" ".join(str(error).split()))
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return "error: there is not enough memory; use a smaller size, batch or width, or a machine with more of it"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"error: {_of_the_system(error)}; {remedy(error)}"
    if isinstance(error, _FORESEEN) and text:
        return f"error: {text}"
    kind = type(error).__name__ + (f" ({text})" if text else "")
    return (
        f"error: unexpected {kind}, a defect of isoconv; {traceback}. Please report it: the traceback, the command and "
        "what `isoconv --version` prints"
    )


def remedy(error: OSError) -> str:
    """What to do about an error of the system in writing a file."""
    return _REMEDIES.get(error.errno, "choose another place") if error.errno else "free disk space"


def _of_the_system(error: OSError) -> str:
    what = f"cannot use {error.filename}" if error.filename else "cannot write a file"
    return printable(f"{what} ({error.strerror})")
