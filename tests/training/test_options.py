"""Options of a training: what is left open is decided by the task, and what does not fit is refused before the work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import isoconv
import isoconv.training.loop as training
from isoconv.data import MEDMNIST, get_task
from isoconv.models import model_config
from isoconv.runs import RunDir
from isoconv.tasks import task_of
from isoconv.training.loop import TrainConfig, resolved, train

Files = Callable[[RunDir], dict[Path, bytes]]


def test_the_loss_that_is_asked_for_is_minimised(config: TrainConfig, tmp_path: Path) -> None:
    usual, focal = (train(replace(config, loss=loss, epochs=1, out=tmp_path / str(loss))) for loss in (None, "focal"))
    assert (usual.config.loss, focal.config.loss) == ("cross_entropy", "focal")
    assert 0 < focal.metrics()[0]["train_loss"] < usual.metrics()[0]["train_loss"]  # (1 - p)^2 of it


def test_options_of_steerable_networks(config: TrainConfig) -> None:
    chosen = {"orders": 1, "reflections": False, "fields": (3, 1), "form": "dropped", "width": 4, "epochs": 1}
    run = train(replace(config, model="steerable_resnet18", **chosen))
    options = model_config(run.load_model().net)
    assert {name: options[name] for name in ("orders", "reflections", "fields", "form")} == {
        "orders": 1,
        "reflections": False,
        "fields": [3, 1],
        "form": "dropped",
    }
    assert RunDir(run.path).config == run.config


@pytest.mark.parametrize("form", ["carried", "dropped"])
def test_a_steerable_network_comes_back_from_its_run_and_from_its_folder(
    config: TrainConfig, tmp_path: Path, data: SimpleNamespace, form: str
) -> None:
    run = train(replace(config, model="steerable_resnet18", form=form, width=4, epochs=2))
    model = run.load_model()
    with torch.no_grad():
        logits = model(data.val.images.float() / 255)
    best = run.metrics()[run.model_info["epoch"]]
    assert torch.nn.functional.cross_entropy(logits, data.val.labels).item() == pytest.approx(
        best["val_loss"], rel=1e-5
    )
    again = isoconv.from_pretrained(isoconv.save_pretrained(run, tmp_path / "folder"))
    with torch.no_grad():
        assert torch.equal(again(data.val.images.float() / 255), logits)


def test_existing_run_is_refused_before_training(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    before = files(train(replace(config, epochs=1)))
    monkeypatch.setattr(training.pl.Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(FileExistsError, match="choose another --out"):
        train(config)
    assert files(RunDir(config.out)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "sre_resnet81"}, "unknown model 'sre_resnet81'.* did you mean 'sre_resnet18'"),
        (
            {"model": "sre_resnet18_3d"},
            "tiny has 2D images, network 'sre_resnet18_3d' does not; use --model sre_resnet18",
        ),
        ({"profile": "linaer"}, "unknown profile 'linaer'.* did you mean 'linear'"),
        ({"kernel_sizes": (9, 9)}, "kernel_sizes"),
        ({"loss": "focale"}, "loss of binary must be one of cross_entropy, focal, got 'focale'; did you mean 'focal'"),
        ({"model": "sre_unet"}, "network 'sre_unet' is not for classification; use --model with one of sre_resnet18,"),
    ],
)
def test_bad_option_is_refused_and_nothing_is_written(config: TrainConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(config, **change))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "vesels"}, "unknown data set 'vesels'; did you mean 'vessels'"),
        ({"data": "cells"}, "network 'sre_unet' is not for classification; use --model with one of"),
        ({"task": "classification"}, "vessels is for segmentation, not for classification; leave out --task"),
        ({"model": "sre_resnet18"}, "network 'sre_resnet18' is not for segmentation; use --model with one of sre_unet"),
        ({"model": "unet_3d"}, "vessels has 2D images, network 'unet_3d' does not; use --model unet$"),
        ({"rotate": True}, "segmentation trains by recipe standard or modern without rotation; leave out --recipe and"),
        ({"recipe": "official"}, "leave out --recipe and --rotate"),
        ({"loss": "focal"}, "loss of segmentation must be one of dice_ce, cross_entropy, dice, got 'focal'"),
        ({"size": 8}, "at least 16 pixels"),
    ],
)
def test_options_that_do_not_fit_masks(tmp_path: Path, change: dict, message: str) -> None:
    config = TrainConfig("vessels", "sre_unet", tmp_path / "x", size=16, width=2, device="cpu")
    with pytest.raises(ValueError, match=message):
        train(replace(config, **change))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("cells", {"width": 64, "size": 28, "batch_size": 128, "lr": 2e-2, "loss": "cross_entropy"}),
        ("cells3d", {"width": 64, "size": 28, "batch_size": 4, "lr": 1e-2, "loss": "cross_entropy"}),
        ("vessels", {"width": 32, "size": 64, "batch_size": 8, "lr": 2e-2, "loss": "dice_ce"}),
        ("vessels3d", {"width": 32, "size": 64, "batch_size": 8, "lr": 1e-2, "loss": "dice_ce"}),
    ],
)
def test_what_is_left_open_is_decided_by_the_task(data: str, options: dict) -> None:
    task = task_of(get_task(data))
    done = resolved(TrainConfig(data, "any", Path("out")), task)
    assert {name: getattr(done, name) for name in options} == options
    assert (done.task, done.precondition, done.data) == (task.name, True, data)
    given = {"width": 3, "size": 20, "batch_size": 5, "lr": 0.5, "precondition": False}
    kept = resolved(TrainConfig(data, "any", Path("out"), **given), task)
    assert {name: getattr(kept, name) for name in given} == given


@pytest.mark.parametrize(
    ("model", "lr"), [("resnet18", 1e-2), ("sre_resnet18", 1e-3), ("steerable_resnet18", 1e-2), ("c4_resnet18", 3e-3)]
)
def test_recipe_modern_takes_the_learning_rate_that_suits_the_network(model: str, lr: float) -> None:
    config = TrainConfig("cells", model, Path("out"), recipe="modern")
    assert resolved(config, task_of(get_task("cells"))).lr == lr
    assert resolved(replace(config, lr=0.5), task_of(get_task("cells"))).lr == 0.5


def test_unknown_data_set_suggests_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'breastmnst'; did you mean 'breastmnist'"):
        train(TrainConfig("breastmnst", "resnet18", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert "breastmnist" in MEDMNIST
