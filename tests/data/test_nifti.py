"""NIfTI: orientation and spacing against nibabel's own affines, and what is refused with what words."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoconv.data import read_images
from isoconv.data.decoded import LIMITS, Decoded, Limits
from isoconv.data.nifti import nifti

nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")

VOLUME = np.random.default_rng(0).integers(0, 2000, (6, 8, 10), np.int16)


def read(path: Path) -> Decoded:
    return nifti(path, LIMITS)


def write(path: Path, array: np.ndarray = VOLUME, **header: Any) -> Path:
    """A file whose header says what is given, also where nibabel would not write it."""
    image = nibabel.Nifti1Image(array, np.eye(4))
    nibabel.save(image, path)
    raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    head = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        head[name] = value
    raw[:348] = head.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_turned_to_canonical_axes(tmp_path: Path, suffix: str) -> None:
    stored = VOLUME.astype(np.float32)
    affine = np.array([[-2, 0, 0, 0], [0, 0, 3, 0], [0, 4, 0, 0], [0, 0, 0, 1]], float)  # L, S, A
    path = tmp_path / f"v{suffix}"
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)
    found = read(path)
    assert found.spacing == (4, 3, 2)  # S, A, R
    assert np.array_equal(found.array[..., 0], stored[::-1].transpose(1, 2, 0))
    assert read_images(path, channels=1, size=12, dims=3)[1].shape == (1, 1, 12, 12, 12)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR", "SAL", "IPL"])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_geometry_is_that_of_the_affine_however_it_is_stored(tmp_path: Path, axes: str, turn: float) -> None:
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([1, 1.5, 2.5])
    image = nibabel.Nifti1Image(VOLUME, affine)
    stored = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(axes))
        )
    )
    path = tmp_path / "a.nii"
    nibabel.save(stored, path)
    raw = bytearray(path.read_bytes())
    head = nibabel.Nifti1Header(bytes(raw[:348]))
    head["pixdim"][1:4] = 1  # and disagrees with the affine
    head["qform_code"] = 0
    raw[:348] = head.binaryblock
    path.write_bytes(bytes(raw))
    found = read(path)
    assert found.spacing == pytest.approx((2.5, 1.5, 1), abs=1e-5)
    assert np.array_equal(found.array[..., 0], VOLUME.T)


@pytest.mark.parametrize(("unit", "millimetres"), [("mm", 1), ("micron", 0.001), ("meter", 1000)])
def test_the_unit_of_the_spacing_is_obeyed(tmp_path: Path, unit: str, millimetres: float) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.diag([1.0, 2, 3, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").spacing == pytest.approx((3 * millimetres, 2 * millimetres, millimetres))


def test_numbers_are_scaled_and_colours_are_colours(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.nii", scl_slope=0.5, scl_inter=-3))
    assert np.allclose(found.array[..., 0], 0.5 * VOLUME.T - 3)
    rgb = np.random.default_rng(1).integers(0, 256, (*VOLUME.shape, 3), np.uint8)
    records = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    assert np.array_equal(read(write(tmp_path / "b.nii", records)).array, rgb.transpose(2, 1, 0, 3))


def test_three_voxels_across_are_no_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", VOLUME[:3])
    assert read_images(path, channels=1, size=8, dims=3)[1].shape == (1, 1, 8, 8, 8)


def test_one_plane_is_an_image_and_a_volume_none(tmp_path: Path) -> None:
    plane = write(tmp_path / "a.nii", VOLUME[..., :1])
    assert np.array_equal(read(plane).array[..., 0], VOLUME[..., 0].T)
    assert read_images(plane, channels=1, size=6, dims=2)[0] == [str(plane)]
    with pytest.raises(ValueError, match=r"b\.nii\.gz is a volume of 10 x 8 x 6 voxels; the network expects an image"):
        read_images(write(tmp_path / "b.nii.gz"), channels=1, size=6, dims=2)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, "its voxels measure 1 x 0 x 1"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, "its voxels measure 1 x 0 x 1"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 1, -2, 1, 1, 1, 1]}, "its voxels measure 1 x 1 x -2"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}, "its voxels measure nan x 1"),
        ({"srow_y": [0, 0, 0, 0]}, "its voxels measure 1 x 0 x 1 mm"),
        ({"srow_y": [0, np.inf, 0, 0]}, "its voxels measure 1 x inf x 1 mm"),
        ({"srow_x": [1, 0.8, 0, 0]}, "its affine shears the first two axes"),
        ({"dim": [4, 3, 8, 10, 2, 1, 1, 1]}, "it holds 3 x 8 x 10 x 2, one volume has three axes"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, r"27,000,000,000,000 pixels would take .* GB"),
        ({"datatype": 999}, "its type of numbers, 999, is unknown"),
        ({"intent_code": 3001}, "CIFTI-2"),
        ({"magic": b"ni1"}, r"in another file \(.img\)"),
        ({"vox_offset": 1e12}, "its voxels begin at byte 1e.12"),
        ({"xyzt_units": 7}, "the unit of its spacing is unknown"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_no_volume_is_refused(tmp_path: Path, suffix: str, header: dict[str, Any], said: str) -> None:
    path = write(tmp_path / f"bad{suffix}", **header)
    with pytest.raises(ValueError, match=rf"cannot read .*bad{suffix} .*{said}") as caught:
        read_images(path, channels=1, size=12, dims=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_cut_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path / f"cut{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"cannot read .*cut{suffix}"):
        read_images(path, channels=1, size=12, dims=3)


def test_a_cifti_file_is_named_as_such(tmp_path: Path) -> None:
    axes = nibabel.cifti2.ScalarAxis(["a"]), nibabel.cifti2.BrainModelAxis.from_mask(np.ones(5), name="cortex_left")
    nibabel.save(nibabel.cifti2.Cifti2Image(np.ones((1, 5)), axes), tmp_path / "a.dscalar.nii")
    with pytest.raises(ValueError, match="it is a CIFTI-2 file, of points on a surface; a volume is expected"):
        read_images(tmp_path / "a.dscalar.nii", channels=1, size=12, dims=3)


def test_the_limit_counts_voxels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="it has 480 pixels, the limit is 479"):
        nifti(path, Limits(pixels=479))
    assert nifti(path, Limits(pixels=480)).array.size == 480
