"""Only regular files are opened, wherever one is named, and nothing waits for a pipe."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoconv._files import NotRegularError, open_regular
from isoconv.data import listing, own, read_images
from isoconv.data.archives import members
from isoconv.data.files import SUFFIXES, palette_indices, probe
from isoconv.data.medical import is_series, patient_of
from isoconv.data.medmnist import MEDMNIST, read

pytest.importorskip("PIL", reason="reading pictures needs the extra 'study'")
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def test_a_file_is_opened_and_a_missing_one_missed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"text"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")


def test_other_kinds_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, kind in (
            ("pipe", "a named pipe"),
            ("socket", "a socket"),
            (os.devnull, "a device"),
            (".", "a folder"),
        ):
            with pytest.raises(NotRegularError, match=f"{name} is {kind}, a regular file is expected; leave it out"):
                open_regular(name)


def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a", os.stat
    path.write_bytes(b"text")

    def stat_then_swap(target: object, **options: object) -> os.stat_result:
        found = real(target, **options)  # type: ignore[call-overload]
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "stat", stat_then_swap)
    with pytest.raises(NotRegularError, match="is a named pipe"):
        open_regular(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_no_reader_waits_for_a_pipe(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    looks: list[Callable[[], object]] = [
        lambda: read_images(pipe, channels=1, size=16, dims=2),
        lambda: read_images(pipe, channels=1, size=16, dims=3),
        lambda: probe(pipe),
        lambda: members(pipe, ["images"]),
        lambda: own.find(pipe),
    ]
    for look in looks:
        with pytest.raises(ValueError, match="is a named pipe|is none of|is not a data set"):
            look()
    assert patient_of(pipe) is None
    assert not is_series([pipe, pipe])
    if suffix not in (".png", ".tif"):
        return
    with pytest.raises(ValueError, match="is a named pipe"):
        palette_indices(pipe)


def test_data_sets_with_pipes_in_them_are_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for i in range(3):
            os.mkfifo(tmp_path / name / f"{i}.png")
    with pytest.raises((ValueError, FileNotFoundError), match="named pipe|holds none of"):
        own.find(tmp_path)
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(ValueError, match=r"m\.csv is a named pipe"):
        listing.items(tmp_path / "m.csv")
    os.mkfifo(tmp_path / "breastmnist.npz")
    with pytest.raises(ValueError, match="is a named pipe"):
        read(tmp_path / "breastmnist.npz", MEDMNIST["breastmnist"], 28)


def test_the_command_line_ends_at_a_pipe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "1.png")
    command = [sys.executable, "-m", "isoconv", "data", "check", str(tmp_path), "--size", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "1.png is a named pipe" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
