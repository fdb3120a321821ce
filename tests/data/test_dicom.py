"""DICOM: colours, depths, scales and what is refused with what words, against twins and pydicom's own results."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from isoconv.data import decoded, read_images
from isoconv.data.decoded import LIMITS, Decoded, Limits
from isoconv.data.dicom import dicom, dicom_series
from isoconv.data.medical import slices_in

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'medical'")
pil = pytest.importorskip("PIL.Image", reason="compressing needs the extra 'study'")

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 2000, (6, 8, 10), np.uint16)
GREY = RNG.integers(0, 256, (8, 10), np.uint8)
RGB = np.kron(RNG.integers(0, 256, (4, 5, 3), np.uint8), np.ones((2, 2, 1), np.uint8))
Write = Callable[..., Path]


def read(path: Path) -> Decoded:
    return dicom(path, LIMITS)


def prepared(path: Path, channels: int = 1) -> np.ndarray:
    """As a 2D network gets it."""
    return read_images(path, channels=channels, size=8, dims=2)[1].numpy()


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path, write_series: Write) -> None:
    folder = write_series(tmp_path / "s", VOLUME, lambda i: {"RescaleSlope": 2, "RescaleIntercept": -1000})
    found = dicom_series(slices_in(folder), LIMITS)
    assert (found.spacing, found.leading) == ((1, 0.5, 0.5), "depth")
    assert np.array_equal(found.array[..., 0], 2.0 * VOLUME - 1000)
    names, images = read_images(tmp_path, channels=1, size=12, dims=3)
    assert names == [str(tmp_path / "s")]
    assert images.shape == (1, 1, 12, 12, 12)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"SeriesInstanceUID": "1.2.4"}, "2 different series"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "2 different photometric interpretations"),
        ({"ImagePositionPatient": [0, 0, -5]}, "a slice is missing"),
        ({"ImagePositionPatient": [0, 0, 1]}, "lie in the same place"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "turned against each other"),
        ({"PixelSpacing": [0.5, 0.6]}, "differ in PixelSpacing"),
        ({"NumberOfFrames": 2}, "multi-frame|states 2 frames"),
    ],
)
def test_a_series_that_is_none_is_refused(
    tmp_path: Path, write_series: Write, first: dict[str, Any], said: str
) -> None:
    write_series(tmp_path / "s", VOLUME, **first)
    with pytest.raises(ValueError, match=said) as caught:
        read_images(tmp_path / "s", channels=1, size=12, dims=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda write, p: write(p, VOLUME[0], PixelData=None), "holds no pixels"),
        (lambda write, p: p.write_bytes(b"not one" * 99), "is no DICOM file"),
        (
            lambda write, p: write(p, VOLUME[0], PixelData=VOLUME[0].tobytes()[:40]),
            "cannot read .*80 bytes|cannot read",
        ),
        (lambda write, p: write(p, VOLUME[0], PhotometricInterpretation="HSV"), "photometric interpretation is HSV"),
        (lambda write, p: write(p, VOLUME[0], PhotometricInterpretation="RGB"), "1 samples per pixel, RGB has 3"),
        (lambda write, p: write(p, VOLUME[0], Rows=None), "it has no Rows"),
        (lambda write, p: write(p, VOLUME[0], NumberOfFrames=10**9), "states 1,000,000,000 frames"),
        (lambda write, p: write(p, VOLUME[0], Rows=65535, Columns=65535), r"limits=Limits\(pixels=4294836225\)"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, write_dicom: Write, make: Callable[[Write, Path], Any], said: str
) -> None:
    make(write_dicom, tmp_path / "bad.dcm")
    with pytest.raises(ValueError, match=said) as caught:
        read_images(tmp_path / "bad.dcm", channels=1, size=12, dims=2)
    assert "bad.dcm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_stream_is_not_blamed_on_a_missing_decoder(tmp_path: Path, write_dicom: Write) -> None:
    write_dicom(tmp_path / "damaged.dcm", GREY, syntax=pydicom.uid.JPEG2000Lossless)
    with pytest.raises(ValueError, match=r"compressed as JPEG 2000 .*cannot be decoded") as caught:
        read(tmp_path / "damaged.dcm")
    assert "no decoder is installed" not in str(caught.value)
    if not pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        write_dicom(tmp_path / "ls.dcm", GREY, syntax=pydicom.uid.JPEGLSLossless)
        with pytest.raises(
            ValueError, match="compressed as JPEG-LS .* and no decoder is installed.*pip install pylibj"
        ):
            read(tmp_path / "ls.dcm")
    write_dicom(tmp_path / "film.dcm", GREY, syntax=pydicom.uid.MPEG4HP41)
    with pytest.raises(ValueError, match="compressed as MPEG-4 .*, which is not read"):
        read(tmp_path / "film.dcm")


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "DeflatedExplicitVRLittleEndian"])
def test_uncompressed_transfer_syntaxes_hold_the_same(tmp_path: Path, write_dicom: Write, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", VOLUME[0], syntax=getattr(pydicom.uid, syntax))
    assert np.array_equal(read(path).array[..., 0], VOLUME[0])


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("pixels", [GREY, VOLUME[0], RGB], ids=["grey", "16 bit", "RGB"])
def test_lossless_compression_holds_the_same(
    tmp_path: Path, write_dicom: Write, syntax: str, pixels: np.ndarray
) -> None:
    uid = getattr(pydicom.uid, syntax)
    if not pydicom.pixels.get_encoder(uid).is_available:
        encoded = io.BytesIO()
        pil.fromarray(pixels).save(encoded, "JPEG2000", irreversible=False, mct=0, no_jp2=True)
        path = write_dicom(tmp_path / "a.dcm", pixels, syntax=uid)
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([encoded.getvalue()])
        data.save_as(path)
    else:
        path = write_dicom(tmp_path / "a.dcm", pixels, encode=uid)
    assert np.array_equal(read(path).array.squeeze(), pixels)


def test_a_palette_becomes_its_colours(tmp_path: Path, write_dicom: Write) -> None:
    colours = RNG.integers(0, 256, (256, 3), np.uint8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (colours[:, channel].astype(np.uint16) * 257).tobytes()
    path = write_dicom(tmp_path / "p.dcm", GREY, **tags)
    assert np.array_equal(read(path).array, colours[GREY])


def test_luma_and_chroma_become_the_colours_that_they_are(tmp_path: Path, write_dicom: Write) -> None:
    ybr = np.asarray(pil.fromarray(RGB).convert("YCbCr"))
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(path).array.astype(int) - RGB).max() <= 2


def test_zero_as_white_is_the_twin_of_the_negative(tmp_path: Path, write_dicom: Write) -> None:
    for dtype in (np.uint8, np.uint16, np.int16):
        pixels = GREY.astype(dtype)
        top = np.iinfo(dtype).max + np.iinfo(dtype).min
        white = write_dicom(tmp_path / "w.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
        black = write_dicom(tmp_path / "b.dcm", (top - pixels.astype(int)).astype(dtype))
        assert np.array_equal(prepared(white), prepared(black))


def test_a_scale_that_changes_nothing_keeps_eight_bits_as_they_are(tmp_path: Path, write_dicom: Write) -> None:
    dim = GREY // 2
    for tags in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}):
        assert np.array_equal(prepared(write_dicom(tmp_path / "a.dcm", dim, **tags))[0, 0], dim[:, 1:9])


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_depths_below_eight_bits_fill_the_range(tmp_path: Path, write_dicom: Write, bits: int) -> None:
    top = 2**bits - 1
    stored = RNG.integers(0, top + 1, (8, 10), np.uint8)
    stored[:, 1:3] = 0, 1
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1)
    expected = np.round(stored.astype(float) * 255 / top)
    assert np.array_equal(prepared(path)[0, 0], expected[:, 1:9])
    path = write_dicom(
        tmp_path / "w.dcm", stored, BitsStored=bits, HighBit=bits - 1, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(prepared(path)[0, 0], 255 - expected[:, 1:9])


def test_a_single_bit_is_black_or_white(tmp_path: Path, write_dicom: Write) -> None:
    bits = RNG.integers(0, 2, (8, 16), np.uint8)
    packed = np.packbits(bits, bitorder="little").tobytes()
    path = write_dicom(tmp_path / "a.dcm", bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed)
    assert np.array_equal(read(path).array[..., 0], 255 * bits)


def test_float_pixels_are_read(tmp_path: Path, write_dicom: Write) -> None:
    values = RNG.normal(size=(8, 10))
    for dtype, tag in ((np.float32, "FloatPixelData"), (np.float64, "DoubleFloatPixelData")):
        path = write_dicom(
            tmp_path / "f.dcm", values.astype(dtype), PixelData=None, **{tag: values.astype(dtype).tobytes()}
        )
        assert np.array_equal(read(path).array[..., 0], values.astype(dtype))


def test_padding_becomes_the_darkest_value(tmp_path: Path, write_dicom: Write) -> None:
    pixels = VOLUME[0].astype(np.int16)
    clean = prepared(
        write_dicom(tmp_path / "clean.dcm", np.where(VOLUME[0] % 7 == 0, pixels[VOLUME[0] % 7 != 0].min(), pixels))
    )
    padded = np.where(VOLUME[0] % 7 == 0, np.int16(-2000), pixels)
    lone = pydicom.dataelem.DataElement(0x00280120, "US", 63536)  # -2000, written as if the numbers had no sign
    for name, tags in {
        "plain": {"PixelPaddingValue": -2000},
        "range": {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1},
    }.items():
        assert np.array_equal(prepared(write_dicom(tmp_path / f"{name}.dcm", padded, **tags)), clean)
    path = write_dicom(tmp_path / "unsigned.dcm", padded)
    data = pydicom.dcmread(path)
    data.add(lone)
    data.save_as(path)
    assert np.array_equal(prepared(path), clean)
    assert not np.array_equal(prepared(write_dicom(tmp_path / "not.dcm", padded)), clean)


def test_slices_in_which_zero_is_white_keep_their_relation(tmp_path: Path, write_series: Write) -> None:
    volume = np.stack([VOLUME[0] + np.uint16(100 * i) for i in range(3)])
    for tags in ({}, {"RescaleSlope": 0.5, "RescaleIntercept": 7}):
        folder = write_series(
            tmp_path / str(len(tags)), volume, lambda i, t=tags: {"PhotometricInterpretation": "MONOCHROME1", **t}
        )
        means = dicom_series(slices_in(folder), LIMITS).array.astype(float).mean((1, 2, 3))
        assert np.allclose(np.diff(means), -100 * tags.get("RescaleSlope", 1))


def test_each_slice_has_a_scale_of_its_own(tmp_path: Path, write_series: Write) -> None:
    folder = write_series(tmp_path / "s", VOLUME, lambda i: {"RescaleSlope": 1 + i, "RescaleIntercept": 0})
    array = dicom_series(slices_in(folder), LIMITS).array[..., 0]
    assert np.array_equal(array, VOLUME * (1.0 + np.arange(6))[:, None, None])


def groups(places: list[Any], slopes: list[float] | None = None) -> list[Any]:
    """Functional groups of an enhanced multi-frame file."""
    made = []
    for i, place in enumerate(places):
        value, position, measures, plane, group = (pydicom.Dataset() for _ in range(5))
        value.RescaleSlope, value.RescaleIntercept = slopes[i] if slopes else 1, 0
        measures.PixelSpacing, plane.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
        group.PixelValueTransformationSequence = [value]
        group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [plane]
        if place is not None:
            position.ImagePositionPatient = [0, 0, place]
            group.PlanePositionSequence = [position]
        made.append(group)
    return made


def test_frames_are_ordered_by_position_and_scaled_each(tmp_path: Path, write_dicom: Write) -> None:
    tags = {"PerFrameFunctionalGroupsSequence": groups([0, 4, 2], [1, 2, 3])}
    found = read(write_dicom(tmp_path / "a.dcm", VOLUME[:3], **tags))
    assert (found.leading, found.spacing) == ("depth", (2, 0.5, 0.5))
    assert np.array_equal(found.array[..., 0], [1.0 * VOLUME[0], 3.0 * VOLUME[2], 2.0 * VOLUME[1]])


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"FrameTime": 33.3}, "they are moments in time, it has FrameTime"),
        ({"CineRate": 30}, "they are moments in time, it has CineRate"),
        ({"SliceThickness": 2}, "they have no ImagePositionPatient"),
        ({"PerFrameFunctionalGroupsSequence": [0, 0, 0]}, "frame 1 and frame 2 lie in the same place"),
        ({"PerFrameFunctionalGroupsSequence": [0, 1, 5]}, "its slices are 1 to 4 mm apart"),
        ({"PerFrameFunctionalGroupsSequence": [0, None, 2]}, "they have no ImagePositionPatient"),
        ({"GridFrameOffsetVector": [0, 1]}, "it states 2 places for them"),
    ],
)
def test_frames_that_are_no_slices_are_images_and_no_volume(
    tmp_path: Path, write_dicom: Write, tags: dict[str, Any], said: str
) -> None:
    if "PerFrameFunctionalGroupsSequence" in tags:
        tags = {"PerFrameFunctionalGroupsSequence": groups(tags["PerFrameFunctionalGroupsSequence"])}
    path = write_dicom(tmp_path / "a.dcm", VOLUME[:3], **tags)
    with pytest.raises(
        ValueError, match=rf"a\.dcm is a file of 3 frames \({said}.*no volume; the network expects a vol"
    ):
        read_images(path, channels=1, size=8, dims=3)
    names, images = read_images(path, channels=1, size=8, dims=2)
    assert names == [f"{path}[{i}]" for i in range(3)]
    assert images.shape == (3, 1, 8, 8)


def test_frames_of_doses_and_of_nuclear_medicine_are_slices(tmp_path: Path, write_dicom: Write) -> None:
    dose = read(write_dicom(tmp_path / "d.dcm", VOLUME, GridFrameOffsetVector=[0, -2, -4, -6, -8, -10]))
    assert dose.spacing == (2, 0.5, 0.5)
    assert np.array_equal(dose.array[..., 0], VOLUME[::-1])
    detector = pydicom.Dataset()
    detector.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    tags = {"FrameIncrementPointer": 0x00540080, "SpacingBetweenSlices": 4, "ImageOrientationPatient": None}
    counts = read(write_dicom(tmp_path / "n.dcm", VOLUME, **tags, DetectorInformationSequence=[detector]))
    assert (counts.leading, counts.spacing) == ("depth", (4, 0.5, 0.5))


def test_a_volume_is_not_taken_for_images(tmp_path: Path, write_dicom: Write) -> None:
    path = write_dicom(tmp_path / "a.dcm", VOLUME[:3], PerFrameFunctionalGroupsSequence=groups([0, 1, 2]))
    with pytest.raises(ValueError, match=r"a\.dcm is a volume of 3 x 8 x 10 voxels; the network expects an image"):
        read_images(path, channels=1, size=8, dims=2)


def test_a_deflated_file_does_not_become_larger_than_allowed(
    tmp_path: Path, write_dicom: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    path = write_dicom(tmp_path / "a.dcm", GREY, syntax=deflated, PixelData=bytes(10**7))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(decoded, "_BYTES", 10**6)
    with pytest.raises(ValueError, match="would take"), mock.patch("pydicom.dcmread") as dcmread:
        read(path)
    dcmread.assert_not_called()


def test_a_frame_larger_than_the_header_says_is_not_decoded(tmp_path: Path, write_dicom: Write) -> None:
    encoded = io.BytesIO()
    pil.new("L", (3000, 2000)).save(encoded, "JPEG")
    path = write_dicom(tmp_path / "a.dcm", GREY, syntax=pydicom.uid.JPEGBaseline8Bit)
    data = pydicom.dcmread(path)
    data.PixelData = pydicom.encaps.encapsulate([encoded.getvalue()])
    data.save_as(path)
    with pytest.raises(ValueError, match="a frame is 3000 x 2000 pixels, its header says 10 x 8"):
        read(path)


def test_the_limit_counts_all_slices(tmp_path: Path, write_series: Write) -> None:
    folder = write_series(tmp_path / "s", VOLUME)
    with pytest.raises(ValueError, match="it has 480 pixels, the limit is 479"):
        dicom_series(slices_in(folder), Limits(pixels=479))
    assert dicom_series(slices_in(folder), Limits(pixels=480)).array.shape == (6, 8, 10, 1)
