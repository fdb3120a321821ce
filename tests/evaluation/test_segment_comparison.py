"""Runs of segmentation side by side, and which of them cannot be compared."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from isoconv.evaluation.segment_comparison import compare, load_counts
from isoconv.evaluation.segmentation import evaluate, train
from isoconv.figures.drawing import rotation_dice

from isoconv.cli.main import main
from isoconv.runs import RunDir, write_json
from isoconv.runs.config import TrainConfig
from isoconv.tasks.dice import foreground, pooled

Changed = Callable[[dict[str, np.ndarray]], object]


@pytest.fixture(scope="module")
def once(few_vessels: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sre``, and ``plain`` and ``plain1``, which differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"epochs": 2, "batch_size": 4, "size": 16, "device": "cpu", "lr": 0.1}
    plain = TrainConfig("vessels", "unet", folder / "plain", width=4, **small)  # type: ignore[arg-type]
    sre = replace(plain, model="sre_unet", out=folder / "sre", kernel_sizes=(5, 3, 3, 3), engine="reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoconv.figures.drawing.save_dice", lambda _: [])
        for config in (sre, plain, replace(plain, seed=1, out=folder / "plain1")):
            evaluate(train(config))
    return folder


@pytest.fixture
def three(once: Path, tmp_path: Path) -> list[RunDir]:
    return [RunDir(shutil.copytree(once / name, tmp_path / name)) for name in ("sre", "plain", "plain1")]


def edit(run: RunDir, change: Changed) -> None:
    """Change the counts of a run in place."""
    arrays = run.arrays("segmentation.npz")
    change(arrays)
    np.savez(run.path / "segmentation.npz", **arrays)  # type: ignore[arg-type]


def test_seeds_of_a_network_are_taken_together(three: list[RunDir]) -> None:
    result = compare(three)
    sre, plain = result["groups"]
    assert (sre["network"], sre["seeds"], sre["upright_sd"]) == (
        "sre_unet kernel_sizes=5,3,3,3 engine=reference",
        [0],
        None,
    )
    assert (plain["network"], plain["seeds"]) == ("unet", [0, 1])
    values = [run.segmentation_results()["summary"]["rotated_mean"] for run in three[1:]]
    assert [row["rotated_mean"] for row in result["runs"][1:]] == values
    assert plain["rotated_mean"] == pytest.approx(mean(values))
    assert plain["rotated_mean_sd"] == pytest.approx(stdev(values))
    json.dumps(result, allow_nan=False)


def test_pairs_by_counting(three: list[RunDir]) -> None:
    pairs = compare(three)["pairs"]
    assert [(Path(pair["a"]).name, Path(pair["b"]).name) for pair in pairs] == [("sre", "plain"), ("sre", "plain1")]
    a, b = (foreground(pooled(load_counts(run))) for run in three[:2])
    for name, difference in (("upright", a[0] - b[0]), ("rotated_mean", a[:36].mean() - b[:36].mean())):
        assert pairs[0][f"{name}_difference"] == pytest.approx(difference.item())
        low, high = pairs[0][f"{name}_difference_ci"]
        assert low <= difference <= high
        assert 2 / 2**4 * 0.9 < pairs[0][f"{name}_p"] <= 1  # of 4 images there are 16 ways to swap them


def test_networks_that_answer_alike_do_not_differ(three: list[RunDir]) -> None:
    sre, plain, _ = three
    for name in ("segmentation.npz", "segmentation.json"):
        shutil.copy(sre.path / name, plain.path / name)
    write_json(plain.path / "model.json", {**plain.model_info, "epoch": sre.model_info["epoch"]})
    (pair,) = compare([sre, plain])["pairs"]
    for name in ("upright", "rotated_mean"):
        assert pair[f"{name}_difference"] == 0
        assert pair[f"{name}_difference_ci"] == [0, 0]
        assert pair[f"{name}_p"] == 1


def test_command_line(three: list[RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", "compare", *(str(run.path) for run in three)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(three)
    assert main([*command, "--plot", str(tmp_path / "angles.png")]) == 0
    printed = capsys.readouterr().out
    for text in ("Dice", "unet, 2 seeds", "±", "upright, whole image", "p upright", "(Holm)", "rotated, a -"):
        assert text in " ".join(printed.replace("│", " ").replace("┃", " ").split()), text
    assert (tmp_path / "angles.png").stat().st_size > 5000
    assert main(["segment", "compare", *(str(run.path) for run in three[1:])]) == 0  # seeds alone make no pair


def test_figure_of_one_run_and_of_several(three: list[RunDir]) -> None:
    rows = three[1].segmentation_results()["conditions"]
    flat, polar = rotation_dice(three[1:2]).axes
    assert polar.name == "polar"
    assert [line.get_label() for line in flat.lines] == ["vessel (95 % interval)", "cell (95 % interval)"]
    turned = [row["classes"]["vessel"] for row in rows if row["group"] == "rotation"]
    assert list(flat.lines[0].get_ydata()) == pytest.approx([*turned, turned[0]])
    several = rotation_dice(three).axes[0]
    assert [line.get_label() for line in several.lines][1] == "unet (mean of 2 seeds ± sd)"
    upright = [run.segmentation_results()["summary"]["upright"] for run in three[1:]]
    assert several.lines[1].get_ydata()[0] == pytest.approx(mean(upright))


# Bad input


def test_too_few_runs_or_one_twice(three: list[RunDir]) -> None:
    with pytest.raises(ValueError, match="at least two run directories, got 1"):
        compare(three[:1])
    with pytest.raises(ValueError, match=r"plain is given more than once; give each run once"):
        compare([three[1], three[1].path.parent / "sre" / ".." / "plain"])
    with pytest.raises(ValueError, match="a figure needs at least one run, got none"):
        rotation_dice([])


def test_a_run_that_classifies(three: list[RunDir], evaluated: Callable[[str], RunDir]) -> None:
    shutil.rmtree(three[1].path)
    with pytest.raises(ValueError, match="plain was trained to classify; use isoconv compare"):
        compare([three[0], evaluated("plain")])


def test_other_test_images(three: list[RunDir]) -> None:
    edit(three[1], lambda arrays: arrays.update(counts=arrays["counts"][:, ::-1]))
    expected = (
        r"plain was evaluated on 4 test images of vessels at 16 pixels, .*sre on others; compare runs on the same"
    )
    with pytest.raises(ValueError, match=expected):
        compare(three)
    result = three[1].segmentation_results()
    write_json(three[1].path / "segmentation.json", {**result, "data": {**result["data"], "name": "veins"}})
    with pytest.raises(ValueError, match=r"plain was evaluated on .* of veins .*, .*sre on 4 test images of vessels"):
        compare(three)


def test_a_run_that_was_not_evaluated(three: list[RunDir]) -> None:
    (three[1].path / "segmentation.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"segmentation\.json does not exist; evaluate it first: isoconv segment"
    ):
        compare(three)


def test_results_of_another_version(three: list[RunDir]) -> None:
    (three[1].path / "segmentation.npz").unlink()
    expected = r"plain/segmentation\.npz.* does not exist; evaluate again: isoconv segment evaluate .*plain$"
    with pytest.raises(FileNotFoundError, match=expected):
        compare(three)
    result = three[0].segmentation_results()
    del result["cost"]["training_seconds"]
    write_json(three[0].path / "segmentation.json", result)
    with pytest.raises(
        ValueError, match=r"another isoconv version, without training_seconds; do it again: isoconv seg"
    ):
        rotation_dice(three[:1])


def test_results_of_an_earlier_network(three: list[RunDir]) -> None:
    write_json(three[1].path / "model.json", {**three[1].model_info, "epoch": 9})
    with pytest.raises(
        ValueError, match="was its best, which now is 9 by model.json; do it again: isoconv segment evaluate"
    ):
        compare(three)


def test_nothing_but_background(three: list[RunDir]) -> None:
    result = three[1].segmentation_results()
    write_json(three[1].path / "segmentation.json", {**result, "summary": {**result["summary"], "upright": None}})
    with pytest.raises(ValueError, match="plain has no Dice upright: masks and answers show nothing but background"):
        compare(three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("conditions"), "has no conditions; evaluate again"),
        (lambda arrays: arrays.update(conditions=arrays["conditions"][::-1]), "in other positions than protocol"),
        (lambda arrays: arrays.update(counts=arrays["counts"][..., :2, :]), "holds no counts"),
        (lambda arrays: arrays.update(counts=arrays["counts"].astype(float)), "holds no counts"),
        (lambda arrays: arrays.update(counts=-arrays["counts"]), "holds no counts"),
        (lambda arrays: arrays.update(counts=arrays["counts"][..., ::-1] + np.array([1, 0, 0])), "holds no counts"),
        (lambda arrays: arrays.update(counts=np.array(3)), "holds no counts"),
    ],
)
def test_counts_that_cannot_be(three: list[RunDir], change: Changed, message: str) -> None:
    edit(three[1], change)
    with pytest.raises(ValueError, match=message):
        load_counts(three[1])


def test_damaged_counts(three: list[RunDir]) -> None:
    path = three[1].path / "segmentation.npz"
    for damaged in (b"", path.read_bytes()[:1000], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"segmentation\.npz is damaged .*; delete it and evaluate again"):
            compare(three)
    np.savez(path, counts=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"segmentation\.npz is damaged .*pickle"):
        compare(three)
