"""Users' own image files, as a network wants them: uint8, square, channels first.

What is read: PNG and JPEG, TIFF, NumPy's npy and npz, with the extra ``medical`` DICOM and NIfTI. For a 2D network a
file holds an image ``(H, W)`` or a stack ``(N, H, W)``, for a 3D network a volume ``(D, H, W)`` or a stack of them. A
last axis of length 1, 3 or 4 besides these always means colours: grey, RGB, RGBA. Of an npz archive the arrays count
whose names end in "images"; if none does, its only array. For a 3D network a folder of DICOM slices is one volume, see
:mod:`isoconv.data.medical`.

What is done to them:

- Numbers. uint8 is taken as it is, floats from 0 to 1 are multiplied by 255. Other types and ranges have no agreed
  meaning (a 12-bit camera fills a sixteenth of a 16-bit file): a file's smallest and largest values become 0 and 255.
- Colour. A grey image is repeated for an RGB network, an RGB image with three equal channels is taken as grey. An alpha
  channel is dropped. Real colour for a grey network is refused.
- Size. An image is cropped to its central square, as MedMNIST's were. A volume whose voxels have a known size is padded
  with its darkest value to a cube in space, so that voxels become cubes and a ball stays a ball; any other is taken to
  be a cube. Then every side is resized linearly, antialiased.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv._extras import require
from isoconv.data import medical
from isoconv.data.batches import resize
from isoconv.data.medical import Spacing

__all__ = [
    "SUFFIXES",
    "as_uint8",
    "find_images",
    "images_in",
    "is_image",
    "palette_indices",
    "probe",
    "read_arrays",
    "read_images",
    "readable",
    "split_index",
    "stack_images",
    "with_series",
]

PathLike = str | os.PathLike[str]


def read_images(
    paths: PathLike | Iterable[PathLike], *, channels: int, size: int, dims: int
) -> tuple[list[str], Tensor]:
    """Read image files for a network of ``channels`` inputs that was trained at ``size`` pixels a side.

    Args:
        paths: files and folders, one or several. A folder is walked through, in sorted order; files of another kind are
            left out with a warning that names them, hidden ones silently.
        channels: 1 or 3.
        size: side in pixels.
        dims: 2 for images, 3 for volumes.

    Returns:
        The images' names, ``"cell.png"``, ``"stack.npy[7]"`` or ``"set.npz:test_images[7]"``, and uint8 images
        ``(N, channels, *spatial)``.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
        ValueError: a file cannot be read, is of another kind, rank or colour than the network needs, or holds NaN,
            infinity, or an image whose pixels are all equal.
    """
    names, images = [], []
    for path in _walk([Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(p) for p in paths], dims):
        for name, array, spacing in read_arrays(path):
            stack, is_stack = _as_stack(name, as_uint8(name, array), channels, dims)
            for i, image in enumerate(stack):
                names.append(f"{name}[{i}]" if is_stack else name)
                images.append(_fit(_channels_first(names[-1], image, channels), size, spacing))
    return names, torch.stack(images)


def split_index(name: str) -> tuple[str, int | None]:
    """``"stack.npy[7]"``, one of the names above, to the file and 7; the name of a single image to itself and None."""
    if not name.endswith("]") or Path(name).exists():  # a folder of slices may have a bracket at its end
        return name, None
    source, _, index = name[:-1].rpartition("[")
    return source, int(index)


def is_image(path: Path) -> bool:
    """Whether a file is of a kind that is read: by its name, or as DICOM without an ending."""
    return _suffix(path) in SUFFIXES


def stack_images(name: str, array: np.ndarray, channels: int, dims: int, size: int) -> Tensor:
    """uint8 ``(N, channels, *spatial)`` of a stack of uint8 images, colours in the last axis, errors as above."""
    stack, _ = _as_stack(name, array, channels, dims)
    return torch.stack([_fit(_channels_first(f"{name}[{i}]", image, channels), size) for i, image in enumerate(stack)])


def probe(path: Path) -> tuple[int, int]:
    """Spatial axes, 2 or 3, and channels, 1 or 3, of the one image in a file; of a picture only the head is read.

    Raises:
        ValueError: it cannot be read, or is no single image.
    """
    if not path.is_dir() and not is_image(path):
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
    if _READERS.get(_suffix(path)) is _picture and not path.is_dir():
        with readable(path), require("PIL.Image", "study").open(path) as file:
            return 2, 1 if _is_grey(file.mode) else 3
    arrays = read_arrays(path)
    shape = arrays[0][1].shape
    coloured = len(shape) > 2 and shape[-1] in (1, 3, 4)
    dims = len(shape) - coloured
    if len(arrays) != 1 or dims not in (2, 3):
        raise ValueError(f"{path} is no single image: {', '.join(str(array.shape) for _, array, _ in arrays)}")
    return dims, 3 if coloured and shape[-1] >= 3 else 1


def _walk(paths: list[Path], dims: int) -> list[Path]:
    if not paths:
        raise ValueError("expected image files or a folder of them, got no path")
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            if not is_image(path):
                raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
            found.append(path)
            continue
        if not path.is_dir():
            raise FileNotFoundError(f"there is no file or folder {path}")
        images, others = find_images(path)
        if not images:
            raise FileNotFoundError(f"the folder {path} holds no image, that is none of {', '.join(SUFFIXES)}")
        if others:
            names = ", ".join(str(p.relative_to(path)) for p in others)
            warnings.warn(f"left out of {path}, not images: {names}", stacklevel=3)
        found += with_series(images) if dims == 3 else images
    return found


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted; hidden ones are none."""
    return [p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p) and not p.name.startswith(".")]


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files anywhere below a folder, and the others, sorted. What is hidden, or in a hidden folder as
    thumbnails are, is neither."""
    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        # a link to nothing is an image that cannot be read, not one less
        if not path.is_dir() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            (images if is_image(path) else others).append(path)
    return images, others


def with_series(files: Iterable[Path]) -> list[Path]:
    """Image files, in place of the slices of a DICOM series the folder that they are in."""
    places: dict[Path, list[Path]] = {}
    for path in files:
        places.setdefault(path.parent if medical.is_dicom(path) else path, []).append(path)
    return [path for place, here in places.items() for path in ([place] if medical.is_series(here) else here)]


def _suffix(path: Path) -> str:
    name = path.name.lower()
    if medical.is_dicom(path):
        return ".dcm"
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def read_arrays(path: Path) -> list[tuple[str, np.ndarray, Spacing | None]]:
    """The named arrays in a file or a folder of DICOM slices, colours in the last axis, with the spacing in mm.

    Raises:
        ValueError: it cannot be read.
    """
    with readable(path):
        if path.is_dir():
            return [(str(path), *medical.dicom_series(path))]
        if (suffix := _suffix(path)) in medical.READERS:
            return [(str(path), *medical.READERS[suffix](path))]
        arrays = _READERS[suffix](path)
    return [(f"{path}:{key}" if key else str(path), array, None) for key, array in arrays.items()]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Makes whatever a reader raises a ValueError that names the file: over damaged ones they raise anything."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = (
            "pip install imagecodecs, or save it uncompressed"
            if "imagecodecs" in reason
            else "save it anew or leave it out"
        )
        raise ValueError(f"cannot read {path} ({reason}); {remedy}") from error


def _picture(path: Path) -> dict[str, np.ndarray]:
    pil, ops = require("PIL.Image", "study"), require("PIL.ImageOps", "study")
    with pil.open(path) as file:
        image = ops.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey
            return {"": np.asarray(image)}
        return {"": np.asarray(image.convert("L" if _is_grey(image.mode) else "RGB"))}


def palette_indices(path: Path) -> np.ndarray | None:
    """The number of each pixel's colour ``(H, W)`` in a picture that has a palette, as tools for labelling write masks;
    None for any other file. Raises ValueError if it cannot be read."""
    if _READERS.get(_suffix(path)) is not _picture:
        return None
    pil, ops = require("PIL.Image", "study"), require("PIL.ImageOps", "study")
    with readable(path), pil.open(path) as file:
        return np.asarray(ops.exif_transpose(file)) if file.mode == "P" else None


def _is_grey(mode: str) -> bool:
    return mode.startswith("I") or mode in ("1", "L", "LA")


def _tiff(path: Path) -> dict[str, np.ndarray]:
    with require("tifffile", "study").TiffFile(path) as file:
        if len(file.series) != 1:
            shapes = ", ".join(str(each.shape) for each in file.series)
            raise ValueError(f"it holds {len(file.series)} series of images, {shapes}; one is expected")
        series = file.series[0]
        array, channel = series.asarray(), max(series.axes.find("S"), series.axes.find("C"))
        if channel >= 0 and (count := array.shape[channel]) not in (1, 3, 4):
            raise ValueError(f"it holds {count} channels; 1 (grey), 3 (RGB) or 4 (RGBA) are expected")
        if series.keyframe.photometric == 0 and array.dtype.kind in "bui":  # 0 is white
            array = ~array
    return {"": array if channel < 0 else np.moveaxis(array, channel, -1)}


def _npy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return {"": np.lib.format.read_array(file, allow_pickle=False)}


def _npz(path: Path) -> dict[str, np.ndarray]:
    # np.load given a path leaves the file open when it is no archive
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        keys = [key for key in archive.files if key.endswith("images")] or archive.files
        if not keys:
            raise ValueError("it holds no array")
        if len(keys) != 1 and not keys[0].endswith("images"):
            raise ValueError(f"of its arrays {', '.join(keys)} none ends in 'images'")
        return {key: archive[key] for key in keys}


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg"), _picture),
    **dict.fromkeys((".tif", ".tiff"), _tiff),
    ".npy": _npy,
    ".npz": _npz,
}
SUFFIXES = (*_READERS, *medical.READERS)


def as_uint8(name: str, array: np.ndarray) -> np.ndarray:
    """An array of real numbers, scaled as told above; ``name`` is for the error. Raises ValueError for other values."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {array.dtype}; an image is an array of real numbers")
    if array.size == 0:
        raise ValueError(f"{name} is empty, its shape is {array.shape}; leave it out")
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float64)
    low, high = values.min(), values.max()
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(255 * (high - low))
    if not finite:
        raise ValueError(f"{name} holds NaN or infinity; replace them by numbers")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and low >= 0 and high <= 1):
        low, high = 0.0, 1.0
    return np.round(255 * (values - low) / max(high - low, np.finfo(float).tiny)).astype(np.uint8)


