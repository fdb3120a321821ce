"""Users' own images with masks, from a folder or a manifest.

```
images/one.png   masks/one.png      the same names, whatever the endings
```
The two folders lie in the folder itself, or in each of its subfolders `train`, `val` and `test`. What has no splits
gets them as :mod:`isoconv.data.own` says. A mask holds the label of each pixel, whole numbers 0..K-1, 0 the background,
in a file of one channel or as the numbers of a palette's colours; where all masks are black and white, 0 and 255, white
is label 1. A 3D mask makes the task 3D. What is done to the images, see :mod:`isoconv.data.files`; a mask is cropped
like its image and resized to the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from isoconv._checks import count_of
from isoconv.data.dataset import Dataset, Split, Task, fingerprint
from isoconv.data.files import SUFFIXES, images_in, palette_indices, read_arrays, read_images

__all__ = ["Pair", "is_folder", "of_pairs", "pairs_in", "read_mask"]

Pair = tuple[Path, Path]
"""An image and its mask."""


def is_folder(folder: Path) -> bool:
    """Whether a folder, or its subfolder `train`, holds images/ beside masks/."""
    return any((place / "images").is_dir() and (place / "masks").is_dir() for place in (folder, folder / "train"))


def pairs_in(folder: Path) -> Iterator[tuple[Path, Path, str]]:
    """Image, mask and split of every pair in a folder; the split is empty where the folder has none.

    Raises:
        FileNotFoundError: a folder, or the mask of an image or the image of a mask, does not exist.
        ValueError: two files have one name.
    """
    if not (folder / "train").is_dir():
        yield from ((image, mask, "") for image, mask in _pairs(folder))
        return
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        yield from ((image, mask, place.name) for image, mask in _pairs(place))


def of_pairs(source: Path, pairs: Mapping[str, Sequence[Pair]]) -> tuple[Task, Callable[[int], Dataset]]:
    """The facts of the pairs of each split, which ``source`` lists, and what reads them at a size in pixels.

    Raises:
        ValueError: a mask is in colour, of another shape than its image, or holds other than 0..K-1; or a label is
            nowhere in a split.
    """
    first_image, first_mask = pairs["train"][0]
    dims = read_mask(first_mask).ndim
    if dims not in (2, 3):
        raise ValueError(f"{first_mask} has {count_of(dims, 'axis', 'axes')}; a mask has 2 (image) or 3 (volume)")
    channels = 3 if _array(first_image).ndim > dims and _array(first_image).shape[-1] in (3, 4) else 1
    present = {name: {int(n) for _, mask in some for n in np.unique(read_mask(mask))} for name, some in pairs.items()}
    labels = set[int]().union(*present.values())
    if is_white := labels == {0, 255}:
        labels = {0, 1}
        present = {name: {min(label, 1) for label in found} for name, found in present.items()}
    if labels != set(range(max(2, len(labels)))):
        raise ValueError(
            f"the masks of {source} must hold labels 0..K-1, they hold {_list(labels)}; number the classes without "
            "a gap, 0 the background"
        )
    for name, found in present.items():
        _check_present(source, name, labels - found)
    names = ("background", *(f"label {i}" for i in range(1, len(labels))))
    counts = (len(pairs["train"]), len(pairs["val"]), len(pairs["test"]))
    info = Task(str(source), source.stem, "segmentation", dims, channels, names, counts, licence="")
    return info, partial(_read, source, info, pairs, is_white)


def _read(source: Path, info: Task, pairs: Mapping[str, Sequence[Pair]], is_white: bool, size: int) -> Dataset:
    splits = {name: _read_split(some, info.channels, size, info.dims) for name, some in pairs.items()}
    if is_white:
        splits = {name: replace(split, labels=split.labels.clamp(max=1)) for name, split in splits.items()}
    for name, split in splits.items():
        _check_present(source, name, set(range(len(info.labels))) - set(split.labels.unique().tolist()), size)
    root = source if source.is_dir() else source.parent
    known = {name: fingerprint(root, {image: () for image, _ in some}) for name, some in pairs.items()}
    return Dataset(info, size, **splits, source=str(source), fingerprints=known)


def _check_present(source: Path, split: str, missing: set[int], size: int | None = None) -> None:
    if missing:
        own = source.is_file() or (source / split).is_dir()
        remedy = "move images between the splits" if own else "split it yourself, into train/, val/ and test/"
        at = "" if size is None else f" at {size} pixels a side"
        raise ValueError(f"label {_list(missing)} is in no mask of split {split} of {source}{at}; {remedy}")


def _pairs(folder: Path) -> list[Pair]:
    images, masks = (_by_stem(folder / name) for name in ("images", "masks"))
    for have, lack, what in ((images, masks, "mask in masks/"), (masks, images, "image in images/")):
        if missing := sorted(have.keys() - lack.keys()):
            first = have[missing[0]]
            files = count_of(len(missing), "file")
            raise FileNotFoundError(f"no {what} for {files}, the first is {first}; the names must match")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected images/ and masks/ beside each other")
    files = images_in(folder)
    if not files:
        raise FileNotFoundError(f"the folder {folder} holds none of {', '.join(SUFFIXES)}")
    by_stem = {p.stem: p for p in files}
    if len(by_stem) < len(files):
        twice = next(p for p in files if by_stem[p.stem] != p)
        raise ValueError(f"{twice} and {by_stem[twice.stem]} differ in nothing but the ending; keep one of them")
    return by_stem


def _array(path: Path) -> np.ndarray:
    """The one array in a file."""
    arrays = read_arrays(path)
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {len(arrays)} arrays; save one image to a file")
    array = arrays[0][1].array
    if arrays[0][1].spacing is not None:  # a volume becomes a cube in space, which its mask would have to follow
        raise ValueError(f"{path} has a voxel spacing, which masks do not follow; save volume and mask as npy or TIFF")
    return array


def read_mask(path: Path) -> np.ndarray:
    """uint8 labels ``(*spatial)`` of a mask. Raises ValueError if it cannot be read or holds no labels."""
    mask = palette_indices(path)
    if mask is None:
        mask = _array(path)
    if mask.ndim > 2 and mask.shape[-1] in (3, 4):
        raise ValueError(f"mask {path} is in colour, shape {mask.shape}; save label numbers 0..K-1 in one channel")
    if mask.ndim > 2 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.dtype.kind not in "buif" or not np.isin(mask, np.arange(256)).all():
        raise ValueError(f"mask {path} holds values other than whole numbers 0..255; save label numbers 0..K-1")
    return mask.astype(np.uint8)


def _read_split(pairs: Sequence[Pair], channels: int, size: int, dims: int) -> Split:
    images, masks = [], []
    for image_path, mask_path in pairs:
        mask, shape = read_mask(mask_path), _array(image_path).shape[:dims]
        if mask.shape != shape:
            raise ValueError(f"{mask_path} has shape {mask.shape}, its image {image_path} {shape}; they must be equal")
        _, stack = read_images(image_path, channels=channels, size=size, dims=dims)
        images.append(stack)
        if dims == 2:
            top, left = ((s - min(shape)) // 2 for s in shape)
            mask = mask[top : top + min(shape), left : left + min(shape)]
        resized = F.interpolate(torch.tensor(mask)[None, None].float(), (size,) * dims, mode="nearest-exact")
        masks.append(resized[0].to(torch.uint8))
    return Split(torch.cat(images), torch.cat(masks))


def _list(labels: set[int]) -> str:
    return ", ".join(map(str, sorted(labels)))
