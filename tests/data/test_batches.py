"""Batches: what is drawn is a function of seed, epoch, rank and number alone, and every image is drawn once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isoconv.data import DeviceBatches, Split, resize


class Noise(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images + 0.1 * torch.rand(len(images), 1, 1, 1)).clamp(0, 1)


def numbered(count: int) -> Split:
    """Images whose pixels, and whose labels, are their number."""
    labels = torch.arange(count)
    return Split(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels)


def batches(count: int, batch_size: int, **options: object) -> DeviceBatches:
    defaults = {"device": "cpu", "seed": 0, "shuffle": True}
    return DeviceBatches(numbered(count), batch_size, **{**defaults, **options})


def labels_of(drawn: DeviceBatches) -> list[list[int]]:
    return [labels.tolist() for _, labels in drawn]


@pytest.mark.parametrize("batch_size", [0, -3])
def test_empty_batches_are_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        batches(4, batch_size)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 16), world=st.integers(1, 4), seed=st.integers(0, 9))
def test_ranks_share_every_image_evenly(count: int, batch_size: int, world: int, seed: int) -> None:
    if world > min(count, batch_size):
        with pytest.raises(ValueError, match="cannot feed .* processes; use fewer processes or larger batches"):
            batches(count, batch_size, world_size=world)
        return
    ranks = [batches(count, batch_size, seed=seed, rank=rank, world_size=world) for rank in range(world)]
    drawn = [labels_of(rank) for rank in ranks]
    assert sorted(label for rank in drawn for batch in rank for label in batch) == list(range(count))
    assert {len(rank) for rank in drawn} == {len(ranks[0])}
    assert all(batch for rank in drawn for batch in rank)


def test_images_and_labels_stay_together() -> None:
    for images, labels in batches(20, 6):
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_order_depends_on_seed_and_epoch_only() -> None:
    first, again, other = batches(30, 8), batches(30, 8), batches(30, 8, seed=1)
    assert labels_of(first) == labels_of(again) == labels_of(first) != labels_of(other)
    epoch_0 = labels_of(first)
    first.set_epoch(1)
    assert labels_of(first) != epoch_0
    first.set_epoch(0)
    assert labels_of(first) == epoch_0


def test_a_split_that_is_not_shuffled_keeps_its_order() -> None:
    assert labels_of(batches(10, 4, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_augmentation_depends_on_seed_epoch_and_rank_and_leaves_the_generator_alone() -> None:
    one, again = batches(8, 8, augment=Noise()), batches(8, 8, augment=Noise())
    torch.manual_seed(1)
    (first, _), before = next(iter(one)), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), before)
    torch.manual_seed(2)
    assert torch.equal(next(iter(again))[0], first)
    again.set_epoch(1)
    in_order = next(iter(again))[1].argsort()
    assert not torch.equal(next(iter(again))[0][in_order], first[next(iter(one))[1].argsort()])


@pytest.mark.parametrize("rank", [-1, 2])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank must lie in 0\.\.1, got {rank}"):
        batches(8, 4, rank=rank, world_size=2)


@pytest.mark.parametrize("dims", [2, 3])
def test_resizing_keeps_a_constant_and_a_linear_image(dims: int) -> None:
    shape = (2, 1) + (28,) * dims
    assert torch.allclose(resize(torch.full(shape, 0.3), 32), torch.tensor(0.3))
    ramp = torch.linspace(0, 1, 28).expand(shape)
    inside = resize(ramp, 32)[..., 2:-2]
    assert torch.allclose(inside.diff(), inside.diff().mean(), atol=1e-5)
    assert resize(ramp, 28) is ramp


def test_batches_are_resized() -> None:
    images, _ = next(iter(batches(4, 4, resize=8)))
    assert images.shape == (4, 1, 8, 8)
    assert images.dtype == torch.float32
