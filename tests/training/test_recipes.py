"""What the recipes train with: optimisers and learning rates."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from isoconv.nn import SteerableConv2d
from isoconv.runs import RunDir
from isoconv.training.loop import TrainConfig, train
from isoconv.training.recipes import optimiser, schedule

Learned = Callable[[RunDir], list[dict]]


@pytest.mark.parametrize("recipe", ["standard", "official"])
def test_the_papers_optimiser(recipe: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    (group,) = optimiser(recipe, net, 2e-2).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (2e-2, 0.9, 1e-3, False)
    assert len(group["params"]) == 4


def test_recipe_modern_decays_the_weights_alone() -> None:
    conv, norm = SteerableConv2d(1, "2x0 + 1x1", 3), nn.BatchNorm2d(4)
    used = optimiser("modern", nn.Sequential(conv, norm), 1e-3)
    assert isinstance(used, torch.optim.AdamW)
    weights, others = used.param_groups
    assert weights["params"] == [conv.weight_0_0, conv.weight_0_1]
    assert set(others["params"]) == {conv.bias, norm.weight, norm.bias}
    assert (weights["weight_decay"], others["weight_decay"], weights["lr"]) == (0.05, 0.0, 1e-3)


@pytest.mark.parametrize(("recipe", "every"), [("standard", 1), ("official", 30)])
def test_the_papers_learning_rate_falls_along_half_a_cosine(recipe: str, every: int) -> None:
    share = schedule(recipe, 0.02, 10, 30)
    for step in range(301):
        expected = 1e-6 + (0.02 - 1e-6) * (1 + math.cos(math.pi * (step - step % every) / 300)) / 2
        assert 0.02 * share(step) == pytest.approx(expected)


def test_recipe_modern_has_one_cycle() -> None:
    share = schedule("modern", 0.02, 10, 30)
    rates = [0.02 * share(step) for step in range(301)]
    assert rates[0] == pytest.approx(0.02 / 25)
    assert rates[15] == pytest.approx((rates[0] + 0.02) / 2)
    assert rates[30] == max(rates) == pytest.approx(0.02)
    assert rates[30 + 135] == pytest.approx((0.02 + 1e-6) / 2)
    assert rates[300] == pytest.approx(1e-6)


@pytest.mark.parametrize("recipe", ["standard", "official", "modern"])
def test_the_recorded_learning_rate_follows_the_recipe(config: TrainConfig, recipe: str) -> None:
    lines = train(replace(config, recipe=recipe, lr=0.02)).metrics()
    share = schedule(recipe, 0.02, epochs=3, steps=3)
    assert [line["lr"] for line in lines] == pytest.approx([0.02 * share(3 * epoch) for epoch in range(3)])


def test_recipe_modern_sees_the_images_of_recipe_standard(
    config: TrainConfig, tmp_path: Path, learned: Learned
) -> None:
    run = train(replace(config, recipe="modern", epochs=1))
    other = train(replace(config, recipe="standard", epochs=1, out=tmp_path / "standard"))
    assert run.model_info["input_size"] == other.model_info["input_size"]
    assert run.model_info["masked"]
    assert learned(run) != learned(other)


@pytest.mark.parametrize(("model", "norm"), [("sre_resnet18", "unit"), ("resnet18", "none")])
def test_recipe_modern_trains_rows_of_unit_norm(config: TrainConfig, tmp_path: Path, model: str, norm: str) -> None:
    run = train(replace(config, recipe="modern", epochs=1, model=model))
    assert run.config.norm == norm
    assert run.model_info["model"].get("norm", "none") == norm
    usual = train(replace(config, epochs=1, model=model, out=tmp_path / "usual"))
    assert usual.config.norm == "none"
    older = {key: value for key, value in run.config.to_json().items() if key != "norm"}
    assert TrainConfig.from_json(older).norm == "none"  # what there was before there was a choice


def test_recipe_modern_has_no_preconditioning(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="AdamW scales every gradient itself.*leave out --precondition"):
        train(replace(config, recipe="modern", precondition=True))
    assert not config.out.exists()
    assert not train(replace(config, recipe="modern", epochs=1)).config.precondition
