"""Users' own image files, as a network wants them: uint8, square, channels first.

What is read: PNG, JPEG, BMP, GIF, WebP and TIFF, NumPy's npy and npz, with the extra ``medical`` DICOM and NIfTI; in
which colours, depths and geometries says docs/reference/readers.md. For a 2D network a file holds an image ``(H, W)``
or a stack ``(N, H, W)``, for a 3D network a volume ``(D, H, W)`` or a stack of them. In npy and npz a last axis of
length 1, 3 or 4 besides these always means colours: grey, RGB, RGBA. Of an npz archive the arrays count whose names end
in "images"; if none does, its only array. For a 3D network a folder of DICOM slices is one volume.

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

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv._files import open_regular
from isoconv.data import archives, medical, nifti, pictures, tiff
from isoconv.data.decoded import LIMITS, Decoded, Limits, Spacing, readable
from isoconv.data.dicom import dicom, dicom_series

__all__ = [
    "SUFFIXES",
    "as_uint8",
    "find_images",
    "images_in",
    "is_image",
    "palette_indices",
    "probe",
    "read_arrays",
    "read_each",
    "read_images",
    "readable",
    "split_index",
    "stack_images",
    "with_series",
]

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
SUFFIXES = (*pictures.SUFFIXES, *tiff.SUFFIXES, ".npy", ".npz", ".dcm", *nifti.SUFFIXES)
_BLOCK = 1 << 22  # values that are worked on at once


def read_images(
    paths: PathLike | Iterable[PathLike], *, channels: int, size: int, dims: int, limits: Limits = LIMITS
) -> tuple[list[str], Tensor]:
    """Read image files for a network of ``channels`` inputs that was trained at ``size`` pixels a side.

    Args:
        paths: files and folders, one or several. A folder is walked through, in sorted order; files of another kind are
            left out with a warning that names them, hidden ones silently.
        channels: 1 or 3.
        size: side in pixels.
        dims: 2 for images, 3 for volumes.
        limits: how large a file's images may be.

    Returns:
        The images' names, ``"cell.png"``, ``"stack.npy[7]"`` or ``"set.npz:test_images[7]"``, and uint8 images
        ``(N, channels, *spatial)``.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
        ValueError: a file cannot be read, is of another kind, rank or colour than the network needs, or holds NaN,
            infinity, or an image whose pixels are all equal.
    """
    names: list[str] = []
    images: list[Tensor] = []
    for _, found in read_each(paths, channels=channels, size=size, dims=dims, limits=limits):
        if isinstance(found, Exception):
            raise found
        names += found[0]
        images.append(found[1])
    return names, torch.cat(images)


def read_each(
    paths: PathLike | Iterable[PathLike], *, channels: int, size: int, dims: int, limits: Limits = LIMITS
) -> Iterator[tuple[Path, tuple[list[str], Tensor] | Exception]]:
    """Each file, or folder of slices, with what :func:`read_images` would return for it alone, or raise."""
    for path, error in _walk([Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(p) for p in paths], dims):
        if error is not None:
            yield path, error
            continue
        try:
            yield path, _read(path, channels, size, dims, limits)
        except (ValueError, ImportError) as refused:  # the latter for want of an extra
            yield path, _without_frames(refused)


def _without_frames(error: Exception) -> Exception:
    """The error, without what its traceback keeps alive: the arrays that were decoded."""
    linked: BaseException | None = error
    while linked is not None:
        linked = linked.with_traceback(None).__context__
    return error


def _read(path: Path, channels: int, size: int, dims: int, limits: Limits) -> tuple[list[str], Tensor]:
    names: list[str] = []
    images: list[Tensor] = []
    for name, found in read_arrays(path, limits):
        stack, is_stack = _as_stack(name, found, channels, dims)
        if dims == 3 and found.spacing is None:
            _say_cubes()
        for i, image in enumerate(stack):
            names.append(f"{name}[{i}]" if is_stack else name)
            images.append(_fit(names[-1], image, channels, size, found.spacing))
    return names, torch.stack(images)


@cache
def _say_cubes() -> None:
    log.warning("volumes without a voxel size (npy, npz and TIFF state none) are taken to be cubes")


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
    stack, _ = _as_stack(name, Decoded(array, "unknown"), channels, dims)
    return torch.stack([_fit(f"{name}[{i}]", image, channels, size) for i, image in enumerate(stack)])


def probe(path: Path, limits: Limits = LIMITS) -> tuple[int, int]:
    """Spatial axes, 2 or 3, and channels, 1 or 3, of the one image in a file; of a picture only the head is read.

    Raises:
        ValueError: it cannot be read, or is no single image.
    """
    if not path.is_dir() and not is_image(path):
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
    if _suffix(path) in pictures.SUFFIXES and not path.is_dir():
        with readable(path), open_regular(path) as file:
            frames, channels = pictures.look(file)
        if frames > 1:
            raise ValueError(f"{path} is no single image: it is an animation of {frames} frames")
        return 2, channels
    arrays = read_arrays(path, limits)
    shape, leading = arrays[0][1].array.shape, arrays[0][1].leading
    coloured = leading != "unknown" or (len(shape) > 2 and shape[-1] in (1, 3, 4))
    dims = len(shape) - coloured
    if len(arrays) != 1 or dims not in (2, 3) or leading == "images":
        raise ValueError(f"{path} is no single image: {', '.join(str(each.array.shape) for _, each in arrays)}")
    return dims, 3 if coloured and shape[-1] >= 3 else 1


def _walk(paths: list[Path], dims: int) -> Iterator[tuple[Path, Exception | None]]:
    """The files, or folders of slices, to be read, or why a path is none."""
    if not paths:
        raise ValueError("expected image files or a folder of them, got no path")
    for path in paths:
        try:
            kind = "folder" if path.is_dir() else "file" if path.exists() else None
        except OSError as error:  # no permission to look there, or too long a name
            yield path, ValueError(f"cannot open {path} ({error.strerror}); make it readable or leave it out")
            continue
        if kind == "folder":
            yield from _walk_folder(path, dims)
        elif kind is None:
            yield path, FileNotFoundError(f"there is no file or folder {path}")
        elif not is_image(path):
            yield path, ValueError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
        else:
            yield path, None


def _walk_folder(path: Path, dims: int) -> Iterator[tuple[Path, Exception | None]]:
    unlisted: list[tuple[Path, Exception]] = []
    images, others = find_images(path, lambda *refused: unlisted.append(refused))
    if not images and not unlisted:
        text = f"the folder {path} holds no image, that is none of {', '.join(SUFFIXES)}"
        yield path, FileNotFoundError(text)
    if others:
        names = ", ".join(str(p.relative_to(path)) for p in others)
        warnings.warn(f"left out of {path}, not images: {names}", stacklevel=5)
    yield from ((image, None) for image in (with_series(images) if dims == 3 else images))
    yield from unlisted


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted; hidden ones are none."""
    return [p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p) and not p.name.startswith(".")]


