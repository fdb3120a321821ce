"""Images that turn: how small they are, and how many fit into a page."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from isoconv import data
from isoconv.evaluation.protocols import conditions
from isoconv.report import page as page_module
from isoconv.report import write_report
from isoconv.report.images import drawing, label_colours, overlay, photograph, png
from isoconv.report.scores import gather
from isoconv.report.turning import _strip, _words, share_out, turning_images
from isoconv.study.plan import load_study
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


@pytest.mark.parametrize("labels", [2, 3, 7, 12])
def test_labels_of_a_mask_have_colours_of_their_own(labels: int) -> None:
    background, *colours = label_colours(labels)
    assert background == "transparent"
    assert len(set(colours)) == labels - 1
    mask = np.arange(labels, dtype=np.uint8)[None].repeat(2, 0)
    pixels = overlay(mask, labels)
    assert pixels.shape == (2, labels, 4)
    assert (pixels[:, 0] == 0).all()
    assert [f"#{bytes(pixel[:3]).hex()}" for pixel in pixels[1, 1:]] == colours
    assert ((pixels[:, 1:, 3] > 100) & (pixels[:, 1:, 3] < 200)).all()  # the image is seen through them


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


# On a page

Turning = Callable[[Path], dict[str, Any]]


@pytest.fixture
def data_of() -> Turning:
    """What a page holds of images that turn."""

    def read(page: Path) -> dict[str, Any]:
        match = re.search(r'<script type="application/json" id="turn-json">(.*?)</script>', page.read_text(), re.DOTALL)
        assert match is not None
        return json.loads(match[1])

    return read


def test_turning_images(page: Path, data_of: Turning, runs: Path) -> None:
    turning = data_of(page)
    assert list(turning) == ["cells"]  # of the volumes only one of the two contestants has run
    cells = turning["cells"]
    labels = [reading["title"] for reading in cells["readings"]]
    assert {(reading["unit"], reading["colour"]) for reading in cells["readings"]} == {("%", None)}
    assert len(cells["positions"]) == 36
    assert cells["positions"][3] == "30°"
    arrays = [np.load(runs / f"cells-{name}-s0" / "predictions.npz") for name in ("sre", "plain")]
    for example in cells["examples"]:
        number, label = re.fullmatch(r"no\. (\d+), (\w+)", example["title"]).groups()  # type: ignore[union-attr]
        assert labels[arrays[0]["standard_labels"][int(number)]] == label
        assert example["truth"] is None
        assert example["strip"].startswith("data:image/webp;base64,")
        assert len(example["answers"]) == 2
        for answer, array in zip(example["answers"], arrays, strict=True):
            assert answer["maps"].startswith("data:image/webp;base64,")
            assert answer["masks"] is None
            logits = torch.from_numpy(array["standard_logits"][:36, int(number)])
            assert np.array(answer["readings"]) == pytest.approx(logits.softmax(1).numpy(), abs=1e-3)
            assert answer["said"] == [labels[i] for i in logits.argmax(1)]
            assert answer["right"] == [said == label for said in answer["said"]]
            shares = [f"accuracy {'100.0' if right else '0.0'} %" for right in answer["right"]]
            assert answer["scores"] == shares


def test_images_that_are_others_now_are_left_out(
    toml: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gathered = gather(load_study(toml), runs, "standard")
    assert list(turning_images(gathered)) == ["cells"]
    few = replace(data.TASKS["cells"], counts=(60, 20, 30))
    for sets in (data.TASKS, data.SYNTHETIC):
        monkeypatch.setitem(sets, "cells", few)
    assert turning_images(gathered) == {}
    assert (
        "no turning images of cells: the runs were tested on 40 images, which are not those of the file" in caplog.text
    )


def test_images_that_turn_keep_to_what_the_page_may_take(
    toml: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_of: Turning
) -> None:
    study, out, sizes = load_study(toml), tmp_path / "report.html", []
    for budget, examples in ((10**9, 4), (-1, 3), (0, 1)):
        monkeypatch.setattr(page_module, "BUDGET", budget if budget >= 0 else sizes[-1] - 1)
        write_report(study, runs, out)
        sizes.append(out.stat().st_size)
        assert {name: len(it["examples"]) for name, it in data_of(out).items()} == {"cells": examples}
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("protocol", "dims", "words"),
    [
        ("standard", 2, ["0°", "10°"]),
        ("standard", 3, ["0°, rotation 0 of the cube", "random rotation 31"]),
        ("official", 3, ["30° about the depth axis", "360° about the width axis"]),
    ],
)
def test_positions_in_words(protocol: str, dims: int, words: list[str]) -> None:
    shown = [_words(p) for p in conditions(protocol, dims) if p.group in ("rotation", "cube")]
    assert [word for word in words if not any(word in each for each in shown)] == []
