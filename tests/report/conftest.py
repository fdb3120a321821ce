"""A study of few cells, of which half is done, and a parser of the page."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from isoconv.report import write_report
from isoconv.runs import RunDir
from isoconv.study.plan import load_study

STUDY = """
title = "Few cells <turned>"
data = ["cells", "cells3d"]
seeds = [0, 1]
protocols = ["standard", "official"]
headline = ["sre", "plain-4"]
[options]
width = 4
epochs = 4
batch_size = 4
size = 16
3d = { width = 2, epochs = 1 }
[[contestant]]
name = "sre"
title = "SRE & friends"
model = "sre_resnet18"
2d = { kernel_sizes = [5, 5, 3, 3] }
[[contestant]]
name = "plain"
model = "resnet18"
[[averaged]]
name = "plain-4"
title = "plain, 4 turns"
of = "plain"
turns = 4
[[averaged]]
name = "plain-36"
of = "plain"
turns = 36
"""
NAMES = {"sre": "cells-sre-s0", "plain": "cells-plain-s0", "plain1": "cells-plain-s1", "volumes": "cells3d-sre-s0"}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """The file of the study."""
    (tmp_path / "few.toml").write_text(STUDY)
    return tmp_path / "few.toml"


@pytest.fixture
def runs(evaluated: Callable[[str], RunDir], tmp_path: Path) -> Path:
    """Four finished cells of eight."""
    (tmp_path / "runs").mkdir()
    for name, cell in NAMES.items():
        evaluated(name).path.rename(tmp_path / "runs" / cell)
    (tmp_path / "runs" / "cells3d-plain-s1.failed").write_text("no <good>\n")
    return tmp_path / "runs"


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a test asks for."""

    VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def parsed() -> type[Page]:
    """Makes what a test asks for of the text of a page."""
    return Page


@pytest.fixture
def page(toml: Path, runs: Path, tmp_path: Path) -> Path:
    write_report(load_study(toml), runs, tmp_path / "report.html")
    return tmp_path / "report.html"
