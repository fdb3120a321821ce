"""What a command line shows of its options: groups, types, defaults, and that it is quick."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

Call = Callable[..., Any]  # of a command line, to its Result

COMMANDS = [
    *("train", "evaluate", "predict", "compare", "demo", "models", "doctor", "export", "serve"),
    *("bench ops", "bench models", "data list", "data fetch", "data check", "data manifest"),
    *("study run", "study status", "study report"),
]
COMPUTING = {"train", "evaluate", "predict", "demo", "doctor", "export", "serve", "bench ops", "bench models"}
COMPUTING |= {"study run", "study report"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_shown_as_they_are_typed(call: Call, command: str) -> None:
    text = call(*command.split(), "--help").out
    assert "None" not in text
    assert ("--threads INT" in text) == (command in COMPUTING)


def test_options_of_a_training_are_in_groups(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # wider terminals get two columns of boxes
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", call("train", "--help").out).split())
    order = ["What is learned from.", "--task STR", "The network;", "--width INT", "--kernel-sizes [INT [INT ...]]"]
    order += ["such as 9 9 5 5. (default: the network's own)", "--circular {True,False}", "How it is trained.", "--lr"]
    order += ["Where and how it is computed.", "--threads INT CPU threads. (default: torch's choice)"]
    places = [text.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)


def test_none_is_no_value(call: Call) -> None:
    assert call("models", "--width", "None").code == 2


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["trian"]])
def test_answers_at_once(arguments: list[str]) -> None:
    """What takes long to import has not been imported."""
    code = (
        "import sys\nfrom isoconv.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'scipy', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(call: Call, shell: str) -> None:
    script = call("--tyro-print-completion", shell)
    assert not script.code
    assert "evaluate" in script.out
    assert "--kernel-sizes" in script.out
