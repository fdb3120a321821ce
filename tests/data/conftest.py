"""Files that other libraries write, for the tests of the readers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoconv.data.files import as_uint8, read_arrays, read_images


@pytest.fixture
def write_dicom() -> Callable[..., Path]:
    """Writes a minimal CT file of pixels ``(H, W)``, ``(N, H, W)`` or ``(H, W, 3)``. A tag set to None is left out;
    ``encode`` is the UID of a transfer syntax into which pydicom compresses."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'medical'")

    def write(path: Path, pixels: np.ndarray, encode: str | None = None, **tags: Any) -> Path:
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.PatientID = "1.2.3", "p1"
        colour = pixels.ndim > 2 and pixels.shape[-1] == 3
        data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
        data.PixelSpacing, data.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
        if colour:
            data.PlanarConfiguration = 0
        if pixels.ndim - colour == 3:
            data.NumberOfFrames = len(pixels)
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
        for name, value in tags.items():
            if value is not None:
                setattr(data, name, value)
            elif name in data:
                delattr(data, name)
        if encode:
            data.compress(encode, generate_instance_uid=False)
        elif meta.TransferSyntaxUID.is_compressed and not meta.TransferSyntaxUID.is_deflated:
            data.PixelData = pydicom.encaps.encapsulate([pixels.tobytes()])
            data["PixelData"].VR = "OB"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_series(write_dicom: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a volume ``(D, H, W)`` as slices 1 mm apart, their names in another order than the positions; ``first``
    are tags of the first slice, ``tags(i)`` those of slice i."""

    def write(
        folder: Path, volume: np.ndarray, tags: Callable[[int], dict[str, Any]] = lambda i: {}, **first: Any
    ) -> Path:
        for i, pixels in enumerate(volume):
            own = {"ImagePositionPatient": [0, 0, i], **tags(i), **(first if i == 0 else {})}
            write_dicom(folder / f"{(5 * i + 3) % len(volume)}.dcm", pixels, **own)
        return folder

    return write


@pytest.fixture
def check_line() -> Callable[..., None]:
    """Checks a file against its line in docs/reference/readers.md: the outcome, what is written beside it, and the
    array (of frames their number) that is expected, None where it is to be refused."""

    def check(path: Path, outcome: str, as_what: str, expected: Any) -> None:
        if outcome == "refused":
            assert expected is None
            for dims in (3,) if path.is_dir() else (2, 3):
                with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
                    read_images(path, channels=3, size=16, dims=dims)
                assert "\n" not in str(caught.value)
            return
        found = read_arrays(path)[0][1]
        volume = as_what.startswith(("a volume", "without it: the volume", "slices moved")) or ".nii" in path.name
        images = "refused as a volume" in as_what
        assert found.leading == "images" if images else found.leading != "images"
        assert (found.leading == "depth") == (volume and found.array.ndim == 4)
        if isinstance(expected, int):
            assert len(found.array) == expected
            return
        array = as_uint8("it", found.array) if found.array.dtype == bool else found.array
        wanted = np.asarray(expected)
        wanted = wanted[..., None] if wanted.ndim < array.ndim else wanted
        assert array.shape[:-1] == wanted.shape[:-1]
        if outcome == "read":
            assert np.array_equal(np.broadcast_to(array, wanted.shape), wanted)
        else:
            assert np.abs(array.astype(float) - wanted).max() <= (2 if array.shape[-1] == 3 else 1e-3)

    return check
