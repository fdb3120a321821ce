"""Augmentation: every image its own parameters, within the documented ranges, and no turn unless asked for."""

import pytest
import torch
import torch.nn.functional as F

from isoconv.data import RECIPES, augmentation, input_size
from isoconv.data.augment import _resample_by_axis

pytest.importorskip("kornia", reason="augmentation needs the extra 'study'")

CASES = [(recipe, dims, channels) for recipe in RECIPES for dims, channels in ((2, 1), (2, 3), (3, 1))]


def blob(dims: int, channels: int, count: int = 16, size: int = 24) -> torch.Tensor:
    """A bright box, longer along the first axis and off centre, so that turns and flips show."""
    images = torch.zeros(count, channels, *(size,) * dims)
    images[(..., slice(6, 18), slice(9, 13))] = 0.8
    return images


def spread(images: torch.Tensor) -> torch.Tensor:
    """Standard deviation (N, 2) of the box's pixels, brighter than what a shift bares, along the first two axes."""
    image = (images[:, 0] > 0.6).float()
    image = image.sum(3) if image.ndim == 4 else image
    weight = image / image.sum((1, 2), keepdim=True)
    at = torch.arange(image.shape[-1]).float()
    result = []
    for along in (weight.sum(2), weight.sum(1)):
        mean = (along * at).sum(1, keepdim=True)
        result.append((along * (at - mean) ** 2).sum(1).sqrt())
    return torch.stack(result, 1)


@pytest.mark.parametrize(("recipe", "dims", "channels"), CASES)
def test_shape_range_and_determinism(recipe: str, dims: int, channels: int) -> None:
    augment, images = augmentation(recipe, dims, 24), torch.rand(8, channels, *(24,) * dims)
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1 + 1e-5


@pytest.mark.parametrize(("recipe", "dims", "channels"), CASES)
def test_every_image_has_its_own_parameters(recipe: str, dims: int, channels: int) -> None:
    out = augmentation(recipe, dims, 24)(blob(dims, channels))
    assert len({image.sum().item() for image in out} | {tuple(image.flatten().topk(3).indices) for image in out}) > 8


@pytest.mark.parametrize(("recipe", "dims", "channels"), CASES)
def test_nothing_turns_unless_asked_for(recipe: str, dims: int, channels: int) -> None:
    images = blob(dims, channels, count=32)
    upright = spread(augmentation(recipe, dims, 24)(images))
    assert (upright[:, 0] > upright[:, 1]).all()
    turned = spread(augmentation(recipe, dims, 24, rotate=True)(images))
    assert (turned[:, 0] < turned[:, 1]).any()


def test_standard_moves_by_whole_pixels_within_a_tenth() -> None:
    images = torch.zeros(64, 1, 20, 20)
    images[..., 10, 10] = 1.0
    moved = augmentation("standard", 2, 20)(images)
    assert (moved.flatten(1).amax(1) == 1).all()
    rows, columns = (moved.flatten(1).argmax(1) // 20, moved.flatten(1).argmax(1) % 20)
    assert ((rows - 10).abs().max(), (columns - 10).abs().max()) == (2, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_modern_moves_by_fractions_of_a_pixel_within_a_tenth(dims: int) -> None:
    """A single bright pixel is shared by its neighbours so that its place, their mean, is where it was moved to."""
    images = torch.zeros(64, 1, *(20,) * dims)
    images[(..., *(10,) * dims)] = 1.0
    moved = augmentation("modern", dims, 20)(images)
    torch.testing.assert_close(moved.flatten(1).sum(1), torch.ones(64))
    assert (moved.flatten(1).count_nonzero(1) > 1).all()
    along = moved.flatten(2).reshape(64, 20, -1).sum(2) @ torch.arange(20.0) - 10  # the first axis
    assert 1.5 < along.abs().max() <= 2
    assert ((along - along.round()).abs() > 0.1).any()


def test_official_shift_bares_grey_and_standard_black() -> None:
    white = torch.ones(32, 1, 24, 24)
    assert augmentation("standard", 2, 24)(white).min() == 0
    official = augmentation("official", 2, 24)(white)
    assert official.min() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_volumes_are_resampled_as_grid_sample_does(mode: str) -> None:
    x, shrink, shift = torch.rand(5, 2, 9, 12, 7), 0.8 + 0.4 * torch.rand(5, 3), 6 * torch.rand(5, 3) - 3
    theta = torch.cat([torch.diag_embed(shrink), (2 * shift / torch.tensor([7, 12, 9])).unsqueeze(-1)], dim=-1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    expected = F.grid_sample(x, grid, mode=mode, align_corners=False)
    torch.testing.assert_close(_resample_by_axis(x, shrink, shift, mode), expected, atol=1e-5, rtol=0)


def test_the_official_recipe_trains_at_32_pixels() -> None:
    assert [input_size("official", size) for size in (28, 64)] == [32, 64]
    assert input_size("standard", 28) == 28


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'offical'.*official"):
        augmentation("offical", 2, 28)
    with pytest.raises(ValueError, match=r"2 \(images\) or 3 \(volumes\) dims, got 1"):
        augmentation("standard", 1, 28)
