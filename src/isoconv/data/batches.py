"""Batches made on the device: a whole split lives there as uint8, and is resized and augmented batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import check_memory, count_of
from isoconv.data.dataset import Split

__all__ = ["DeviceBatches", "resize"]


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images ``(N, C, *spatial)`` to ``size`` pixels a side: linear, antialiased where it shrinks."""
    if images.shape[2:] == (size,) * (images.ndim - 2):
        return images
    if images.ndim == 4:
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    n, c, d, h, w = images.shape
    images = F.interpolate(images.reshape(n, c * d, h, w), (size, size), mode="bilinear", antialias=True)
    images = images.view(n, c, d, size * size)
    return F.interpolate(images, (size, size * size), mode="bilinear", antialias=True).view(n, c, size, size, size)


class DeviceBatches:
    """The batches of one epoch of a split, as ``(images, labels)`` on ``device``.

    Images are float32 ``(B, C, *spatial)`` in [0, 1], resized and augmented, not normalised; labels as in
    :class:`Split`.

    Order and augmentation depend on ``seed``, the epoch, the rank and the batch's number only, so a resumed run sees
    what an uninterrupted one would have seen. Augmentation draws from torch's global generators, which are seeded for
    it batch by batch and restored afterwards.

    Args:
        split: the images; moved to ``device`` once.
        batch_size: of the whole group of processes: a rank gets every ``world_size``-th image of each batch.
        seed: any integer >= 0.
        shuffle: a new order each epoch, else the order of the split.
        chances: of each image relative to the others (N,): an epoch then draws N images with replacement, in place of
            a new order of all.
        augment: maps float images in [0, 1] to such images.
        resize: side in pixels that images get before augmentation, None to leave them as they are.

    Every rank yields the same number of batches, none empty, and each image is in one batch of one rank. For that, a
    last batch with fewer images than there are ranks joins the one before it.

    Raises:
        ValueError: ``batch_size`` is below 1, ``rank`` is not in 0..``world_size`` - 1, a batch or the split has fewer
            images than there are ranks, or a batch exceeds the memory.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device | str,
        seed: int,
        shuffle: bool,
        chances: Tensor | None = None,
        augment: nn.Module | None = None,
        resize: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not world_size <= min(batch_size, len(split)):
            images, processes = count_of(len(split), "image"), count_of(world_size, "process", "processes")
            raise ValueError(
                f"{images} in batches of {batch_size} cannot feed {processes}; use fewer processes or larger batches"
            )
        channels, *spatial = split.images.shape[1:]
        pixels = math.prod(spatial) if resize is None else resize ** len(spatial)
        size = 4 * channels * pixels * min(batch_size, len(split)) / world_size
        check_memory(size, f"a batch of {count_of(batch_size, 'image')}", "use a smaller batch size")
        self.device = torch.device(device)
        self.split = split.to(self.device)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.chances, self.augment, self.resize = chances, augment, resize
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; without it, each iteration yields the same one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil((len(self.split) - self.world_size + 1) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.split))
        generator = torch.Generator().manual_seed(_hash(self.seed, self.epoch))
        if self.chances is not None:
            order = self.chances.multinomial(len(order), replacement=True, generator=generator)
        elif self.shuffle:
            order = torch.randperm(len(order), generator=generator)
        ends = [self.batch_size * i for i in range(1, len(self))] + [len(order)]
        for number, end in enumerate(ends):
            start = self.batch_size * number
            index = order[start:end][self.rank :: self.world_size].to(self.device)
            images = self.split.images[index].float().div_(255)
            if self.resize is not None:
                images = resize(images, self.resize)
            if self.augment is not None:
                images = self._augmented(self.augment, images, number)
            yield images, self.split.labels[index]

    @torch.no_grad()
    def _augmented(self, augment: nn.Module, images: Tensor, number: int) -> Tensor:
        on_cpu = self.device.type == "cpu"
        # torch.manual_seed also visits every accelerator that could be there, which costs 0.7 ms a batch on a CPU
        set_seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        with torch.random.fork_rng([] if on_cpu else [self.device], device_type="cuda" if on_cpu else self.device.type):
            set_seed(_hash(self.seed, self.epoch, 1 + self.rank, number))
            return augment(images)


def _hash(*numbers: int) -> int:
    """A seed that differs for every tuple of numbers, unlike their sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
