"""DICOM and NIfTI, written here: order, orientation, spacing, and what is refused with what words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoconv.data import load, own, read_images
from isoconv.data.medical import patient_of

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'medical'")
nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")

VOLUME = np.random.default_rng(0).integers(0, 2000, (6, 8, 10), np.uint16)


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """A minimal CT file; a tag set to None is left out."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.PatientID = "1.2.3", "p1"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelSpacing, data.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)
    if meta.TransferSyntaxUID.is_compressed:
        data.PixelData = pydicom.encaps.encapsulate([pixels.tobytes()])
        data["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, **first: Any) -> Path:
    """VOLUME as slices 1 mm apart, the names in another order than the positions; ``first`` tags of the first slice."""
    for i, pixels in enumerate(VOLUME):
        tags = {"ImagePositionPatient": [0, 0, i], "RescaleSlope": 2, "RescaleIntercept": -1000}
        write_dicom(folder / f"{(5 * i + 3) % 6}.dcm", pixels, **{**tags, **(first if i == 0 else {})})
    return folder


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    array, spacing = dicom_series(write_series(tmp_path / "s"))
    assert spacing == (1, 0.5, 0.5)
    assert np.array_equal(array, 2.0 * VOLUME - 1000)
    names, images = read_images(tmp_path, channels=1, size=12, dims=3)
    assert names == [str(tmp_path / "s")]
    assert images.shape == (1, 1, 12, 12, 12)


def test_hidden_files_among_the_slices_are_none(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    (folder / "._0.dcm").write_bytes(b"what macOS adds to archives")
    assert patient_of(folder) == "p1"
    assert dicom_series(folder)[0].shape == VOLUME.shape


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"SeriesInstanceUID": "1.2.4"}, "2 different series"),
        ({"ImagePositionPatient": [0, 0, -5]}, "a slice is missing"),
        ({"ImagePositionPatient": [0, 0, 1]}, "lie in the same place"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "turned against each other"),
        ({"NumberOfFrames": 2}, "multi-frame"),
    ],
)
def test_a_series_that_is_none_is_refused(tmp_path: Path, first: dict[str, Any], said: str) -> None:
    write_series(tmp_path / "s", **first)
    with pytest.raises(ValueError, match=said):
        read_images(tmp_path / "s", channels=1, size=12, dims=3)


def test_single_and_multi_frame_files(tmp_path: Path) -> None:
    one = write_dicom(tmp_path / "one.dcm", VOLUME[0])
    assert np.array_equal(dicom(one)[0], VOLUME[0])
    assert patient_of(one) == "p1"
    inverse = write_dicom(tmp_path / "inverse.dcm", VOLUME[0], PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(dicom(inverse)[0], -VOLUME[0].astype(float))
    array, spacing = dicom(write_dicom(tmp_path / "many.dcm", VOLUME, SliceThickness=2))
    assert np.array_equal(array, VOLUME)
    assert spacing == (2, 0.5, 0.5)


def test_files_are_dicom_by_their_first_bytes_where_the_name_does_not_tell(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    for i, path in enumerate(sorted((tmp_path / "s").iterdir())):
        path.rename(path.with_name(f"1.2.840.{i}" if i % 2 else f"IM{i}"))
    (tmp_path / "s" / "README").write_text("about " * 99)
    write_dicom(tmp_path / "s" / "DICOMDIR", VOLUME[0])
    with pytest.warns(UserWarning, match="not images: s/DICOMDIR, s/README"):
        names, _ = read_images(tmp_path, channels=1, size=12, dims=3)
    assert names == [str(tmp_path / "s")]
    assert read_images(tmp_path / "s" / "IM0", channels=1, size=8, dims=2)[1].shape == (1, 1, 8, 8)
    assert patient_of(tmp_path / "s") == patient_of(tmp_path / "s" / "IM0") == "p1"


def test_files_of_different_series_are_images_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        for i in range(10):
            tags = {"SeriesInstanceUID": f"1.2.{i}", "PatientID": f"{name}{i // 2}"}
            write_dicom(folder / f"p{i // 2}" / f"{i}.dcm", VOLUME[i % 6] + np.uint16(i), **tags)
    found = own.items(tmp_path)
    assert [item.path.name for item in found] == [f"{i}.dcm" for i in range(10)] * 2
    assert len({item.patient for item in found}) == 10
    assert load(str(tmp_path), size=8).task.counts == (12, 4, 4)


def test_a_folder_with_multi_frame_files_holds_volumes(tmp_path: Path) -> None:
    write_dicom(tmp_path / "one" / "1.dcm", VOLUME)
    for name in ("1", "2"):
        write_dicom(tmp_path / "two" / f"{name}.dcm", VOLUME, SeriesInstanceUID=f"1.2.{name}")
    names, images = read_images(tmp_path, channels=1, size=8, dims=3)
    assert names == [str(tmp_path / name) for name in ("one/1.dcm", "two/1.dcm", "two/2.dcm")]
    assert images.shape == (3, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: write_dicom(p, VOLUME[0], PixelData=None), "holds no pixels"),
        (lambda p: p.write_bytes(b"not one" * 99), "is no DICOM file"),
        (lambda p: write_dicom(p, VOLUME[0], syntax=pydicom.uid.JPEG2000Lossless), "no decoder|JPEG"),
        (lambda p: write_dicom(p, VOLUME[0], PixelData=VOLUME[0].tobytes()[:40]), "cannot read"),
        (lambda p: write_dicom(p, VOLUME[0], PhotometricInterpretation="PALETTE COLOR"), "colour palette"),
    ],
)
def test_a_damaged_dicom_file_is_refused_by_name(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    make(tmp_path / "bad.dcm")
    with pytest.raises(ValueError, match=said) as caught:
        read_images(tmp_path / "bad.dcm", channels=1, size=12, dims=2)
    assert "bad.dcm" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_turned_to_canonical_axes(tmp_path: Path, suffix: str) -> None:
    stored = VOLUME.astype(np.float32)
    affine = np.array([[-2, 0, 0, 0], [0, 0, 3, 0], [0, 4, 0, 0], [0, 0, 0, 1]], float)  # L, S, A
    path = tmp_path / f"v{suffix}"
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)
    array, spacing = nifti(path)
    assert spacing == (4, 3, 2)  # S, A, R
    assert np.array_equal(array, stored[::-1].transpose(1, 2, 0))
    assert read_images(path, channels=1, size=12, dims=3)[1].shape == (1, 1, 12, 12, 12)


