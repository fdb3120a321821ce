"""Initialisation keeps the scale of activations."""

import math

import pytest
import torch
from torch import nn

import isoconv
from isoconv.bands import band_plan
from isoconv.nn.init import ring_energy

CHANNELS, DEPTH = 32, 8


def smooth_images(count: int, size: int = 32, length: float = 3.0) -> torch.Tensor:
    """Gaussian random images of unit variance whose pixels correlate over ``length`` pixels."""
    frequency = torch.fft.fftfreq(size)
    damping = torch.exp(-2 * (math.pi * length) ** 2 * (frequency[:, None] ** 2 + frequency**2))
    images = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, CHANNELS, size, size)) * damping).real
    return images / images.std()


def second_moments(conv: type[nn.Module], k: int, x: torch.Tensor, **options: object) -> torch.Tensor:
    moments = []
    for _ in range(DEPTH):
        x = conv(CHANNELS, CHANNELS, k, padding=k // 2, padding_mode="circular", **options)(x)
        moments.append(x.square().mean())
        x = x.relu()
    return torch.stack(moments)


@torch.no_grad()
def ratio(k: int, **options: object) -> torch.Tensor:
    runs = []
    for seed in range(3):
        torch.manual_seed(seed)
        x = smooth_images(4)
        runs.append(second_moments(isoconv.SREConv2d, k, x, **options) / second_moments(nn.Conv2d, k, x))
    return torch.stack(runs).log().mean(dim=0).exp()


@pytest.mark.parametrize("k", [3, 5, 9, 15])
def test_default_stays_within_a_factor_of_two_of_torch_through_a_deep_network(k: int) -> None:
    ratios = ratio(k)
    assert ratios.max() < 2
    assert ratios.min() > 0.5


@pytest.mark.parametrize("k", [3, 9])
def test_the_official_initialisation_does_not(k: int) -> None:
    assert ratio(k, init="official")[0] > 4


@pytest.mark.parametrize("norm", ["none", "unit"])
def test_official_bounds(norm: str) -> None:
    layer = isoconv.SREConv2d(3, 512, 3, init="official", norm=norm)
    bound = 1 / math.sqrt(3 * 9)
    for values in (layer.kernel(), layer.bias):
        assert 0.9 * bound < values.abs().max() <= bound * (1 + 1e-6)


def test_kernels_are_drawn_alike_whatever_the_norm_of_the_rows() -> None:
    kernels = []
    for norm in ("none", "unit"):
        torch.manual_seed(0)
        kernels.append(isoconv.SREConv2d(16, 16, 9, profile="gaussian", norm=norm).kernel())
    torch.testing.assert_close(*kernels)


def test_bands_contribute_equally_by_default() -> None:
    layer = isoconv.SREConv2d(64, 512, 9)
    energy = layer.weight.detach().square().mean(dim=(0, 1)) * torch.tensor(ring_energy(layer.plan))
    torch.testing.assert_close(energy / energy.mean(), torch.ones(5), atol=0.05, rtol=0)


def test_energy_of_one_tap_is_that_of_the_input() -> None:
    assert ring_energy(band_plan((3, 3)))[0] == pytest.approx(1)


def test_energy_lies_between_that_of_noise_and_of_a_constant() -> None:
    for energy, taps in zip(ring_energy(band_plan((9, 9))), (1, 8, 12, 16, 32), strict=True):
        assert taps <= energy + 1e-9
        assert energy <= taps**2 + 1e-9
