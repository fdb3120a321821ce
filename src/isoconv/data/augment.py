"""Augmentation of whole batches on the device, every image with its own random parameters.

Recipes, all without flips and without rotation unless asked for, so that a network has to be invariant by itself:

- ``"official"``: what the released code of SRE-Conv (arXiv 2501.09753) does under ``--moco-aug --translation``.
  28-pixel images become 32. In 2D a random resized crop (half to all of the area), brightness and saturation by up to
  10 % for every second image, a shift by up to a tenth of the side that bares mid-grey. In 3D a scale of 0.8 to 1.2
  per axis, a shift by up to 3 voxels, a blur of up to half a voxel per axis.
- ``"standard"`` and ``"modern"``: the image as it is, shifted by up to a tenth of the side; in recipe standard by whole
  pixels, in recipe modern by any number. (Their networks see the inscribed disc only.) To turn an image is to
  interpolate it, which takes sharpness away: a network that has seen sharp images alone answers to that loss. A shift
  by a fraction of a pixel teaches it otherwise and turns nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv._extras import require

__all__ = ["RECIPES", "augmentation", "input_size"]

RECIPES = ("standard", "official", "modern")
_SHIFT = 0.1  # of the side


def input_size(recipe: str, size: int) -> int:
    """Side in pixels at which a network sees images of ``size`` pixels. Raises ValueError for an unknown recipe."""
    if recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise ValueError(f"unknown recipe {recipe!r}, there are {known}{did_you_mean(recipe, RECIPES)}")
    return 32 if recipe == "official" and size == 28 else size


def augmentation(recipe: str, dims: int, size: int, *, rotate: bool = False) -> nn.Module:
    """The training augmentation of a recipe. Needs the extra ``study``.

    Args:
        recipe: one of :data:`isoconv.data.RECIPES`.
        dims: 2 for images, 3 for volumes.
        size: side of the images that come in, and of those that go out: ``input_size(recipe, ...)``.
        rotate: also turn every image by a random angle, every volume by a random rotation of SO(3); bared corners get
            the colour that a shift bares.

    Returns:
        A module from float ``(B, C, *spatial)`` in [0, 1] to the same, on any device. It draws from torch's global CPU
        generator, so a seed gives the same augmentation on every device.

    Raises:
        ValueError: unknown recipe, or ``dims`` is neither 2 nor 3.
    """
    input_size(recipe, size)  # refuses an unknown recipe
    official = recipe == "official"
    mode = "bilinear" if rotate or recipe == "modern" else "nearest"  # a shift by whole pixels loses nothing
    if dims == 3:
        shift, scale = (3, 0.2) if official else (_SHIFT * size, 0.0)
        affine = _RandomAffine3d(shift, scale, "bilinear" if official else mode, rotate=rotate)
        return nn.Sequential(affine, _RandomBlur3d(0.5)) if official else affine
    if dims != 2:
        raise ValueError(f"augmentation is for 2 (images) or 3 (volumes) dims, got {dims}")
    kornia = require("kornia.augmentation", "study")
    affine = kornia.RandomAffine(
        degrees=180.0 if rotate else 0.0,
        translate=(_SHIFT, _SHIFT),
        resample=mode,
        padding_mode="fill",
        fill_value=0.5 if official else 0.0,
        p=1.0,
    )
    if not official:
        return affine
    crop = kornia.RandomResizedCrop((size, size), scale=(0.5, 1.0), cropping_mode="resample")
    return nn.Sequential(crop, kornia.ColorJitter(brightness=0.1, saturation=0.1, p=0.5), affine)


class _RandomAffine3d(nn.Module):
    """Per axis, a shift of -``shift`` to ``shift`` voxels and a scale of 1 +- ``scale``; a rotation of SO(3).

    Kornia's own draws Euler angles, whose rotations are not uniform.
    """

    def __init__(self, shift: float, scale: float, mode: str, *, rotate: bool) -> None:
        super().__init__()
        self.shift, self.scale, self.mode, self.rotate = shift, scale, mode, rotate

    def forward(self, x: Tensor) -> Tensor:
        def uniform(half_width: float) -> Tensor:
            return half_width * (2 * torch.rand(len(x), 3) - 1)

        shrink = 1 / (1 + uniform(self.scale))
        if not self.rotate:
            return _resample_by_axis(x, shrink.to(x), uniform(self.shift).to(x), self.mode)
        conversions = require("kornia.geometry.conversions", "study")
        quaternion = F.normalize(torch.randn(len(x), 4), dim=1)
        linear = conversions.quaternion_to_rotation_matrix(quaternion) @ torch.diag_embed(shrink)
        sides = torch.tensor(x.shape[:1:-1])
        theta = torch.cat([linear, (2 * uniform(self.shift) / sides).unsqueeze(-1)], dim=-1)
        grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode=self.mode, align_corners=False)


def _resample_by_axis(x: Tensor, shrink: Tensor, shift: Tensor, mode: str) -> Tensor:
    """What ``grid_sample`` does for a scale and a shift of each axis, last axis first: a matrix per axis, several times
    as fast."""
    for scale, offset in zip(shrink.unbind(1), shift.unbind(1), strict=True):
        side = x.shape[-1]  # the product moves this axis to the front
        index = torch.arange(side, device=x.device)
        centre = (side - 1) / 2
        source = torch.outer(scale, index - centre) + centre + offset[:, None]
        if mode == "nearest":
            source = source.round()
        weights = (1 - (source[:, :, None] - index).abs()).clamp_min(0)
        x = torch.einsum("bij,bcdhj->bcidh", weights, x)
    return x


class _RandomBlur3d(nn.Module):
    """Gaussian blur, its width drawn per volume and axis from 0 to ``sigma`` <= 0.5 voxels."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        taps = torch.arange(-2, 3)
        sigma = self.sigma * torch.rand(3, len(x), 1).clamp_min(1e-3)
        weights = F.softmax(-(taps**2) / (2 * sigma**2), dim=-1).to(x)
        for axis, weight in enumerate(weights, start=2):
            pad = [0, 0] * (4 - axis) + [2, 2] + [0, 0] * (axis - 2)
            padded, side = F.pad(x, pad, mode="replicate"), x.shape[axis]
            x = sum(weight[:, i].view(-1, 1, 1, 1, 1) * padded.narrow(axis, i, side) for i in range(len(taps)))
        return x
