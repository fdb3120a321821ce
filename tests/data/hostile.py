"""Makes hostile inputs by a seed, lets the readers loose on them, and prints a JSON line for each; see test_hostile."""

import gzip
import io
import json
import os
import random
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import tifffile
import torch
from PIL import Image

from isoconv.data import own, read_images
from isoconv.data.check import check

SEED = 0
MUTATED = 70  # of each good file
RNG = np.random.default_rng(SEED)
GREY = (np.add.outer(9 * np.arange(16), 5 * np.arange(24)) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
BLOCK = RNG.integers(0, 999, (6, 8, 9), np.int16)


def in_memory(write: object, *args: object, **options: object) -> bytes:
    memory = io.BytesIO()
    write(memory, *args, **options)  # type: ignore[operator]
    return memory.getvalue()


def dicom(syntax: str = "ExplicitVRLittleEndian", pixels: np.ndarray = BLOCK[0], **tags: object) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        image = in_memory(Image.fromarray(GREY).save, "JPEG" if "JPEGBase" in syntax else "JPEG2000")
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = *GREY.shape, 8, 8, 7
        data.PixelRepresentation = 0
        data.PixelData = pydicom.encaps.encapsulate([image])
    return in_memory(data.save_as, enforce_file_format=True)


def good() -> Iterator[tuple[str, bytes]]:
    image, pages = Image.fromarray(RGB), [Image.fromarray(np.roll(RGB, i, 0)) for i in range(3)]
    for ending, form in (("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP"), ("gif", "GIF"), ("webp", "WEBP")):
        yield ending, in_memory(image.save, form)
    yield "gif", in_memory(image.save, "GIF", save_all=True, append_images=pages)
    yield "png", in_memory(Image.fromarray(GREY.astype(np.uint16) * 257).save, "PNG")
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        yield "tif", in_memory(image.save, "TIFF", compression=compression)
    yield "tif", in_memory(image.quantize(8).save, "TIFF")
    yield "tif", in_memory(tifffile.imwrite, BLOCK, metadata={"axes": "ZYX"}, ome=True)
    yield "npy", in_memory(np.save, RGB)
    yield "npz", in_memory(np.savez_compressed, images=RGB)
    yield "dcm", dicom()
    yield "dcm", dicom("DeflatedExplicitVRLittleEndian")
    yield "dcm", dicom("JPEG2000Lossless")
    yield "dcm", dicom("JPEGBaseline8Bit")
    volume = nibabel.Nifti1Image(BLOCK, np.eye(4)).to_bytes()
    yield "nii", volume
    yield "nii.gz", gzip.compress(volume)


def mutated(raw: bytes, luck: random.Random) -> bytes:
    """Bytes changed, cut, doubled, or numbers made extreme; most of it near the head, where it is understood."""
    data = bytearray(raw)
    for _ in range(luck.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at = (
            min(int(luck.expovariate(8 / len(data))), len(data) - 1)
            if luck.random() < 0.7
            else luck.randrange(len(data))
        )
        match luck.randrange(5):
            case 0:
                data[at] = luck.randrange(256)
            case 1:
                data[at] ^= 1 << luck.randrange(8)
            case 2:
                extreme = luck.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1))
                data[at : at + 4] = struct.pack(luck.choice("<>") + "I", extreme)
            case 3:
                del data[at : at + luck.randrange(1, 40)]
            case 4:
                data[at:at] = data[at : at + luck.randrange(1, 40)]
    return bytes(data[: luck.randrange(len(data) + 1)] if luck.random() < 0.15 else data)


def png(width: int, height: int, data: bytes) -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    return content


def tiff(shape: tuple[int, ...], block: bytes, count: int, **options: object) -> bytes:
    memory = io.BytesIO()
    with tifffile.TiffWriter(memory) as file:
        file.write(iter([block] * count), shape=shape, dtype=np.uint8, compression="zlib", **options)
    return memory.getvalue()


