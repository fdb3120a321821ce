"""npy and npz: what a header promises is checked against what is there."""

import io
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoconv.data import load, read_images
from isoconv.data.archives import members
from isoconv.data.decoded import Limits
from isoconv.data.files import read_arrays
from isoconv.data.medmnist import MEDMNIST, read

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 20, 20), np.uint8)
KEYS = [f"{split}_{part}" for split in ("train", "val", "test") for part in ("images", "labels")]


def npy(array: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


def header(text: str, content: bytes = b"") -> bytes:
    """An npy file of version 1.0 with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


HUGE = header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }\n", bytes(99))
BAD = {
    "text": b"1,2,3",
    "huge": HUGE,
    "negative": header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 3), }\n", bytes(99)),
    "unfinished": header("{'descr': '|u1', 'fortran_order'"),
    "code": header("__import__('os').system('true')"),
    "pickled": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(99)),
    "empty": b"",
    "version": b"\x93NUMPY\x09\x00" + bytes(99),
    "cut": npy(IMAGES)[:-1],
}


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED, **raw: bytes) -> Path:
    labels = npy(np.arange(6) % 2)
    with zipfile.ZipFile(path, "w", method) as file:
        for key in KEYS:
            file.writestr(f"{key}.npy", raw.get(key, labels if key.endswith("labels") else npy(IMAGES)))
    return path


def encrypted(path: Path) -> None:
    """Sets the flag of each member."""
    raw = bytearray(archive(path).read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(mark)
        while at >= 0:
            raw[at + place] |= 1
            at = raw.find(mark, at + 1)
    path.write_bytes(raw)


def broken_lzma(path: Path) -> None:
    raw = bytearray(archive(path, zipfile.ZIP_LZMA).read_bytes())
    start = raw.find(b"train_images.npy") + 16
    raw[start + 9 : start + 60] = bytes(51)
    path.write_bytes(raw)


def unknown_method(path: Path) -> None:
    raw = bytearray(archive(path).read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        raw[raw.find(mark) + place] = 97
    path.write_bytes(raw)


DAMAGES: list[Callable[[Path], object]] = [
    encrypted,
    broken_lzma,
    unknown_method,
    lambda path: path.write_bytes(archive(path).read_bytes()[:-40]),
    lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    *[lambda path, raw=raw: archive(path, train_images=raw) for raw in BAD.values()],
    *[lambda path, raw=raw: archive(path, train_labels=raw) for raw in BAD.values()],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "breastmnist.npz"
    damage(path)
    for look in (lambda: load(str(path), size=16), lambda: read(path, MEDMNIST["breastmnist"], 28, verify=False)):
        with pytest.raises(ValueError, match=r"breastmnist\.npz") as caught:
            look()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", BAD.values(), ids=list(BAD))
def test_a_damaged_array_is_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(ValueError, match=r"cannot read .*a\.npy \(.*\); ") as caught:
        read_images(tmp_path / "a.npy", channels=1, size=16, dims=2)
    assert "\n" not in str(caught.value)


def test_reasons_are_those_of_this_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    encrypted(path)
    with pytest.raises(ValueError, match=r"a\.npz:train_images \(it is encrypted\); save it without a password"):
        members(path, KEYS)
    archive(path, val_labels=HUGE)
    with pytest.raises(
        ValueError, match=r"a\.npz:val_labels \(its header declares uint8 .*, 1,000,000,000,000 bytes, of wh"
    ):
        members(path, KEYS)
    with pytest.raises(ValueError, match="it has no array weights, bias"):
        members(archive(path), ["weights", "bias"])


def test_every_compression_of_zip_is_read(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        found = members(archive(tmp_path / "a.npz", method), KEYS)
        assert np.array_equal(found["test_images"], IMAGES)
    assert lzma.compress(b"")  # the module is there


def test_a_small_archive_of_large_arrays_is_refused_before_it_is_read(tmp_path: Path) -> None:
    head = header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 600), }".ljust(117) + "\n")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("images.npy", "w") as member:
        member.write(head)
        for _ in range(480):
            member.write(bytes(10**6))
    assert (tmp_path / "a.npz").stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"60,000,000 pixels would take 0\.48 GB"):
        read_arrays(tmp_path / "a.npz")


def test_a_limit_of_pixels_does_not_count_colours(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 5, 6, 3)))
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6, 3)))
    for path in (tmp_path / "a.npz", tmp_path / "a.npy"):
        assert read_arrays(path, Limits(pixels=120))[0][1].array.shape == (4, 5, 6, 3)
        with pytest.raises(ValueError, match="it has 120 pixels, the limit is 119"):
            read_arrays(path, Limits(pixels=119))


def test_an_order_by_columns_is_undone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGES))
    assert np.array_equal(read_arrays(tmp_path / "a.npy")[0][1].array, IMAGES)
