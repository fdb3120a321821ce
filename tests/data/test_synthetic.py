"""The embedded sets: the same bytes from the same seed, and everything in them upright."""

import pytest
import torch

from isoconv.data import SYNTHETIC, load, synthetic


def second_moments(images: torch.Tensor) -> torch.Tensor:
    """Mean energy of the differences along each spatial axis, of all images."""
    x = images.float()
    return torch.stack([x.diff(dim=axis).square().mean() for axis in range(2, x.ndim)])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_set_is_what_its_task_says(name: str) -> None:
    data, task = load(name, size=16), SYNTHETIC[name]
    for split, count in zip((data.train, data.val, data.test), task.counts, strict=True):
        assert split.images.shape == (count, task.channels) + (16,) * task.dims
        assert split.images.dtype == torch.uint8
        numbers = torch.bincount(split.labels, minlength=len(task.labels))
        assert numbers.max() - numbers.min() <= 1
    assert not torch.equal(data.val.images[0], data.test.images[0])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_seed_decides_every_byte(name: str) -> None:
    first, again, other = (synthetic.generate(name, 16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.train.images, other.train.images)


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("split", ["train", "test"])
def test_everything_points_one_way(name: str, split: str) -> None:
    """Light comes from the top in every split: the upper half is brighter, left and right are alike."""
    images = getattr(load(name, size=16), split).images.float()
    half = [images.narrow(axis, 0, 8).mean() - images.narrow(axis, 8, 8).mean() for axis in range(2, images.ndim)]
    assert half[0] > 4 * max(abs(each) for each in half[1:])
    energy = second_moments(images)
    assert not torch.isclose(energy[0], energy[1], rtol=0.05)


def test_another_size_shows_the_same_scenes() -> None:
    small, large = (synthetic.generate("cells", size).val for size in (16, 32))
    assert torch.equal(small.labels, large.labels)
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    a, b = ((x - x.mean((1, 2, 3), keepdim=True)).flatten(1) for x in (small.images.float(), shrunk))
    assert torch.cosine_similarity(a, b).mean() > 0.9


def test_too_small_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels a side to show what it holds, got size=15"):
        load("cells", size=15)