def test_nifti_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3, 2), np.float32), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "b.nii").write_bytes(b"nothing")
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "c.nii").write_bytes(whole[:70] + b"\xff\xff" + whole[72:])  # an unknown type of numbers
    for name, said in (("a.nii", "three axes"), ("b.nii", "cannot read"), ("c.nii", "cannot read")):
        with pytest.raises(ValueError, match=said):
            read_images(tmp_path / name, channels=1, size=12, dims=3)


def test_a_ball_stays_a_ball_whatever_the_voxels(tmp_path: Path) -> None:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 48, 48)), indexing="ij")
    ball = ((z**2 + y**2 + x**2) < 0.5).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(ball.T, np.diag([1.0, 1, 2, 1])), tmp_path / "ball.nii")
    image = read_images(tmp_path / "ball.nii", channels=1, size=24, dims=3)[1][0, 0].float() / 255
    extents = [image.sum(axes).gt(0.5 * image.sum(axes).max()).sum() for axes in ((1, 2), (0, 2), (0, 1))]
    assert max(extents) - min(extents) <= 1
    flat = ball[:12]
    nibabel.save(nibabel.Nifti1Image(flat.T, np.diag([1.0, 1, 2, 1])), tmp_path / "half.nii")
    half = read_images(tmp_path / "half.nii", channels=1, size=24, dims=3)[1][0, 0]
    assert torch.count_nonzero(half[:6]) == torch.count_nonzero(half[18:]) == 0


def frames(slopes: list[float], places: list[float]) -> list[Any]:
    """Functional groups of an enhanced multi-frame file."""
    groups = []
    for slope, place in zip(slopes, places, strict=True):
        value, position, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        value.RescaleSlope, value.RescaleIntercept = slope, 0
        position.ImagePositionPatient = [0, 0, place]
        group.PixelValueTransformationSequence, group.PlanePositionSequence = [value], [position]
        groups.append(group)
    return groups


def test_frames_of_one_file_must_be_in_order_and_of_one_scale(tmp_path: Path) -> None:
    one, several, mixed = (tmp_path / f"{name}.dcm" for name in ("one", "several", "mixed"))
    write_dicom(one, VOLUME[:3], PerFrameFunctionalGroupsSequence=frames([1, 1, 1], [0, 2, 4]))
    assert np.array_equal(dicom(one)[0], VOLUME[:3])
    write_dicom(several, VOLUME[:3], PerFrameFunctionalGroupsSequence=frames([1, 2, 3], [0, 2, 4]))
    with pytest.raises(ValueError, match="scales of their own; convert it to NIfTI"):
        dicom(several)
    write_dicom(mixed, VOLUME[:3], PerFrameFunctionalGroupsSequence=frames([1, 1, 1], [0, 4, 2]))
    with pytest.raises(ValueError, match="not evenly spaced in their order"):
        dicom(mixed)


def test_slices_in_which_zero_is_white_keep_their_relation(tmp_path: Path) -> None:
    for i in range(3):
        pixels = VOLUME[0] + 100 * i
        tags = {"ImagePositionPatient": [0, 0, i], "PhotometricInterpretation": "MONOCHROME1"}
        write_dicom(tmp_path / f"{i}.dcm", pixels.astype(np.uint16), **tags)
    means = dicom_series(tmp_path)[0].mean((1, 2))
    assert np.allclose(np.diff(means), -100)
