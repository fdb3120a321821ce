"""Model cards say what a network is for, what it scores and which symmetry it keeps."""

import re
from collections.abc import Callable

import pytest

from isoconv.deploy.export import export_run
from isoconv.deploy.model_card import Usage, model_card
from isoconv.runs import RunDir, write_json

Evaluated = Callable[[str], RunDir]


def test_the_card_has_task_labels_scores_limits(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    card = export_run(run, "safetensors").card.read_text()
    summary, task = run.results()["standard"]["summary"], run.model_info["task"]
    assert f"# sre_resnet18 for {task['title']}" in card
    for i, label in enumerate(task["labels"]):
        assert f"{i}. {label}" in card
    assert "## Scores, protocol standard" in card
    assert "## Scores, protocol official" in card
    assert f"| accuracy rotated, mean, % | {100 * summary['rotated_mean']:.1f} (" in card
    for row in run.results()["standard"]["conditions"]:
        assert re.search(rf"\| {row['name']} \| .* \| {100 * row['accuracy']:.1f} \(", card), row["name"]
    assert "cannot tell an image from its mirror image" in card
    assert "not a medical device" in card
    assert "black outside of the inscribed disc (ball), then (x - 0.5) / 0.5: yours to do" in card
    assert "None" not in card


def test_the_card_of_a_training_that_was_stopped(evaluated: Evaluated) -> None:
    run, usage = evaluated("plain"), Usage("net.pt2", "pt2", 1)
    assert "; of 4 epochs the best on the validation images, number" in model_card(run, usage)
    run.write_metrics(run.metrics()[:3])
    assert "; of 3 epochs (4 planned) the best on the validation images, number" in model_card(run, usage)


@pytest.mark.parametrize("name", ["masks/sre", "masks/volumes"])
def test_the_card_of_a_network_that_segments(evaluated: Evaluated, name: str) -> None:
    run = evaluated(name)
    card, result = model_card(run, Usage("net.pt2", "pt2", 1)), run.results()["standard"]
    volumes = run.task.info.dims == 3
    assert f"Gives each pixel of {'volumes' if volumes else 'images'} a label." in card
    assert f"float32 (N, 3, {'D, H, W' if volumes else 'H, W'})" in card
    for summary, head in ((result["summary"], "Dice rotated, mean, %"), (result["classes"]["cell"], "cell")):
        low, high = (100 * end for end in summary["rotated_mean_ci"])
        cell = f"{100 * summary['rotated_mean']:.1f} ({low:.1f} to {high:.1f})"
        assert any(line.startswith(f"| {head} |") and cell in line for line in card.splitlines()), head
    for row in result["conditions"]:
        assert re.search(rf"\| {row['name']} \| .* \| {100 * row['dice']:.1f} \(", card), row["name"]
    kept = f"{'the 24 rotations of the cube' if volumes else 'quarter turns'} and mirror images"
    assert f"Its labels move with the image under {kept}, to rounding" in card
    assert "None" not in card


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"name": "sre_resnet18"},
            "the same for an image and its quarter turns and mirror images, to rounding; at other",
        ),
        ({"name": "sre_resnet18", "downsample": "strided"}, "not built to be symmetric: its answer can change when an"),
        ({"name": "c4_resnet18"}, "the same for an image and its quarter turns, to rounding; at other angles it was"),
        (
            {"name": "d4_resnet18"},
            "the same for an image and its quarter turns and mirror images, to rounding; at other",
        ),
        ({"name": "resnet18"}, "not built to be symmetric: its answer can change when an image is turned"),
    ],
)
def test_the_card_claims_the_symmetries_that_the_network_has(evaluated: Evaluated, model: dict, words: str) -> None:
    run = evaluated("plain")
    write_json(run.path / "model.json", {**run.model_info, "model": {"in_channels": 3, "num_classes": 5, **model}})
    card = model_card(run, Usage("net.pt2", "pt2", 1))
    assert words in card
    assert ("cannot tell an image from its mirror image" in card) == ("mirror images" in words)


def test_the_card_of_a_run_that_was_not_evaluated(evaluated: Evaluated) -> None:
    run = evaluated("volumes")
    (run.path / "results.json").unlink()
    card = export_run(run, "safetensors").card.read_text()
    assert "None, it was not evaluated: `isoconv evaluate volumes`." in card
    assert "(N, 1, D, H, W)" in card
    assert "16x16x16 pixels" in card