def _as_stack(name: str, array: np.ndarray, channels: int, dims: int) -> tuple[np.ndarray, bool]:
    """``(N, *spatial, 1 or 3)``, and whether the array was a stack rather than one image."""
    coloured = array.ndim > dims and array.shape[-1] in (1, 3, 4)
    rank = array.ndim - coloured
    if rank not in (dims, dims + 1) or (rank > dims and not coloured and array.shape[0] == channels == 3):
        kind = "an image (H, W) or a stack of them" if dims == 2 else "a volume (D, H, W) or a stack of them"
        raise ValueError(f"{name} has shape {array.shape}; the network expects {kind}, colours in the last axis")
    if not coloured:
        array = array[..., None]
    array = array[..., :3]
    return (array, True) if rank == dims + 1 else (array[None], False)


def _channels_first(name: str, image: np.ndarray, channels: int) -> Tensor:
    """uint8 ``(channels, *spatial)`` of an image ``(*spatial, 1 or 3)``."""
    if image.shape[-1] == 3 and channels == 1:
        if (image != image[..., :1]).any():
            raise ValueError(f"{name} is RGB, the network expects 1 channel; convert it to grey")
        image = image[..., :1]
    if image.shape[-1] == 1 and channels == 3:
        image = image.repeat(3, axis=-1)
    if image.size == 0 or image.min() == image.max():
        raise ValueError(
            f"{name} is {'empty' if image.size == 0 else 'constant, all its pixels are equal'}; leave it out"
        )
    return torch.tensor(np.moveaxis(image, -1, 0))


def _fit(image: Tensor, size: int, spacing: Spacing | None = None) -> Tensor:
    if image.ndim == 3:
        side = min(image.shape[1:])
        top, left = ((s - side) // 2 for s in image.shape[1:])
        image = image[:, top : top + side, left : left + side]
    elif spacing is not None:
        return _cube(image, size, spacing)
    return _rounded(resize(image[None].float(), size)[0])


def _cube(volume: Tensor, size: int, spacing: Spacing) -> Tensor:
    """A volume ``(C, D, H, W)`` centred in a cube of ``size`` voxels a side, its longest extent in mm filling it."""
    extent = [n * s for n, s in zip(volume.shape[1:], spacing, strict=True)]
    d, h, w = (max(1, round(size * e / max(extent))) for e in extent)
    plane = F.interpolate(volume.float(), (h, w), mode="bilinear", antialias=True)
    scaled = F.interpolate(plane.flatten(2)[None], (d, h * w), mode="bilinear", antialias=True).view(-1, d, h, w)
    padding = [n for axis in (w, h, d) for n in ((size - axis) // 2, size - axis - (size - axis) // 2)]
    return _rounded(F.pad(scaled, padding, value=float(volume.min())))


def _rounded(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)
