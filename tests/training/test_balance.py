"""Rare classes: weights in the loss, or drawn as often as the others."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from isoconv.data import DeviceBatches, Split, get_task
from isoconv.runs import RunDir
from isoconv.tasks import task_of
from isoconv.training.loop import TrainConfig, train

Learned = Callable[[RunDir], list[dict]]
CELLS = task_of(get_task("cells"))


def test_with_class_weights_every_class_weighs_the_same() -> None:
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3] * 1 + [4] * 1)
    weights = CELLS.class_weights(labels)
    assert weights is not None
    assert torch.allclose(weights[labels].sum() / len(labels), torch.tensor(1.0))
    shares = torch.zeros(5).index_add(0, labels, weights[labels])
    assert torch.allclose(shares, torch.full((5,), 16 / 5))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_the_weighted_loss_is_that_of_repeated_images(name: str) -> None:
    torch.manual_seed(0)
    labels, logits, loss = torch.tensor([0, 0, 0, 1]), torch.randn(4, 2), CELLS.losses[name]
    weighted = loss(logits, labels, weight=torch.tensor([4 / 6, 4 / 2]))
    rows = [0, 1, 2, 3, 3, 3]
    assert weighted.item() == pytest.approx(loss(logits[rows], labels[rows]).item())
    if name == "cross_entropy":
        means = F.cross_entropy(logits, labels, torch.tensor([4 / 6, 4 / 2]), reduction="sum") / 4
        assert weighted.item() == pytest.approx(means.item())


def test_sampling_draws_every_class_as_often() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    split = Split(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)
    weights = torch.tensor([100 / 180, 100 / 20])
    batches = DeviceBatches(split, 10, device="cpu", seed=0, shuffle=True, chances=weights[labels])
    drawn = []
    for epoch in range(20):
        batches.set_epoch(epoch)
        drawn.append(torch.cat([labels for _, labels in batches]))
    assert len(drawn[0]) == 100
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.stack(drawn).float().mean().item() == pytest.approx(0.5, abs=0.05)
    batches.set_epoch(1)
    assert torch.equal(torch.cat([labels for _, labels in batches]), drawn[1])


@pytest.mark.parametrize(
    ("recipe", "rare", "chosen"),
    [("modern", 5, "weights"), ("modern", 6, "none"), ("standard", 5, "none"), ("official", 5, "none")],
)
def test_auto_weights_uneven_classes_in_recipe_modern(
    config: TrainConfig,
    data: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
    recipe: str,
    rare: int,
    chosen: str,
) -> None:
    caplog.set_level(logging.INFO, "isoconv")
    data.train = Split(data.train.images, torch.tensor([1] * rare + [0] * (20 - rare)))
    run = train(replace(config, recipe=recipe, epochs=1))
    assert run.config.balance == chosen
    assert ("the largest class has 3.0 times the images" in caplog.text) == (chosen == "weights")


def test_each_choice_trains_another_network(config: TrainConfig, data: SimpleNamespace, learned: Learned) -> None:
    data.train = Split(data.train.images, torch.tensor([1] * 5 + [0] * 15))
    runs = [
        train(replace(config, balance=balance, epochs=1, out=Path(f"{config.out}-{balance}")))
        for balance in ("none", "weights", "sampling")
    ]
    losses = [learned(run)[0]["train_loss"] for run in runs]
    assert len(set(losses)) == 3
    assert train(replace(runs[2].config, balance="sampling"), resume=True).metrics() == runs[2].metrics()


def test_what_has_no_classes_has_none_to_balance(tmp_path: Path) -> None:
    config = TrainConfig("vessels", "sre_unet", tmp_path / "x", size=16, width=2, device="cpu", balance="weights")
    with pytest.raises(ValueError, match=r"segmentation \(segmentation\) has no classes to balance; leave out"):
        train(config)
    assert not (tmp_path / "x").exists()
