"""How far a long job is."""

import io

import pytest

from isoconv._progress import time_left, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "done", "total", "text"),
    [
        (10, 1, 4, ", 30 s left"),
        (10, 4, 4, ""),
        (60, 1, 11, ", 10 min left"),
        (3600, 2, 7, ", 2.5 h left"),
    ],
)
def test_time_left(seconds: float, done: int, total: int, text: str) -> None:
    assert time_left(seconds, done, total) == text


def test_a_bar_in_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        assert list(track(range(3), "image files", 3)) == [0, 1, 2]
        assert ("image files" in stream.getvalue()) == shown