def find_images(
    folder: Path, onerror: Callable[[Path, ValueError], object] | None = None
) -> tuple[list[Path], list[Path]]:
    """The image files anywhere below a folder, and the others, sorted. What is hidden, or in a hidden folder as
    thumbnails are, is neither; nor is what is in a folder by a link.

    Args:
        onerror: called with each folder that cannot be listed and its error; None raises the first of them.
    """
    images: list[Path] = []
    others: list[Path] = []
    folders = [folder]
    while folders:  # not by recursion, folders may be nested deeper than Python's stack
        here = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif not entry.is_dir():  # a link to nothing is an image that cannot be read, not one less
                        path = Path(entry.path)
                        (images if is_image(path) else others).append(path)
        except OSError as error:
            refused = ValueError(f"cannot list {here} ({error.strerror}); make it readable or move it")
            if onerror is None:
                raise refused from None
            onerror(here, refused)
    return sorted(images), sorted(others)


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


def read_arrays(path: Path, limits: Limits = LIMITS) -> list[tuple[str, Decoded]]:
    """The named arrays in a file or a folder of DICOM slices.

    Raises:
        ValueError: it cannot be read.
    """
    with readable(path):
        if path.is_dir():
            return [(str(path), dicom_series(medical.slices_in(path), limits))]
        suffix = _suffix(path)
        if suffix == ".npz":
            return [(f"{path}:{key}", array) for key, array in archives.npz(path, limits).items()]
        if suffix == ".dcm":
            return [(str(path), dicom(path, limits))]
        if suffix in nifti.SUFFIXES:
            return [(str(path), nifti.nifti(path, limits))]
        read = archives.npy if suffix == ".npy" else tiff.tiff if suffix in tiff.SUFFIXES else pictures.picture
        with open_regular(path) as file:
            return [(str(path), read(file, path.stat().st_size, limits))]


def palette_indices(path: Path, limits: Limits = LIMITS) -> np.ndarray | None:
    """The number of each pixel's colour ``(*spatial)`` in a picture or TIFF that has a palette, as tools for labelling
    write masks; None for any other file. Raises ValueError if it cannot be read."""
    for reader in (pictures, tiff):
        if _suffix(path) in reader.SUFFIXES:
            with readable(path), open_regular(path) as file:
                return reader.palette_indices(file, path.stat().st_size, limits)
    return None


