"""Downloads against a server on this machine: verified, resumed, and never half a file."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from isoconv.data import MEDMNIST, dataset, medmnist
from isoconv.data.download import fetch

pytest.importorskip("pooch", reason="downloads need the extra 'study'")

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; cuts the first ``server.cuts`` answers after ``server.cut_at`` bytes."""

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range") if server.ranges else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        server.log.append(self.headers.get("Range"))
        if server.errors:
            server.errors -= 1
            return self.send_error(503)
        if wanted and start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut_at]
        self.wfile.write(body)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cuts, server.cut_at, server.errors, server.ranges, server.log = CONTENT, 0, 0, 0, True, []
    server.url = f"http://127.0.0.1:{server.server_port}/file.npz"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_a_download_is_verified_and_made_once(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.npz"
    assert fetch(server.url, path, MD5) == path
    assert path.read_bytes() == CONTENT
    assert not path.with_name("file.npz.part").exists()
    fetch(server.url, path, MD5)
    assert len(server.log) == 1


def test_a_cut_download_is_continued(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at = 2, 70_000
    path = fetch(server.url, tmp_path / "file.npz", MD5)
    assert path.read_bytes() == CONTENT
    first, second = (int(header.removeprefix("bytes=").removesuffix("-")) for header in server.log[1:])
    assert 70_000 - 8192 <= first <= 70_000
    assert first + 70_000 - 8192 <= second <= first + 70_000


def test_a_later_call_continues(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    server.cuts, server.cut_at = 99, 10_000
    with pytest.raises(ConnectionError, match="call again to resume"):
        fetch(server.url, path, MD5)
    assert not path.exists()
    part = path.with_name("file.npz.part").read_bytes()
    assert part
    assert CONTENT.startswith(part)
    server.cuts = 0
    assert fetch(server.url, path, MD5).read_bytes() == CONTENT
    assert server.log[-1] == f"bytes={len(part)}-"


def test_a_server_without_ranges_starts_over(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at, server.ranges = 1, 70_000, False
    assert fetch(server.url, tmp_path / "file.npz", MD5).read_bytes() == CONTENT


def test_a_complete_part_needs_no_more_bytes(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "file.npz", MD5).read_bytes() == CONTENT


def test_a_stale_part_is_replaced(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(b"something else")
    assert fetch(server.url, tmp_path / "file.npz", MD5).read_bytes() == CONTENT
    assert server.log == ["bytes=14-", None]


def test_a_busy_server_is_asked_again(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.errors = 2
    assert fetch(server.url, tmp_path / "file.npz", MD5).read_bytes() == CONTENT


def test_wrong_content_is_refused(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.content = b"not what was published"
    got = hashlib.md5(server.content).hexdigest()
    with pytest.raises(ValueError, match=rf"{MD5}.*{got}.* by hand") as error:
        fetch(server.url, tmp_path / "file.npz", MD5)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "file.npz").exists()
    assert not (tmp_path / "file.npz.part").exists()


def test_without_a_server_the_message_tells_what_to_do(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/file.npz"  # the discard port: nobody answers
    with pytest.raises(ConnectionError) as error:
        fetch(url, tmp_path / "file.npz", MD5)
    assert f"put {url} (MD5 {MD5}) into {tmp_path} by hand" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="cannot make the folder .*taken.* ISOCONV_DATA or --data-root"):
        fetch("http://127.0.0.1:9/file.npz", tmp_path / "taken" / "file.npz", MD5)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write to the folder"):
        fetch("http://127.0.0.1:9/file.npz", tmp_path / "file.npz", MD5)


def test_several_callers_share_one_download(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path / "file.npz", MD5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert len(server.log) == 1


def test_load_downloads_into_the_given_folder(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ISOCONV_DATA", raising=False)
    monkeypatch.setattr(dataset, "_MEDMNIST_RECORD", server.url.removesuffix("/file.npz"))
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (4, 28, 28), np.uint8) for s in ("train", "val", "test")}
    np.savez(buffer, **arrays, **{key.replace("images", "labels"): np.eye(4, 1, dtype=np.uint8) for key in arrays})
    server.content = buffer.getvalue()
    task = replace(MEDMNIST["breastmnist"], md5={28: hashlib.md5(server.content).hexdigest()})
    got = medmnist.load(task, root=tmp_path / "data")
    assert got.source == str(tmp_path / "data" / "breastmnist.npz")
    assert got.train.labels.tolist() == [1, 0, 0, 0]
    assert not (tmp_path / "home").exists()


def test_a_lock_stays_neither_after_a_failure_nor_after_success(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    server.errors = 10
    with pytest.raises(ConnectionError):
        fetch(server.url, path, MD5)
    server.errors, server.content = 0, b"another file"
    with pytest.raises(ValueError, match="put .* by hand"):
        fetch(server.url, path, MD5)
    assert not list(tmp_path.glob("*.lock"))
    server.content = CONTENT
    fetch(server.url, path, MD5)
    assert [file.name for file in tmp_path.iterdir()] == ["file.npz"]


def test_a_full_disk(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isoconv.data.download._download", full)
    with pytest.raises(
        OSError, match=r"cannot write .*file\.npz\.part \(No space left on device\); free disk space, or name"
    ):
        fetch(server.url, tmp_path / "file.npz", MD5)
    assert not list(tmp_path.iterdir())
