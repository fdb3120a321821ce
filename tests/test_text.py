"""Text from elsewhere, as other programs show it."""

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoconv._text import code_span, markdown, printable, without_objects

markdown_it = pytest.importorskip("markdown_it", reason="not installed: pip install 'isoconv[docs]'")
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "two\nlines",
    "`code`",
    "**bold** _it_ ~~gone~~",
    "[link](http://x) ![image](http://x)",
    "# heading",
    "- item",
    "1. item",
    "=== line",
    "&lt; is an entity, \\ is not",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "\udcff",
]


class Shown(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)


def shown(source: str) -> Shown:
    return Shown(markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(source))


def test_no_address_of_an_object_is_told() -> None:
    text = f"cannot identify {io.BytesIO()}, {object()} or {str}; <b> and <3 stay, a < b > c, too"
    assert without_objects(text) == "cannot identify _io.BytesIO, object or str; <b> and <3 stay, a < b > c, too"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text(text: str) -> None:
    for source, tags in ((f"{markdown(text)}", ["p"]), (f"1. {markdown(text)}", ["ol", "li"])):
        page = shown(source)
        assert page.text.strip() == printable(text)
        assert page.tags == tags
    page = shown(f"| a | b |\n| --- | --- |\n| {markdown(text)} | c |")
    assert page.tags.count("td") == 2
    assert printable(text) in page.text
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}


@given(st.text(st.characters(codec="utf-8", categories=["P", "S", "L", "N", "Zs", "Cc"]), min_size=1))
def test_any_text(text: str) -> None:
    page = shown(f"x {markdown(text)} y")
    assert " ".join(page.text.split()) == " ".join(f"x {printable(text.strip())} y".split())
    assert page.tags == ["p"]


@pytest.mark.parametrize("text", ["isoconv evaluate x", "a`b", "``", "`", "<b>", "a\nb"])
def test_code(text: str) -> None:
    page = shown(f"see {code_span(text)}.")
    assert page.text.strip() == f"see {printable(text)}."
    assert page.tags == ["p", "code"]


def test_plain_text_stays_as_it_is() -> None:
    for text in ("melanoma, 2 mm", "benign & malignant", "weiße Blutkörperchen", "細胞"):
        assert printable(text) == markdown(text) == text


@given(st.text())
def test_nothing_that_a_terminal_acts_on(text: str) -> None:
    assert printable(text).isprintable()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", printable(text))
