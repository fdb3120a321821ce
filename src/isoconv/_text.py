"""Text from elsewhere, such as names of files and labels, escaped for where it is shown: a function per format.

HTML has one of Python's, :func:`html.escape`, and jinja2 its autoescape.
"""

from __future__ import annotations

import re

__all__ = ["code_span", "markdown", "printable"]

_ENTITY = re.compile(r"&(?=#?\w+;)")
_INLINE = re.compile(r"([\\`*_\[\]|~])")  # what Markdown acts on anywhere in a line
_LEADING = re.compile(r"^(\d*)([#=+.)-])")  # and at its beginning


def printable(text: str) -> str:
    """For a terminal: what is no character to be seen, which a terminal may act on, is spelt out, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
