"""Files that other libraries write, for the tests of the readers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


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