def npz(declared: int, there: int, **names: bytes) -> bytes:
    memory = io.BytesIO()
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({declared // 1000}, 1000), }}".ljust(117) + "\n"
    with (
        zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("images.npy", "w", force_zip64=True) as out,
    ):
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
        for _ in range(there // 10**6):
            out.write(bytes(10**6))
    return memory.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that say, or become, far more than they are."""
    zeros = zlib.compress(bytes(400 * 10**6), 9)
    yield "png", png(60000, 60000, zeros)
    yield "png", png(2**31 - 1, 2**31 - 1, b"")
    yield "png", png(8000, 8000, zlib.compress(bytes(8000 * 32001), 9))  # as large as is read
    yield (
        "bmp",
        struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**20, 2**20, 1, 24, *[0] * 6),
    )
    yield "tif", tiff((20000, 20000), zlib.compress(bytes(20000 * 100), 9), 200, rowsperstrip=100)
    yield "tif", tiff((16, 16), zeros, 1, rowsperstrip=16)
    yield "tif", tiff((16, 16), zlib.compress(bytes(2**28), 9), 1, tile=(2**14, 2**14))
    yield (
        "tif",
        tiff(
            (11000, 11000, 2), zlib.compress(bytes(22000 * 100), 9), 110, rowsperstrip=100, extrasamples=["unassalpha"]
        ),
    )
    yield "npz", npz(10**12, 10**6)
    yield "npz", npz(10**9, 10**9)
    yield "npz", npz(250 * 10**6, 250 * 10**6)
    yield (
        "gif",
        struct.pack("<6sHHBBB", b"GIF89a", 9, 9, 0, 0, 0)
        + struct.pack("<x4H", 0, 0, 60000, 60000).replace(b"\0", b",", 1)
        + b"\0\2\0;",
    )
    yield "dcm", dicom("DeflatedExplicitVRLittleEndian", ImageComments="x", PixelData=bytes(600 * 10**6))
    yield "dcm", dicom(Rows=65535, Columns=65535, NumberOfFrames=10**9)
    yield "dcm", dicom(pixels=np.zeros((1, 1), np.int16), NumberOfFrames=2**31 - 1)
    for shape in ((32000,) * 3, (400, 400, 400)):
        head = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4)).header
        head.set_data_shape(shape)
        head["vox_offset"] = 352
        yield "nii.gz", gzip.compress(head.binaryblock + bytes(4) + bytes(64 * 10**6))
    head["vox_offset"] = 2e9
    yield (
        "nii.gz",
        gzip.compress(head.binaryblock + struct.pack("<4BII", 1, 0, 0, 0, 2**31 - 16, 6) + bytes(300 * 10**6)),
    )


def inputs(folder: Path) -> Iterator[Path]:
    luck = random.Random(SEED)
    number = 0

    def put(ending: str, raw: bytes) -> Path:
        nonlocal number
        number += 1
        path = folder / f"{number}.{ending}"
        path.write_bytes(raw)
        return path

    known = list(good())
    for ending, raw in known:
        yield put(ending, raw)
        for _ in range(MUTATED):
            yield put(ending, mutated(raw, luck))
    endings = sorted({ending for ending, _ in known})
    for _, raw in known:
        yield put(luck.choice(endings), raw)  # under a wrong name
    for ending, raw in bombs():
        yield put(ending, raw)
    for ending in endings:
        yield put(ending, b"")
        yield put(ending, luck.randbytes(5000))
        os.mkfifo(folder / f"pipe.{ending}")
        yield folder / f"pipe.{ending}"
        (folder / f"link.{ending}").symlink_to(folder / "nowhere")
        yield folder / f"link.{ending}"
        (folder / f"loop.{ending}").symlink_to(folder / f"loop.{ending}")
        yield folder / f"loop.{ending}"
    series = folder / "series"
    series.mkdir()
    for i in range(4):
        place = [0, 10**9 * i, i]  # displaced by more than any volume
        raw = dicom(SeriesInstanceUID="1.2", ImagePositionPatient=place, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        (series / f"{i}.dcm").write_bytes(raw)
    yield series
    deep = folder / "deep"
    os.makedirs(deep / "a")
    place = os.open(deep / "a", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.mkfifo("x.png", dir_fd=place)
    yield deep


def data_sets(folder: Path) -> Iterator[Path]:
    manifest = folder / "m.csv"
    manifest.write_text("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(300_000)))
    yield manifest
    manifest = folder / "n.csv"
    manifest.write_text("path,label\n" + ",\n" * 2_000_000)
    yield manifest
    os.mkfifo(folder / "p.csv")
    yield folder / "p.csv"
    for i, raw in enumerate((b"", npz(10**9, 10**9), b"PK\x05\x06" + bytes(18), b"PK" + bytes(99))):
        path = folder / f"set{i}.npz"
        path.write_bytes(raw)
        yield path


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def try_out(path: Path, look: object, baseline: int) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start, error, text = time.monotonic(), None, ""
    try:
        look(path)  # type: ignore[operator]
    except BaseException as caught:  # noqa: BLE001
        known = next(
            (k.__name__ for k in (FileNotFoundError, ValueError) if isinstance(caught, k)), type(caught).__name__
        )
        error, text = known, str(caught)
    seconds, growth = time.monotonic() - start, resident("VmHWM") - baseline
    told = {"name": str(path), "seconds": seconds, "growth": growth, "error": error, "text": text}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def read_both(path: Path) -> None:
    """As images and as volumes; the first refusal of each kind counts, a success of either is one."""
    refused = False
    try:
        read_images(path, channels=3, size=16, dims=2)
    except (ValueError, FileNotFoundError):
        refused = True
    if refused:  # only now is what the first try held given back
        read_images(path, channels=3, size=16, dims=3)


def found_or_checked(path: Path) -> None:
    if path.suffix == ".csv":
        own.find(path)
    elif errors := check(str(path), 16).errors:
        raise ValueError(errors[0])


def main(folder: Path, above: int) -> None:
    torch.set_num_threads(1)
    files, sets = folder / "files", folder / "sets"
    files.mkdir()
    sets.mkdir()
    made = list(inputs(files)), list(data_sets(sets))
    read_both(made[0][0])  # everything is imported
    baseline = resident("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + above,) * 2)
    for path in made[0]:
        try_out(path, read_both, baseline)
    for path in made[1]:
        try_out(path, found_or_checked, baseline)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
