"""How a program says in one line that it failed."""

from __future__ import annotations

import errno

from isoconv._text import printable

__all__ = ["one_line", "remedy"]

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