def as_uint8(name: str, array: np.ndarray) -> np.ndarray:
    """An array of real numbers, scaled as told above; ``name`` is for the error. Raises ValueError for other values."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {array.dtype}; an image is an array of real numbers")
    if array.size == 0:
        raise ValueError(f"{name} is empty, its shape is {array.shape}; leave it out")
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(255 * (high - low)):
        raise ValueError(f"{name} holds NaN or infinity; replace them by numbers")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and low >= 0 and high <= 1):
        low, high = 0.0, 1.0
    scaled = np.empty(array.shape, np.uint8)
    step = max(1, _BLOCK // max(1, array[0].size))
    for i in range(0, len(array), step):
        values = array[i : i + step].astype(np.float64)
        scaled[i : i + step] = np.round(255 * (values - low) / max(high - low, np.finfo(float).tiny))
    return scaled


def _as_stack(name: str, found: Decoded, channels: int, dims: int) -> tuple[np.ndarray, bool]:
    """uint8 ``(N, *spatial, 1 or 3)``, and whether the array was a stack rather than one image."""
    array = as_uint8(name, found.array)
    coloured = found.leading != "unknown" or (array.ndim > dims and array.shape[-1] in (1, 3, 4))
    rank = array.ndim - coloured
    kind = "an image (H, W) or a stack of them" if dims == 2 else "a volume (D, H, W) or a stack of them"
    if rank == 3 and dims == 2 and found.leading == "depth":
        voxels = " x ".join(map(str, array.shape[:3]))
        raise ValueError(
            f"{name} is a volume of {voxels} voxels; the network expects {kind}: save its slices as images"
        )
    if rank == 3 and dims == 3 and found.leading == "images":
        raise ValueError(f"{name} {found.no_depth}, no volume; the network expects {kind}")
    if not coloured:
        _ask(name, array.shape, channels, dims)
        array = array[..., None]
    if rank not in (dims, dims + 1):
        shape = array.shape[:-1] if array.shape[-1] == 1 and found.leading != "unknown" else found.array.shape
        raise ValueError(f"{name} has shape {shape}; the network expects {kind}, colours in the last axis")
    array = array[..., :3]
    return (array, True) if rank == dims + 1 else (array[None], False)


def _ask(name: str, shape: tuple[int, ...], channels: int, dims: int) -> None:
    """Raises ValueError for an array that may have its colours first."""
    axis = None
    if len(shape) == 3 and shape[0] in (1, 3) and (dims == 3 or shape[0] == channels == 3):
        axis = 0
    elif len(shape) == 4 and shape[1] in (1, 3):
        axis = 1
    elif len(shape) == 4 and dims == 3 and shape[0] == channels == 3:
        axis = 0
    if axis is not None:
        grey = f"grey {'volumes' if dims == 3 else 'images'}"
        raise ValueError(
            f"{name} has shape {shape}: is axis {axis} the colours, or are these {grey}? Move colours to the end, "
            f"np.moveaxis(array, {axis}, -1), or mark {grey} as such, array[..., None]"
        )


def _fit(name: str, image: np.ndarray, channels: int, size: int, spacing: Spacing | None = None) -> Tensor:
    """uint8 ``(channels, *spatial)``, every side of ``size``, of an image ``(*spatial, 1 or 3)``."""
    if image.size == 0 or image.min() == image.max():
        what = "empty" if image.size == 0 else "constant, all its pixels are equal"
        raise ValueError(f"{name} is {what}; leave it out")
    if image.shape[-1] == 3 and channels == 1:
        if any((image[..., 0] != image[..., i]).any() for i in (1, 2)):
            raise ValueError(f"{name} is RGB, the network expects 1 channel; convert it to grey")
        image = image[..., :1]
    if image.ndim == 3:
        side = min(image.shape[:2])
        top, left = ((s - side) // 2 for s in image.shape[:2])
        square = _channels_first(image[top : top + side, left : left + side])
        fitted = _resized(square, size, size)
    else:
        fitted = _cube(_channels_first(image), size, spacing or tuple(1 / n for n in image.shape[:3]))
    return fitted.round().clamp(0, 255).to(torch.uint8).expand(channels, *fitted.shape[1:])


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.tensor(np.moveaxis(image, -1, 0))


def _cube(volume: Tensor, size: int, spacing: Spacing) -> Tensor:
    """A volume ``(C, D, H, W)`` centred in a cube of ``size`` voxels a side, its longest extent in mm filling it."""
    extent = [n * s for n, s in zip(volume.shape[1:], spacing, strict=True)]
    d, h, w = (max(1, round(size * e / max(extent))) for e in extent)
    plane = _resized(volume.flatten(0, 1), h, w).view(len(volume), -1, h * w)
    scaled = F.interpolate(plane[None], (d, h * w), mode="bilinear", antialias=True).view(-1, d, h, w)
    padding = [n for axis in (w, h, d) for n in ((size - axis) // 2, size - axis - (size - axis) // 2)]
    return F.pad(scaled, padding, value=float(volume.min()))


def _resized(planes: Tensor, height: int, width: int) -> Tensor:
    """uint8 planes ``(N, H, W)`` as float ones, linearly and antialiased; the large ones bit by bit, the result is the
    same."""
    some = max(1, _BLOCK // planes.shape[2])
    out = torch.empty(len(planes), height, width)
    for plane, to in zip(planes, out, strict=True):
        rows = [_linear(each.float(), len(each), width) for each in plane.split(some)]
        to[:] = _linear(torch.cat(rows), height, width)
    return out


def _linear(plane: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(plane[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
