"""DICOM and NIfTI as arrays, with the size of their voxels. Needs the extra ``medical``.

Axes are ``(D, H, W)``. A DICOM series keeps the plane that it was taken in, D along the normal of its slices; a NIfTI
volume is turned to the closest RAS axes, D towards the head. Both are right-handed, so no volume is mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoconv._extras import require

__all__ = ["Spacing", "dicom", "dicom_series", "is_dicom", "is_series", "nifti", "patient_of"]

Spacing = tuple[float, ...]
_POSITION_TOLERANCE = 0.1  # share of the distance between slices; scanners write positions to some digits


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its ending .dcm, or by its first bytes where the name has no ending or, being a UID,
    ends in a number. A DICOMDIR, which lists files, is none."""
    ending = path.suffix.lower()
    if ending == ".dcm":
        return True
    if ending.strip(".0123456789") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_series(files: Sequence[Path]) -> bool:
    """Whether the DICOM files of a folder are slices: two of them are of one series. Otherwise, as X-rays are, each is
    an image or a volume of its own."""
    seen: set[str | None] = set()
    for file in files if len(files) > 1 else ():
        uid = _tag(file, "SeriesInstanceUID")
        if uid in seen:
            return True
        seen.add(uid)
    return False


def patient_of(path: Path) -> str | None:
    """The PatientID of a DICOM file or series; None if there is none, or the file cannot be read."""
    file = next(iter(_slices(path)) if path.is_dir() else filter(is_dicom, [path]), None)
    return None if file is None else _tag(file, "PatientID")


def _slices(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_dicom(path)]


def _tag(path: Path, name: str) -> str | None:
    pydicom = require("pydicom", "medical")
    try:
        return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[name]).get(name, "")) or None
    except (pydicom.errors.InvalidDicomError, OSError):
        return None


def dicom(path: Path) -> tuple[np.ndarray, Spacing | None]:
    """An image ``(H, W)`` or ``(H, W, 3)``, or of a multi-frame file a volume ``(D, H, W)``, in its rescaled units.

    The spacing, in mm, is that of a volume whose frames say how far apart they are, else None.

    Raises:
        ValueError: no DICOM file, no pixels, a compression that nothing installed decodes, a colour palette, or frames
            that differ in their scale or are not in the order of their positions.
    """
    data = _dataset(path)
    if int(data.get("NumberOfFrames", 1) or 1) == 1:
        return _pixels(data), None
    _check_frames(data)
    return _pixels(data), _multiframe_spacing(data)


def dicom_series(folder: Path) -> tuple[np.ndarray, Spacing]:
    """The volume ``(D, H, W)`` whose slices are the DICOM files of a folder, sorted by position, and its spacing in mm.

    Raises:
        ValueError: fewer than two slices, several series or sizes, a multi-frame file, no position or spacing, two
            slices in one place, or slices that are not evenly spaced.
    """
    files = _slices(folder)
    slices = [_dataset(path) for path in files]
    if len(slices) < 2:
        raise ValueError(f"a series needs at least 2 slices, this folder holds {len(slices)}; give the file itself")
    if any(int(s.get("NumberOfFrames", 1) or 1) > 1 for s in slices):
        raise ValueError("it holds multi-frame files, each is a volume of its own; give the files themselves")
    for tag, what in (("SeriesInstanceUID", "series"), ("Rows", "heights"), ("Columns", "widths")):
        if (n := len({str(s.get(tag)) for s in slices})) > 1:
            raise ValueError(f"its slices are of {n} different {what}; put each series into a folder of its own")
    wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    for path, s in zip(files, slices, strict=True):
        if missing := [tag for tag in wanted if s.get(tag) is None]:
            raise ValueError(f"{path.name} has no {', '.join(missing)}; slices cannot be put in order without it")
    orientations = np.array([s.ImageOrientationPatient for s in slices], float)
    if np.abs(orientations - orientations[0]).max() > 1e-2:
        raise ValueError("its slices are turned against each other (a localizer among them?); leave those out")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    along = np.array([s.ImagePositionPatient for s in slices], float) @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    step = float(np.median(steps))
    if steps.min() <= 1e-3:
        first, second = (files[order[int(steps.argmin()) + k]].name for k in (0, 1))
        raise ValueError(f"{first} and {second} lie in the same place; keep one of them")
    if np.abs(steps - step).max() > _POSITION_TOLERANCE * step:
        gaps = f"{steps.min():g} to {steps.max():g} mm"
        raise ValueError(f"its slices are {gaps} apart; a slice is missing, or two series are mixed")
    arrays = [_pixels(slices[i]) for i in order]
    if any(a.ndim != 2 for a in arrays):
        raise ValueError("its slices are in colour; a volume is grey")
    return np.stack(arrays), (step, *map(float, slices[0].PixelSpacing))


