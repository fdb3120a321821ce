"""Cross-validation: every image is tested once, classes are spread evenly, no patient is in two folds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoconv.data import find
from isoconv.data.listing import Item, assign, folded
from isoconv.runs.config import TrainConfig

ITEMS = [
    Item(Path(f"{patient}_{i}.png"), ("rare" if patient % 4 == 0 else "common",), patient=f"p{patient}")
    for patient in range(40)
    for i in range(1 + patient % 3)
]
UNLABELLED = [Item(Path(f"{i}.png"), (), values={"age": float(i)}, patient=f"p{i // 2}") for i in range(40)]


@pytest.mark.parametrize("found", [ITEMS, UNLABELLED], ids=["classes", "numbers"])
def test_each_image_is_tested_once_and_patients_stay_whole(found: list[Item]) -> None:
    tested: list[Path] = []
    for fold in range(1, 6):
        assigned = assign(folded(found, fold, 5))
        splits: dict[str, set[str]] = {}
        for item in assigned:
            splits.setdefault(item.patient, set()).add(item.split)
        assert max(map(len, splits.values())) == 1
        assert {item.split for item in assigned} == {"train", "val", "test"}
        tested += [item.path for item in assigned if item.split == "test"]
    assert sorted(tested) == sorted(item.path for item in found)


def test_classes_are_spread_evenly() -> None:
    counts = [
        Counter(item.labels[0] for item in folded(ITEMS, fold, 5) if item.split == "test") for fold in range(1, 6)
    ]
    for label in ("rare", "common"):
        assert max(c[label] for c in counts) - min(c[label] for c in counts) <= 3  # images of the largest patient


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([Item(Path("a"), ("x",), split="test"), *ITEMS], "name a test split; for folds, leave the splits out"),
        (ITEMS[:1], "1 patient or image cannot fill 5 folds"),
    ],
)
def test_what_cannot_be_cut(found: list[Item], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folded(found, 1, 5)


def test_published_splits_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="breastmnist has published splits; folds are for images of your own"):
        find("breastmnist", part=(1, 5))
    with pytest.raises(ValueError, match="has its own splits; folds need a folder or a manifest"):
        find(str(tmp_path / "x.npz"), part=(1, 5))


@pytest.mark.parametrize("given", [{"folds": 5}, {"fold": 1}, {"folds": 5, "fold": 6}])
def test_options_that_do_not_fit(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a fold is 1 to the number of folds"):
        TrainConfig("x", "resnet18", Path("out"), **given)


def test_a_folder_of_masks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind, top in (("images", 256), ("masks", 2)):
        (tmp_path / kind).mkdir()
        for i in range(10):
            Image.fromarray(random.integers(0, top, (16, 16), np.uint8)).save(tmp_path / kind / f"{i}.png")
    counts = [find(str(tmp_path), part=(fold, 5))[0].counts for fold in range(1, 6)]
    assert counts == [(7, 1, 2)] * 5
