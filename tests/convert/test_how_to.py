"""docs/how-to/convert.md says what is true."""

import re
from pathlib import Path

import pytest

from isoconv.convert import report, windows

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "convert.md"


def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "how_to"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(snippet, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"```\n(layer .*?)```", PAGE.read_text(), re.DOTALL)
    expected, got = (re.sub(r" +\d+% *| {2,}", " ", text) for text in (shown, printed))  # the share kept is random
    assert expected in got


def test_every_status_and_verdict_is_explained() -> None:
    explained = set(re.findall(r"^\| `([a-z ]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert explained == {
        windows.ISOTROPIC,
        windows.EQUIVARIANT,
        windows.CONVERTIBLE,
        windows.UNAFFECTED,
        windows.DEPENDS,
        windows.LEFT,
        windows.BREAKS,
        windows.UNKNOWN,
        report.SYMMETRIC,
        report.BROKEN,
        report.NOT_VERIFIED,
    }
