"""The table of what is read, docs/reference/readers.md: a file for each of its lines on NumPy, DICOM and NIfTI."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoconv.data.files import read_arrays

pil = pytest.importorskip("PIL.Image", reason="writing pictures needs the extra 'study'")
pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'medical'")
nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "readers.md"
LINE = re.compile(r"^\| ([^|]+?) \| ([^|]+?) \| (read|converted|refused) \| ([^|]*?) *\|$", re.MULTILINE)
MEDICAL = ("npy", "npz", "DICOM", "DICOM series", "NIfTI")
ROWS = [row for row in LINE.findall(PAGE.read_text()) if row[0] in MEDICAL]
Write = Callable[..., Path]
Case = Callable[[Path, Write], tuple[Path, Any]]
CASES: dict[tuple[str, str], Case] = {}

RNG = np.random.default_rng(0)
GREY = (np.add.outer(9 * np.arange(16), 5 * np.arange(24)) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
COLOUR = pil.fromarray(RGB)
DEEP = GREY.astype(np.uint16) * 257 + 3
PAGES = RNG.integers(0, 256, (4, 16, 24), np.uint8)


def case(file: str, states: str) -> Callable[[Case], Case]:
    def add(made: Case) -> Case:
        assert (file, states) not in CASES
        CASES[file, states] = made
        return made

    return add


def numpy(states: str, array: np.ndarray, expected: Any) -> None:
    @case("npy", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        np.save(folder / "a.npy", array, allow_pickle=True)
        return folder / "a.npy", expected


numpy("bool", GREY > 99, 255 * (GREY > 99))
numpy("whole numbers", DEEP, DEEP)
numpy("floats", GREY / 9, GREY / 9)
numpy("complex numbers", GREY * 1j, None)
numpy("text", GREY.astype(str), None)
numpy("records", GREY.view([("value", "u1")]), None)
numpy("pickled objects", GREY.astype(object), None)
numpy("(N, 3, H, W)", np.moveaxis(np.stack([RGB] * 2), -1, 1), None)


@case("npz", "stored, deflated, BZIP2, LZMA")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    memory = io.BytesIO()
    np.save(memory, PAGES)
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        for i, method in enumerate(methods):
            file.writestr(f"{i}_images.npy", memory.getvalue(), method)
    assert len(read_arrays(folder / "a.npz")) == 4
    return folder / "a.npz", PAGES


@case("npz", "encrypted")
def _(folder: Path, write: Write) -> tuple[Path, Any]:
    np.savez(folder / "a.npz", images=GREY)
    raw = bytearray((folder / "a.npz").read_bytes())
    raw[raw.find(b"PK\x03\x04") + 6] |= 1
    raw[raw.find(b"PK\x01\x02") + 8] |= 1
    (folder / "a.npz").write_bytes(raw)
    return folder / "a.npz", None


def dicom(states: str, pixels: np.ndarray, expected: Any, **tags: Any) -> None:
    case("DICOM", states)(lambda folder, write: (write(folder / "a.dcm", pixels, **tags), expected))


def series(states: str, expected: Any, change: Callable[[int], dict[str, Any]]) -> None:
    @case("DICOM series", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        for i, page in enumerate(PAGES):
            write(folder / "s" / f"{i}.dcm", page, **{"ImagePositionPatient": [0, 0, i], **change(i)})
        return folder / "s", expected


def encoded(states: str, uid: str, form: str | None, image: Any, **options: Any) -> None:
    """A DICOM file whose stream Pillow wrote, or one that no decoder is there for."""

    @case("DICOM", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        syntax, memory = getattr(pydicom.uid, uid), io.BytesIO(b"none")
        if form:
            image.save(memory, form, **options)
        path = write(folder / "a.dcm", np.asarray(image), syntax=syntax)
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([memory.getvalue()])
        if form == "JPEG" and image.mode == "RGB":
            data.PhotometricInterpretation = "YBR_FULL_422"
        data.save_as(path)
        if not form:
            return path, None
        with pil.open(memory) as written:
            return path, np.asarray(written)


def functional(place: Callable[[int], Any]) -> list[Any]:
    groups = []
    for i in range(len(PAGES)):
        position, measures, plane, group = (pydicom.Dataset() for _ in range(4))
        position.ImagePositionPatient, measures.PixelSpacing = [0, 0, place(i)], [0.5, 0.5]
        plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        group.PlanePositionSequence, group.PixelMeasuresSequence = [position], [measures]
        group.PlaneOrientationSequence = [plane]
        groups.append(group)
    return groups


def table(values: np.ndarray, first: int = 0) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, 16], values.astype(np.uint16).tobytes()
    item.ModalityLUTType = "US"
    return item


BITS = (GREY > 99).astype(np.uint8)
PALETTE = {
    f"{name}PaletteColorLookupTable{part}": value
    for name, colour in zip(("Red", "Green", "Blue"), np.moveaxis(RGB.reshape(-1, 3)[:256], -1, 0), strict=True)
    for part, value in (("Descriptor", [256, 0, 16]), ("Data", (colour.astype(np.uint16) * 257).tobytes()))
}
YBR = np.asarray(COLOUR.convert("YCbCr"))
PAIRED = np.repeat(RGB[:, ::2], 2, 1)  # chroma is shared by two pixels
SHARED = np.asarray(pil.fromarray(PAIRED).convert("YCbCr"))
HALVED = np.concatenate([SHARED[:, ::2, :1], SHARED[:, 1::2, :1], SHARED[:, ::2, 1:]], -1)  # Y Y Cb Cr
PACKED = np.packbits(BITS, bitorder="little").tobytes()
dicom("MONOCHROME2, 1 bit", BITS, 255 * BITS, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=PACKED)
dicom("MONOCHROME2, 4 bits stored", GREY >> 4, (GREY >> 4) * 17, BitsStored=4, HighBit=3)
dicom("MONOCHROME2, 8 bits", GREY, GREY)
dicom("MONOCHROME2, 12 bits stored", DEEP >> 4, DEEP >> 4, BitsStored=12, HighBit=11)
dicom("MONOCHROME2, 16 bits", DEEP, DEEP)
dicom("MONOCHROME2, signed", GREY.astype(np.int16) - 99, GREY.astype(np.int16) - 99)
FLOATS = (GREY / 9).astype(np.float32)
dicom("FloatPixelData", FLOATS, FLOATS, PixelData=None, FloatPixelData=FLOATS.tobytes())
dicom("MONOCHROME1", GREY, 255 - GREY, PhotometricInterpretation="MONOCHROME1")
dicom("PALETTE COLOR", GREY, RGB.reshape(-1, 3)[GREY], PhotometricInterpretation="PALETTE COLOR", **PALETTE)
dicom("RGB", RGB, RGB)
dicom("YBR_FULL", YBR, RGB, PhotometricInterpretation="YBR_FULL")
dicom("YBR_FULL_422", PAIRED, PAIRED, PhotometricInterpretation="YBR_FULL_422", PixelData=HALVED.tobytes())
for kind in ("HSV", "ARGB", "CMYK"):
    dicom(kind, RGB, None, PhotometricInterpretation=kind)
dicom("RescaleSlope and RescaleIntercept", GREY, GREY * 0.5 - 7, RescaleSlope=0.5, RescaleIntercept=-7)
dicom("ModalityLUTSequence", GREY, 3 * GREY.astype(int) + 5, ModalityLUTSequence=[table(3 * np.arange(256) + 5)])
dicom("PixelPaddingValue", GREY, np.where(GREY == 0, GREY[GREY > 0].min(), GREY), PixelPaddingValue=0)
dicom("implicit little endian", DEEP, DEEP, syntax=pydicom.uid.ImplicitVRLittleEndian)
dicom("explicit little endian", DEEP, DEEP)
BIG = DEEP.astype(">u2").tobytes()
dicom("explicit big endian", DEEP, DEEP, syntax=pydicom.uid.ExplicitVRBigEndian, PixelData=BIG)
dicom("deflated", DEEP, DEEP, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
dicom("RLE", DEEP, DEEP, encode=pydicom.uid.RLELossless)
encoded("JPEG baseline", "JPEGBaseline8Bit", "JPEG", COLOUR)
encoded("JPEG 2000", "JPEG2000Lossless", "JPEG2000", pil.fromarray(GREY), no_jp2=True)
encoded("JPEG-LS", "JPEGLSLossless", None, pil.fromarray(GREY))
encoded("JPEG lossless", "JPEGLosslessSV1", None, pil.fromarray(GREY))
encoded("MPEG", "MPEG4HP41", None, pil.fromarray(GREY))
dicom("frames with positions", PAGES, PAGES[::-1], PerFrameFunctionalGroupsSequence=functional(lambda i: -2 * i))
dicom("frames without positions", PAGES, PAGES)
dicom("frames in one place", PAGES, PAGES, PerFrameFunctionalGroupsSequence=functional(lambda i: 0))
dicom("frames in time", PAGES, PAGES, FrameTime=40)
MOVED = np.pad(PAGES, ((0, 0), (0, 3), (0, 0)), constant_values=PAGES.min())
series("even slices", PAGES, lambda i: {})
TILTED = np.stack([np.roll(page, i, 0) for i, page in enumerate(MOVED)])
series("a tilted gantry", TILTED, lambda i: {"ImagePositionPatient": [0, 0.5 * i, i]})
series("a missing slice", None, lambda i: {"ImagePositionPatient": [0, 0, i + (i > 1)]})
series("two slices in one place", None, lambda i: {"ImagePositionPatient": [0, 0, max(i, 1)]})
series("no position", None, lambda i: {"ImagePositionPatient": None})
series("no PixelSpacing", None, lambda i: {"PixelSpacing": None})
series("PixelSpacing of zero", None, lambda i: {"PixelSpacing": [0, 0.5]})
series("slices turned against each other", None, lambda i: {"ImageOrientationPatient": [1, 0, 0, 0, 1 - i % 2, i % 2]})


def nifti(states: str, array: np.ndarray, expected: Any, affine: Any = None, **header: Any) -> None:
    @case("NIfTI", states)
    def made(folder: Path, write: Write) -> tuple[Path, Any]:
        nibabel.save(
            nibabel.Nifti1Image(array, np.eye(4) if affine is None else np.array(affine, float)), folder / "a.nii"
        )
        raw = bytearray((folder / "a.nii").read_bytes())
        head = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
        for name, value in header.items():
            head[name] = value
        (folder / "a.nii").write_bytes(head.binaryblock + raw[348:])
        return folder / "a.nii", expected


BLOCK = RNG.integers(0, 999, (5, 6, 7), np.int16)
COLOURS = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)
SHEARED = np.stack(
    [np.roll(np.pad(p, ((0, 6), (0, 0)), constant_values=BLOCK.min()), k, 0) for k, p in enumerate(BLOCK.T)]
)
FLAT = {"sform_code": 0, "qform_code": 0}
nifti("whole numbers and floats", BLOCK, BLOCK.T)
nifti("RGB", COLOURS.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0], COLOURS.transpose(2, 1, 0, 3))
nifti("slope and intercept", BLOCK, BLOCK.T * 0.5 - 3, scl_slope=0.5, scl_inter=-3)
nifti("complex numbers", BLOCK.astype(np.complex64), None)
nifti(
    "axes in another order",
    BLOCK,
    BLOCK[::-1].transpose(1, 2, 0),
    [[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
)
nifti("a sheared affine", BLOCK, SHEARED, [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
nifti("an affine that shears rows and columns", BLOCK, None, srow_x=[1, 0.5, 0, 0])
nifti("a spacing of zero", BLOCK, None, **FLAT, pixdim=[1, 1, 0, 1, 1, 1, 1, 1])
nifti("a spacing that is not finite", BLOCK, None, **FLAT, pixdim=[1, 1, np.inf, 1, 1, 1, 1, 1])
nifti("one plane", BLOCK[..., :1], BLOCK[..., 0].T)
nifti("moments in time", np.stack([BLOCK] * 2, -1), None)
nifti("CIFTI-2", BLOCK, None, intent_code=3001)


def test_every_line_is_tested_and_every_test_has_a_line() -> None:
    listed = [(file, states) for file, states, _, _ in ROWS]
    assert len(set(listed)) == len(listed) > 50
    assert set(listed) == set(CASES)


@pytest.mark.parametrize(("file", "states", "outcome", "as_what"), ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_the_line_tells_what_happens(
    tmp_path: Path,
    write_dicom: Write,
    check_line: Callable[..., None],
    file: str,
    states: str,
    outcome: str,
    as_what: str,
) -> None:
    path, expected = CASES[file, states](tmp_path, write_dicom)
    check_line(path, outcome, as_what, expected)