def nifti(path: Path) -> tuple[np.ndarray, Spacing]:
    """A volume ``(D, H, W)``, its axes S, A, R, and its spacing, in the file's unit (mm).

    Raises:
        ValueError: no NIfTI file, one that is cut short, or one that is not one volume.
    """
    nibabel = require("nibabel", "medical")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        array = np.asarray(image.dataobj)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"no NIfTI file: {error}") from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise ValueError(f"its shape is {image.shape}, one volume has three axes; store each volume as its own file")
    spacing = tuple(float(v) for v in image.header.get_zooms()[:3])
    if not all(0 < v < float("inf") for v in spacing):
        raise ValueError(f"its voxels measure {spacing}; set pixdim in its header")
    return array.T, spacing[::-1]


def _dataset(path: Path) -> Any:
    pydicom = require("pydicom", "medical")
    try:
        data = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        raise ValueError(f"{path.name} is no DICOM file") from None
    if "PixelData" not in data:
        raise ValueError(f"{path.name} holds no pixels")
    return data


def _pixels(data: Any) -> np.ndarray:
    """In the units of the rescale slope and intercept; MONOCHROME1, in which 0 is white, is negated."""
    pixels = require("pydicom.pixels", "medical")
    name = Path(data.filename).name
    if data.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise ValueError(f"{name} has a colour palette; convert it to RGB")
    try:
        array = np.asarray(data.pixel_array)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        syntax = data.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_compressed:
            remedy = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it"
            raise ValueError(f"{name} is compressed as {syntax.name} and no decoder is installed: {remedy}") from None
        raise ValueError(f"{name}: {error}") from None
    if data.get("SamplesPerPixel", 1) > 1:
        return array
    array = pixels.apply_modality_lut(array, data)
    return -array.astype(np.float64) if data.get("PhotometricInterpretation") == "MONOCHROME1" else array


def _check_frames(data: Any) -> None:
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    remedy = "convert it to NIfTI, for instance with dcm2niix"
    scales = {
        (each.get("RescaleSlope"), each.get("RescaleIntercept"))
        for frame in frames
        for each in frame.get("PixelValueTransformationSequence") or []
    }
    if scales - {(1, 0)}:
        raise ValueError(f"its frames have scales of their own; {remedy}")
    places = [
        np.array(each.ImagePositionPatient, float)
        for frame in frames
        for each in frame.get("PlanePositionSequence") or []
    ]
    if len(places) > 2:
        steps = np.diff(places, axis=0)
        if np.abs(steps - steps[0]).max() > _POSITION_TOLERANCE * np.linalg.norm(steps[0]):
            raise ValueError(f"its frames are not evenly spaced in their order; {remedy}")


def _multiframe_spacing(data: Any) -> Spacing | None:
    """From the shared functional groups of an enhanced file, else from the file's own attributes."""
    shared = data.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    source = measures[0] if measures else data
    step = source.get("SpacingBetweenSlices") or source.get("SliceThickness")
    plane: Sequence[float] | None = source.get("PixelSpacing")
    return (float(step), *map(float, plane)) if step and plane else None


READERS: dict[str, Callable[[Path], tuple[np.ndarray, Spacing | None]]] = {
    ".dcm": dicom,
    ".nii": nifti,
    ".nii.gz": nifti,
}
