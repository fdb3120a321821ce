"""Output that cannot be written, and files that cannot be read: a line that says what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoconv._text import one_line, remedy
from isoconv.runs import RunDir

LIST = [sys.executable, "-m", "isoconv", "data", "list", "--json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "error: cannot write a file (No space left on device); free disk space\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_reader_that_has_enough() -> None:
    process = subprocess.Popen(LIST, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, told = process.communicate()
    assert (process.returncode, told) == (141, "")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EDQUOT, "free disk space"),
        (errno.EACCES, "get permission, or choose another place"),
        (errno.EROFS, "choose a place that is not read-only"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
    ],
)
def test_errors_of_the_system(number: int, words: str) -> None:
    error = OSError(number, os.strerror(number), "/a/b\x1b")
    assert one_line(error, "") == rf"error: cannot use /a/b\x1b ({os.strerror(number)}); {remedy(error)}"
    assert remedy(error).startswith(words)


def test_a_file_of_a_run_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("isoconv.runs.reading.open_regular", refuse)
    with pytest.raises(
        PermissionError, match=r"^/.*config\.json cannot be read \(Permission denied\); make it readable"
    ):
        _ = RunDir(tmp_path).config
