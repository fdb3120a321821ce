"""The tutorials and the pages on concepts do what they say: their blocks run in order, in an empty folder.

A block of Python whose first line is ``# name.py`` is saved under that name, others run as one script. Command lines
run too. A block without a language is what the block before it prints, ``...`` standing for anything."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from isoconv.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    *sorted(DOCS.glob("tutorials/*.md")),
    *(DOCS / "concepts" / f"{n}.md" for n in ("bands", "steerable", "symmetry")),
]
SLOW = {"deploy-with-onnx", "drop-in-layer", "symmetry", "train-on-medmnist"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_command(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "isoconv":
        assert main(arguments) == 0, line
    elif program == "python":
        sys.stdout.write(
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
        )
    else:
        assert program == "pip", f"{line}: no such command in a tutorial"


def use_real_data(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether MedMNIST is at hand, in ``ISOCONV_DATA`` or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "medmnist"
    folder = Path(os.environ.get("ISOCONV_DATA", beside))
    monkeypatch.setenv("ISOCONV_DATA", str(folder))
    return (folder / "breastmnist.npz").is_file()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # by torch.onnx of torch 2.13 itself
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in SLOW), id=page.stem) for page in PAGES]
)
def test_page(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    text = page.read_text()
    if "breastmnist" in text and not use_real_data(monkeypatch):
        request.getfixturevalue("few_cells")
        text = text.replace("breastmnist", "cells")
    names: dict = {"__name__": "tutorial"}
    same = doctest.OutputChecker().check_output
    blocks = BLOCK.findall(text)
    assert blocks
    for language, text in blocks:
        printed = capsys.readouterr().out
        if language == "python" and (file := re.match(r"# (\w+\.py)\n", text)):
            Path(file[1]).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language == "sh":
            for line in text.splitlines():
                run_command(line)
        elif not language:
            assert same(text, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"{text}\nbut\n{printed}"


@pytest.mark.slow
def test_readme() -> None:
    names: dict = {}
    for language, text in BLOCK.findall((DOCS.parent / "README.md").read_text()):
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
    assert not any(type(module).__module__.startswith("isoconv") for module in names["plain"].modules())
