"""How a program says in one line that it failed."""

from __future__ import annotations

from isoconv._text import printable

__all__ = ["one_line"]

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
    if isinstance(error, _FORESEEN) and text:
        return f"error: {text}"
    kind = type(error).__name__ + (f" ({text})" if text else "")
    return (
        f"error: unexpected {kind}, a defect of isoconv; {traceback}. Please report it: the traceback, the command and "
        "what `isoconv --version` prints"
    )
