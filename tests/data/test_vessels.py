"""The synthetic segmentation sets."""

import pytest
import torch

from isoconv.data import vessels
from isoconv.data.vessels import VESSELS, generate


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    for name, task in VESSELS.items():
        monkeypatch.setitem(vessels.VESSELS, name, replace(task, counts=(4, 2, 3)))


@pytest.mark.parametrize("name", ["vessels", "vessels3d"])
def test_same_arguments_give_the_same_bytes(name: str) -> None:
    a, b, other = generate(name, 20), generate(name, 20), generate(name, 20, seed=1)
    assert torch.equal(a.test.images, b.test.images)
    assert torch.equal(a.test.labels, b.test.labels)
    assert not torch.equal(a.test.images, other.test.images)
    assert not torch.equal(a.train.images[:2], a.val.images[:2])


@pytest.mark.parametrize("name", ["vessels", "vessels3d"])
def test_shapes_and_labels(name: str) -> None:
    data = generate(name, 20)
    assert [len(s) for s in (data.train, data.val, data.test)] == [4, 2, 3]
    assert data.train.images.shape == (4, 1, *[20] * data.task.dims)
    assert data.train.labels.shape == (4, *[20] * data.task.dims)
    assert data.train.images.dtype == data.train.labels.dtype == torch.uint8
    assert data.train.labels.unique().tolist() == [0, 1, 2]


def test_another_size_shows_the_same_scenes() -> None:
    small, large = generate("vessels", 24).train.labels, generate("vessels", 48).train.labels
    assert (large[:, ::2, ::2] == small).float().mean() > 0.9


def test_vessels_run_down_the_image() -> None:
    vessel = (generate("vessels", 48).train.labels == 1).float()
    assert vessel.mean(1).std() > 2 * vessel.mean(2).std()


def test_a_small_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        generate("vessels", 15)
