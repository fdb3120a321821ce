"""Images that turn: how small they are, and how many fit into a page."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from isoconv.report.images import drawing, photograph, png
from isoconv.report.turning import _strip, share_out
from isoconv.symmetry import rotate


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{(image.format or '').lower()};base64"
    return image


def turning(count: int, channels: int, side: int = 32) -> Tensor:
    """Frames (count, channels, side, side) of shades and shapes that turn."""
    coarse = torch.rand(1, channels, side // 4, side // 4)
    image = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return torch.cat([rotate(image, 360 * i / count, fill=0.5) for i in range(count)])


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_are_a_third_of_png_and_nearly_as_good(channels: int) -> None:
    strip = _strip(turning(37, channels))
    uri = photograph(strip)
    assert len(uri) < len(png(strip)) / 3
    shown = np.asarray(opened(uri).convert("L"), dtype=int)
    assert np.abs(shown - np.asarray(Image.fromarray(strip).convert("L"), dtype=int)).mean() < 4


def test_png_loses_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    assert np.array_equal(np.asarray(opened(png(pixels))), pixels)


def test_large_images_shrink_and_volumes_show_their_middle_slice() -> None:
    assert _strip(torch.ones(3, 3, 100, 100)).shape == (64, 192, 3)
    volume = torch.zeros(3, 1, 5, 4, 4)
    volume[:, :, 2] = 1
    assert (_strip(volume) == 255).all()
    assert _strip(volume).shape == (4, 12)


def test_drawings_keep_their_shape(tmp_path: Path) -> None:
    shades = np.tile(np.arange(200, dtype=np.uint8), (50, 1))
    Image.fromarray(np.stack([shades, shades, shades, 255 * np.ones_like(shades)], -1)).save(tmp_path / "figure.png")
    again = np.asarray(opened(drawing(tmp_path / "figure.png")))[..., 0].astype(int)
    assert np.abs(again - shades).max() <= 4


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(100, (3, 2, 1)), (99, (2, 2, 1)), (70, (2, 2, 1)), (69, (1, 2, 1)), (49, (1, 1, 1)), (0, (1, 1, 1))],
)
def test_which_takes_the_most_gives_up_its_last(budget: int, kept: tuple[int, ...]) -> None:
    sizes = {"a": [10, 20, 30], "b": [15, 15], "c": [10]}
    assert tuple(share_out(sizes, budget).values()) == kept


def test_eighteen_tasks_share_what_a_page_has_left_and_none_is_left_out() -> None:
    """0.8 MB remain beside tables and charts of the 18 tasks with 17 contestants; 4 images of each are too many."""
    colour, grey, coarse = (len(photograph(_strip(turning(*f)))) for f in ((37, 3, 32), (39, 1, 32), (39, 1, 16)))
    images, volumes = [colour + 2 * grey] * 4, [grey + 2 * coarse] * 4
    sizes = {f"task {i}": images if i < 12 else volumes for i in range(18)}
    assert sum(map(sum, sizes.values())) > 800_000
    kept = share_out(sizes, 800_000)
    assert kept.keys() == sizes.keys()
    assert set(kept.values()) <= {1, 2, 3, 4}
    assert 700_000 < sum(sum(sizes[task][:count]) for task, count in kept.items()) <= 800_000
