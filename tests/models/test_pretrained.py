"""Trained networks that come with isoconv: by name, as the start of a training, and as what their cards say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isoconv
from isoconv.evaluation.prediction import predict
from isoconv.models import create_model, list_pretrained
from isoconv.models.pretrained import adopt, pretrained_folder
from isoconv.runs import RunDir, TrainConfig
from isoconv.symmetry import circular_mask
from isoconv.training import train

SHIPPED = [(data, network) for data, networks in list_pretrained().items() for network in networks]


def test_there_are_some_and_a_name_alone_stands_for_the_first() -> None:
    assert ("pbc", "sre_resnet18") in SHIPPED
    folder = pretrained_folder("pbc")
    assert folder == pretrained_folder("pbc/steerable_resnet18")
    assert pretrained_folder("pbc/resnet18") is pretrained_folder("blood") is None


@pytest.mark.parametrize(("data", "network"), SHIPPED)
def test_what_comes_is_small_described_and_free_of_paths(data: str, network: str) -> None:
    folder = pretrained_folder(f"{data}/{network}")
    assert folder is not None
    assert (folder / "model.safetensors").stat().st_size <= 2 * 2**20
    card = (folder / "README.md").read_text()
    assert "## Images" in card
    assert "rotated by 40" in card
    for path in folder.glob("*.json*"):
        assert ': "/' not in path.read_text()


@pytest.mark.parametrize(("data", "network"), SHIPPED)
def test_a_network_by_name_is_the_one_of_the_run(data: str, network: str) -> None:
    net, run = create_model(network, pretrained=data), RunDir(f"{data}/{network}")
    size, channels = run.model_info["input_size"], net.in_channels
    images = torch.rand(2, channels, size, size)
    seen = (images * circular_mask((size, size)) - 0.5) / 0.5
    torch.testing.assert_close(net(seen), isoconv.from_pretrained(f"{data}/{network}")(images))
    turned = run.load_model()(images.rot90(1, (2, 3)))
    expected = run.load_model()(images)
    expected = expected.rot90(1, (2, 3)) if expected.dim() > 2 else expected
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("data", "network"), [each for each in SHIPPED if each[0] == "pbc"])
def test_examples_are_answered_by_their_names(data: str, network: str) -> None:
    folder = pretrained_folder(f"{data}/{network}")
    assert folder is not None
    rows = predict(f"{data}/{network}", folder / "examples", rotations=False)
    assert len(rows) == 4
    assert all(row["label"] == Path(row["source"]).stem for row in rows)


def test_grey_images_and_other_classes() -> None:
    colour, grey = (create_model("sre_resnet18", channels, pretrained="pbc") for channels in (3, 1))
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))
    other = create_model("sre_resnet18", num_classes=5, pretrained="pbc")
    assert other(x.expand(-1, 3, -1, -1)).shape == (2, 5)
    torch.testing.assert_close(other.features(x.expand(-1, 3, -1, -1)), colour.features(x.expand(-1, 3, -1, -1)))
    fresh = create_model("sre_resnet18", num_classes=5, width=16)
    assert adopt(fresh, colour.state_dict(), "pbc") == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet18", "pretrained": "pbc"},
            "no resnet18 trained on 'pbc' comes with isoconv: there are .*sre_",
        ),
        ({"name": "sre_resnet18", "pretrained": "pcb"}, "did you mean 'pbc'"),
        ({"name": "sre_resnet18", "pretrained": "pbc", "width": 64}, "has width=16, got 64; leave it out"),
        ({"name": "sre_resnet18", "pretrained": "pbc", "norm": "unit"}, "has norm='none', got 'unit'; leave it out"),
        ({"name": "sre_resnet18", "pretrained": "pbc", "in_channels": 2}, "the network is not that of sre_resnet18"),
    ],
)
def test_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_no_such_run_or_network(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="nor does a trained network of that name come with isoconv; did you mean"
    ):
        RunDir("pbcs")


@pytest.mark.usefixtures("few_cells")
def test_a_training_starts_from_it(tmp_path: Path) -> None:
    config = TrainConfig(
        "cells", "steerable_resnet18", tmp_path / "run", pretrained="pbc", recipe="modern", epochs=1, lr=1e-6
    )
    run = train(config)
    source = RunDir("pbc")
    assert run.config.width == source.config.width == 12
    ours, theirs = (each.load_model().net for each in (run, source))
    torch.testing.assert_close(ours.conv1.state_dict(), theirs.conv1.state_dict(), atol=1e-4, rtol=0)
    assert ours.fc.out_features == 5
    with pytest.raises(
        ValueError, match="pbc is a steerable_resnet18, not a sre_resnet18; use --model steerable_resnet18"
    ):
        train(replace(config, model="sre_resnet18", out=tmp_path / "other"))
    with pytest.raises(ValueError, match="pbc has width=12, got 8; leave it out"):
        train(replace(config, width=8, out=tmp_path / "other"))
    again = train(replace(config, pretrained=str(run.path), out=tmp_path / "again"))
    assert again.config.width == 12
    assert json.loads((again.path / "config.json").read_text())["pretrained"] == str(run.path)
