"""What the TOML file of a study may say."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoconv.data.listing import SPLITS
from isoconv.study.plan import Cell, command, load_study
from isoconv.study.running import _check_networks

STUDIES = Path(__file__).parents[2] / "studies"

Write = Callable[[str], Path]


def test_cells_and_their_configs(write: Write) -> None:
    study = load_study(
        write(
            """
            title = "both dimensions"
            data = ["breastmnist", "adrenalmnist3d"]
            protocols = ["official"]
            [options]
            width = 8
            lr = 1
            2d = { width = 16 }
            3d = { stem_stride = 2 }
            [[contestant]]
            name = "large"
            title = "large kernels"
            model = "resnet18"
            2d = { kernel_sizes = [9, 9, 5, 5] }
            3d = { width = 4 }
            [[averaged]]
            name = "large-4"
            of = "large"
            turns = 4
            """
        )
    )
    assert [cell.name for cell in study.cells] == ["breastmnist-large-s0", "adrenalmnist3d-large-s0"]
    flat, volume = (study.config(cell, Path("runs"), threads=3) for cell in study.cells)
    assert (flat.model, flat.width, flat.kernel_sizes, flat.stem_stride) == ("resnet18", 16, (9, 9, 5, 5), None)
    assert (volume.model, volume.width, volume.kernel_sizes, volume.stem_stride) == ("resnet18_3d", 4, None, 2)
    assert (flat.lr, flat.threads, flat.out) == (1.0, 3, Path("runs/breastmnist-large-s0"))
    assert (study.name, study.title, study.headline) == ("tiny", "both dimensions", ("large", "large-4"))
    assert [(a.name, a.of, a.turns) for a in study.averaged] == [("large-4", "large", 4)]


def test_the_first_seed_of_everything_comes_first(write: Write, tiny: str) -> None:
    assert [c.name for c in load_study(write(tiny)).cells] == [
        "cells-sre-s0",
        "cells-plain-s0",
        "cells-sre-s1",
        "cells-plain-s1",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = ["cells"]', "", r"tiny.toml: data must be a list of at least one entry"),
        ('data = ["cells"]', 'data = "cells"', r"data must be a list, got 'cells'"),
        ('data = ["cells"]', "data = [1]", r"data must be a string, got 1"),
        ('["cells"]', '["cels"]', r"unknown data set 'cels'; did you mean 'cells'"),
        ('["cells"]', '["cells", "cells"]', r"data cells is given more than once"),
        ("seeds", "sseds", r"unknown key 'sseds'; did you mean 'seeds'\?"),
        ("[0, 1]", "[0, 0]", r"seeds 0 is given more than once"),
        ("[0, 1]", "[true]", r"seeds must be a whole number, got True"),
        ("[0, 1]", "[-1]", r"^[^:]*: seeds must be at least 0, got -1"),
        ("width = 2", "widht = 2", r"options: option 'widht'; did you mean 'width'\?"),
        ("width = 2", "width = 0", r"contestant .sre.: width must be a whole number from 1 to 16384, got 0"),
        ("width = 2", 'width = "2"', r"options: width must be a whole number, got '2'"),
        ("width = 2", "rotate = 1", r"options: rotate must be true or false, got 1"),
        ("width = 2", 'lr = "x"', r"options: lr must be a number, got 'x'"),
        ("width = 2", 'recipe = "offical"', r"recipe must be one of standard, official, modern, got 'offical'"),
        ("width = 2", 'balance = "weight"', r"balance must be one of none, weights, sampling, got 'weight'"),
        ("width = 2", "balance = 1", r"balance must be one of none, weights, sampling, got 1"),
        ("width = 2", "threads = 2", r"'threads' does not belong into a study; give --threads to `isoconv study run`"),
        ("width = 2", 'data_root = "x"', r"give --data-root"),
        ("width = 2", "2d = 3", r"2d must be a table, got 3"),
        ("width = 2", "3d = { widht = 3 }", r"options: option 'widht'; did you mean"),
        ("[options]", "[[options]]", r"options must be a table, got \["),
        ("[3, 3, 3, 3]", "3", r"contestant 'sre': kernel_sizes must be a list, got 3"),
        ("[3, 3, 3, 3]", "[3.0]", r"contestant 'sre': kernel_sizes must be a whole number, got 3.0"),
        ("kernel_sizes", "kernels", r"unknown contestant 'sre': option 'kernels'; did you mean 'kernel_sizes'"),
        ('"sre_resnet18"', '"sre_resnet"', r"model 'sre_resnet' is unknown.*did you mean .*'sre_resnet18'"),
        ('model = "sre_resnet18"', "", r"contestant 'sre' has no model"),
        ('name = "plain"', 'name = "sre"', r"contestant sre is given more than once"),
        ('name = "plain"', 'name = "../x"', r"a name must be of small letters.*got '../x'"),
        ('name = "plain"', "", r"a name must be of small letters.*got None"),
        ("[[contestant]]", "[[contestants]]", r"unknown key 'contestants'; did you mean 'contestant'"),
        ('data = ["cells"]', 'data = ["cells"]\nprotocols = ["offical"]', r"did you mean 'official'"),
        (
            'data = ["cells"]',
            'data = ["cells"]\nheadline = ["sre"]',
            r"headline must name at least two contestants, got 1",
        ),
        ('data = ["cells"]', 'data = ["cells"]\nheadline = ["sre", "plan"]', r"'plan' is unknown.*mean 'plain'"),
        ('data = ["cells"]', "data = [", r"tiny.toml is not valid TOML"),
    ],
)
def test_mistakes_in_a_file(write: Write, tiny: str, old: str, new: str, message: str) -> None:
    assert old in tiny
    with pytest.raises(ValueError, match=message) as error:
        load_study(write(tiny.replace(old, new)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('name = "plain-4"', r"averaged 'plain-4' has no of and no turns"),
        ('name = "plain-4"\nof = "plan"\nturns = 4', r"of 'plan' is unknown.*did you mean 'plain'"),
        ('name = "plain-4"\nof = "plain"\nturns = 5', r"turns must be one of 2, 3, 4, .* got 5"),
        ('name = "plain"\nof = "plain"\nturns = 4', r"contestant plain is given more than once"),
        ('name = "plain-4"\nof = "plain"\nturn = 4', r"unknown averaged: key 'turn'; did you mean 'turns'"),
    ],
)
def test_mistakes_in_averaged(write: Write, tiny: str, lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_study(write(f"{tiny}\n[[averaged]]\n{lines}"))


def test_a_contestant_without_a_single_cell(write: Write, tiny: str) -> None:
    volumes = tiny.replace('"cells"', '"cells3d"').replace('"resnet18"', '"c4_resnet18"')
    message = (
        r"contestant 'plain': c4_resnet18 \(classification, 2D\) fits none of the data, which are cells3d "
        r"\(classification, 3D\)"
    )
    with pytest.raises(ValueError, match=message):
        load_study(write(volumes))
    assert len(load_study(write(volumes.replace('"cells3d"', '"cells3d", "cells"'))).cells) == 6


def test_data_without_a_single_cell(write: Write, tiny: str) -> None:
    with pytest.raises(
        ValueError, match=r"no contestant has a model for vessels \(segmentation, 2D\); `isoconv models`"
    ):
        load_study(write(tiny.replace('"cells"', '"cells", "vessels"')))


def test_which_of_a_family_does_not_matter(write: Write, tiny: str) -> None:
    studies = [
        load_study(write(tiny.replace('"sre_resnet18"', f'"{name}"'))) for name in ("sre_resnet18", "sre_resnet18_3d")
    ]
    assert studies[0].cells == studies[1].cells
    assert {study.config(study.cells[0], Path()).model for study in studies} == {"sre_resnet18"}


SEVERAL = """
data = ["cells", "vessels", "vessels3d", "cells3d"]
[[contestant]]
name = "unet"
model = "unet"
3d = { width = 4 }
[[contestant]]
name = "c4"
model = "c4_resnet18"
[[contestant]]
name = "sre"
model = "sre_resnet18"
[[contestant]]
name = "sre-unet"
model = "sre_unet"
[[averaged]]
name = "sre-4"
of = "sre"
turns = 4
[[averaged]]
name = "unet-4"
of = "unet"
turns = 4
"""


def test_each_contestant_works_on_the_data_that_its_model_fits(write: Write) -> None:
    study = load_study(write(SEVERAL))
    assert [(cell.name, study.config(cell, Path()).model) for cell in study.cells] == [
        ("cells-c4-s0", "c4_resnet18"),
        ("cells-sre-s0", "sre_resnet18"),
        ("vessels-unet-s0", "unet"),
        ("vessels-sre-unet-s0", "sre_unet"),
        ("vessels3d-unet-s0", "unet_3d"),
        ("vessels3d-sre-unet-s0", "sre_unet_3d"),
        ("cells3d-sre-s0", "sre_resnet18_3d"),
    ]
    with pytest.raises(ValueError, match="unet of contestant 'unet' is not for cells"):
        study.config(Cell("cells", "unet", 0), Path())


def test_on_each_data_set_the_first_two_of_the_headline_are_compared(write: Write) -> None:
    study = load_study(write(SEVERAL))
    pairs = {data: study.pair(data) for data in study.data}
    segmentation = ("unet", "sre-unet")  # masks of turned images have no mean, nor have those of volumes
    assert pairs == {"cells": ("c4", "sre"), "vessels": segmentation, "vessels3d": segmentation, "cells3d": ("sre",)}
    chosen = load_study(write('headline = ["sre-4", "unet", "sre", "c4"]' + SEVERAL))
    assert chosen.pair("cells") == ("sre-4", "sre")
    assert chosen.pair("cells", trained=True) == ("sre", "c4")
    assert chosen.pair("vessels") == ("unet",)


def test_users_folder_of_masks(write: Write, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "mine" / kind / f"{i}.png")
    study = load_study(write(SEVERAL.replace('"vessels"', json.dumps(str(tmp_path / "mine")))))
    assert [cell.name for cell in study.cells[2:4]] == ["mine-unet-s0", "mine-sre-unet-s0"]


def test_two_cells_of_one_name(write: Write, tiny: str, tmp_path: Path, own_data: Callable[[Path], Path]) -> None:
    paths = [str(own_data(tmp_path / name)) for name in ("a", "a-sre")]
    text = tiny.replace('["cells"]', json.dumps(paths)).replace('name = "plain"', 'name = "sre-sre"')
    with pytest.raises(ValueError, match="cell a-sre-sre-s0, a-sre-sre-s1 is given more than once"):
        load_study(write(text))


def test_a_byte_order_mark_does_not_matter(write: Write, tiny: str) -> None:
    assert load_study(write("\ufeff" + tiny)) == load_study(write(tiny))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"none.toml does not exist; give a TOML file such as studies/quick.toml"
    ):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "count"),
    [("paper", 774), ("standard", 774), ("local", 138), ("local-3d", 42), ("quick", 12), ("directions-medmnist", 36)],
)
def test_committed_studies_can_be_built(name: str, count: int) -> None:
    study = load_study(STUDIES / f"{name}.toml")
    configs = [study.config(cell, Path()) for cell in study.cells]
    assert len({config.out for config in configs}) == len(configs) == count
    _check_networks(configs)


def test_the_study_of_drawn_images_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build/real").mkdir(parents=True)
    images, labels = np.zeros((4, 28, 28), np.uint8), np.arange(4) % 2
    splits = {f"{split}_{what}": part for split in SPLITS for what, part in (("images", images), ("labels", labels))}
    for name in ("pbc", "plankton"):
        np.savez(tmp_path / f"build/real/{name}.npz", **splits)
    study = load_study(STUDIES / "directions.toml")
    configs = [study.config(cell, Path()) for cell in study.cells]
    assert len({config.out for config in configs}) == len(configs) == 48
    _check_networks(configs)


def test_command_trains_the_same(write: Write, tiny: str) -> None:
    study = load_study(write(tiny))
    line = command(study.config(study.cells[0], Path("runs")))
    assert line == (
        "isoconv train --data cells --size 16 --model sre_resnet18 --width 2 --kernel-sizes 3 3 3 3 --epochs 1 "
        "--batch-size 8 --out runs/cells-sre-s0"
    )
    assert "--rotate --seed 1" in command(study.config(Cell("cells", "plain", 1), Path(), rotate=True))
