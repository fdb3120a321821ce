"""Users' own images with masks, from a folder.

```
images/one.png   masks/one.png      the same names, whatever the endings
```
The two folders lie in the folder itself, which is then split at random, once for all seeds, 70 % to train, 15 % each to
val and test; or in each of its subfolders `train`, `val` and `test`. A mask holds the label of each pixel, whole
numbers 0..K-1, 0 the background, in a file of one channel or as the numbers of a palette's colours; where all masks
are black and white, 0 and 255, white is label 1. A 3D mask makes the task 3D. What is done to the images, see
:mod:`isoconv.data.files`; a mask is cropped like its image and resized to the nearest pixel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from isoconv.data.dataset import Dataset, Split, Task, fingerprint
from isoconv.data.files import SUFFIXES, images_in, palette_indices, read_arrays, read_images

__all__ = ["read_pairs"]

_SPLITS = ("train", "val", "test")
_SEED = 0
_Pair = tuple[Path, Path]


def read_pairs(folder: Path, size: int) -> Dataset:
    """Read a folder of images and masks at ``size`` pixels a side.

    Raises:
        FileNotFoundError: a folder, or the mask of an image or the image of a mask, does not exist.
        ValueError: a mask is in colour, of another shape than its image, or holds other than 0..K-1; or a label is
            nowhere in a split.
    """
    if all((folder / name).is_dir() for name in _SPLITS):
        pairs = {name: _pairs(folder / name) for name in _SPLITS}
    else:
        found = _pairs(folder)
        if len(found) < len(_SPLITS):
            raise ValueError(f"{folder} has {len(found)} images; train, val and test need at least one each")
        few = max(1, round(0.15 * len(found)))
        order = [found[i] for i in np.random.default_rng(_SEED).permutation(len(found))]
        pairs = {"train": order[2 * few :], "val": order[:few], "test": order[few : 2 * few]}
    first_image, first_mask = pairs["train"][0]
    dims = _labels(first_mask).ndim
    if dims not in (2, 3):
        raise ValueError(f"{first_mask} has {dims} axes; a mask has 2 (image) or 3 (volume)")
    channels = 3 if _array(first_image).ndim > dims and _array(first_image).shape[-1] in (3, 4) else 1
    splits = {name: _read_split(some, channels, size, dims) for name, some in pairs.items()}
    present = {name: set(split.labels.unique().tolist()) for name, split in splits.items()}
    labels = set[int]().union(*present.values())
    if labels == {0, 255}:
        splits = {name: replace(split, labels=split.labels.clamp(max=1)) for name, split in splits.items()}
        present = {name: {min(label, 1) for label in found_labels} for name, found_labels in present.items()}
        labels = {0, 1}
    if labels != set(range(max(2, len(labels)))):
        raise ValueError(
            f"the masks of {folder} must hold labels 0..K-1, they hold {_list(labels)}; number the classes without "
            "a gap, 0 the background"
        )
    for name, found_labels in present.items():
        if missing := labels - found_labels:
            split = (folder / name).is_dir()
            remedy = "move images between the splits" if split else "split it yourself, into train/, val/ and test/"
            raise ValueError(f"label {_list(missing)} is in no mask of split {name} of {folder}; {remedy}")
    names = ("background", *(f"label {i}" for i in range(1, len(labels))))
    counts = (len(pairs["train"]), len(pairs["val"]), len(pairs["test"]))
    task = Task(folder.name, folder.name, "segmentation", dims, channels, names, counts, "not stated")
    known = {name: fingerprint(folder, {image: () for image, _ in some}) for name, some in pairs.items()}
    return Dataset(task, size, **splits, source=str(folder), fingerprints=known)


def _pairs(folder: Path) -> list[_Pair]:
    images, masks = (_by_stem(folder / name) for name in ("images", "masks"))
    for have, lack, what in ((images, masks, "mask in masks/"), (masks, images, "image in images/")):
        if missing := sorted(have.keys() - lack.keys()):
            first = have[missing[0]]
            raise FileNotFoundError(f"{len(missing)} files have no {what} of their name, the first is {first}")
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


def _labels(path: Path) -> np.ndarray:
    """uint8 labels ``(*spatial)``."""
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


def _read_split(pairs: list[_Pair], channels: int, size: int, dims: int) -> Split:
    images, masks = [], []
    for image_path, mask_path in pairs:
        mask, shape = _labels(mask_path), _array(image_path).shape[:dims]
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
