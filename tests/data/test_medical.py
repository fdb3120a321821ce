"""Which files are DICOM, which are slices of one volume, and whose they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoconv.data import listing, load, read_images
from isoconv.data.medical import is_series, patient_of

pytest.importorskip("pydicom", reason="DICOM needs the extra 'medical'")

VOLUME = np.random.default_rng(0).integers(0, 2000, (6, 8, 10), np.uint16)
Write = Callable[..., Path]


def test_hidden_files_among_the_slices_are_none(tmp_path: Path, write_series: Write) -> None:
    folder = write_series(tmp_path / "s", VOLUME)
    (folder / "._0.dcm").write_bytes(b"what macOS adds to archives")
    assert patient_of(folder) == "p1"
    assert read_images(folder, channels=1, size=10, dims=3)[0] == [str(folder)]


def test_files_are_dicom_by_their_first_bytes_where_the_name_does_not_tell(
    tmp_path: Path, write_dicom: Write, write_series: Write
) -> None:
    write_series(tmp_path / "s", VOLUME)
    for i, path in enumerate(sorted((tmp_path / "s").iterdir())):
        path.rename(path.with_name(f"1.2.840.{i}" if i % 2 else f"IM{i}"))
    (tmp_path / "s" / "README").write_text("about " * 99)
    write_dicom(tmp_path / "s" / "DICOMDIR", VOLUME[0])
    with pytest.warns(UserWarning, match="not images: s/DICOMDIR, s/README"):
        names, _ = read_images(tmp_path, channels=1, size=12, dims=3)
    assert names == [str(tmp_path / "s")]
    assert read_images(tmp_path / "s" / "IM0", channels=1, size=8, dims=2)[1].shape == (1, 1, 8, 8)
    assert patient_of(tmp_path / "s") == patient_of(tmp_path / "s" / "IM0") == "p1"


def test_files_of_different_series_are_images_of_their_own(tmp_path: Path, write_dicom: Write) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        for i in range(10):
            tags = {"SeriesInstanceUID": f"1.2.{i}", "PatientID": f"{name}{i // 2}"}
            write_dicom(folder / f"p{i // 2}" / f"{i}.dcm", VOLUME[i % 6] + np.uint16(i), **tags)
    found = listing.items(tmp_path)
    assert [item.path.name for item in found] == [f"{i}.dcm" for i in range(10)] * 2
    assert len({item.patient for item in found}) == 10
    assert load(str(tmp_path), size=8).task.counts == (12, 4, 4)


def test_files_that_cannot_be_read_are_no_series_of_one_another(tmp_path: Path, write_dicom: Write) -> None:
    broken = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    for path in broken:
        path.write_bytes(b"no DICOM")
    assert not is_series(broken)
    assert patient_of(broken[0]) is None
    slices = [write_dicom(tmp_path / f"{i}.dcm", VOLUME[0]) for i in range(2)]
    assert is_series([*broken, *slices])
