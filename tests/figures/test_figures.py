"""Pictures: that they show what was measured, are written and are not blank."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver
from PIL import Image
from torch import nn

import isoconv
from isoconv.figures import feature_maps, kernels, rotation_curve, save_all, save_comparison
from isoconv.figures.curves import against_angle
from isoconv.runs import RunDir, write_json
from isoconv.tasks.scores import Score

Evaluated = Callable[[str], RunDir]


def is_drawn(path: Path) -> bool:
    """Whether a PNG has a sensible size and more to show than a plain surface."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return path.suffix == ".png" and min(pixels.shape) > 300 and pixels.std() > 5


# Scores under rotation


def test_images_get_a_circle_and_an_axis(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    flat, polar = rotation_curve([run]).axes
    assert (flat.name, polar.name) == ("rectilinear", "polar")
    rows = [row for row in run.results()["standard"]["conditions"] if row["group"] == "rotation"]
    (line,) = flat.lines
    assert list(line.get_xdata()) == [*range(0, 360, 10), 360]
    assert list(line.get_ydata()) == pytest.approx([row["accuracy"] for row in [*rows, rows[0]]])
    assert list(polar.lines[0].get_ydata()) == pytest.approx(list(line.get_ydata()))
    assert list(polar.lines[0].get_xdata()) == pytest.approx([math.radians(x) for x in line.get_xdata()])
    assert polar.get_theta_direction() == 1  # counter-clockwise, as the images turn
    assert polar.get_theta_offset() == pytest.approx(math.pi / 2)


def test_a_line_for_each_class_but_the_background(evaluated: Evaluated) -> None:
    run = evaluated("masks/plain")
    flat, polar = rotation_curve([run]).axes
    assert polar.name == "polar"
    assert [line.get_label() for line in flat.lines] == ["vessel (95 % interval)", "cell (95 % interval)"]
    rows = [row for row in run.results()["standard"]["conditions"] if row["group"] == "rotation"]
    for line, label in zip(flat.lines, ("vessel", "cell"), strict=True):
        assert list(line.get_ydata()) == pytest.approx([row["classes"][label] for row in [*rows, rows[0]]])
    assert flat.get_ylabel() == "test Dice"


def test_limits_hold_every_band_and_are_common(evaluated: Evaluated) -> None:
    runs = [evaluated(name) for name in ("sre", "plain")]
    axes = rotation_curve(runs, "official").axes
    rows = [row for run in runs for row in run.results()["official"]["conditions"]]
    low, high = axes[0].get_ylim()
    assert 0 <= low <= min(row["accuracy_ci"][0] for row in rows)
    assert max(row["accuracy_ci"][1] for row in rows if row["angle"] is not None) <= high <= 1
    assert axes[1].get_ylim() == (low, high)


def test_seeds_share_a_line(evaluated: Evaluated) -> None:
    runs = [evaluated(name) for name in ("plain", "plain1", "sre")]
    figure = rotation_curve(runs)
    assert [line.get_label() for line in figure.axes[0].lines] == [
        "resnet18 (mean of 2 seeds ± sd)",
        "sre_resnet18 kernel_sizes=5,5,3,3 (95 % interval)",
    ]
    upright = [run.results()["standard"]["conditions"][0]["accuracy"] for run in runs[:2]]
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(sum(upright) / 2)
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2


def test_several_networks_that_segment_have_a_line_each(evaluated: Evaluated) -> None:
    runs = [evaluated(f"masks/{name}") for name in ("sre", "plain", "plain1")]
    flat = rotation_curve(runs).axes[0]
    assert [line.get_label() for line in flat.lines] == [
        "sre_unet kernel_sizes=5,3,3,3 engine=reference (95 % interval)",
        "unet (mean of 2 seeds ± sd)",
    ]
    upright = [run.results()["standard"]["summary"]["upright"] for run in runs[1:]]
    assert flat.lines[1].get_ydata()[0] == pytest.approx(sum(upright) / 2)


def test_volumes_get_one_axis(evaluated: Evaluated) -> None:
    run = evaluated("volumes")
    (standard,), (official,) = (rotation_curve([run], protocol).axes for protocol in ("standard", "official"))
    assert standard.get_xlim()[1] == pytest.approx(180, abs=4)
    assert len(standard.containers) == 1  # points with bars, not a line through unrelated axes
    assert list(official.lines[0].get_xdata()) == list(range(0, 361, 30))


def test_style_is_not_left_behind(evaluated: Evaluated) -> None:
    before = dict(mpl.rcParams)
    rotation_curve([evaluated("sre")])
    assert dict(mpl.rcParams) == before


def test_nothing_to_score_is_drawn_as_nothing(evaluated: Evaluated) -> None:
    run = evaluated("masks/plain")
    results = run.results()
    for row in results["standard"]["conditions"]:
        row |= {name: dict.fromkeys(row["classes"]) for name in ("classes", "classes_ci")}
    write_json(run.path / "results.json", results)
    (flat,) = rotation_curve([run]).axes
    assert len(flat.lines) == 0


@pytest.mark.parametrize(
    ("runs", "protocol", "message"),
    [
        ([], "standard", "at least one run, got none"),
        (["sre"], "offical", "unknown protocol 'offical'.*'official'"),
        (["sre", "masks/sre"], "standard", "shows one kind of work, got classification and segmentation"),
    ],
)
def test_impossible_curve(evaluated: Evaluated, runs: list[str], protocol: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotation_curve([evaluated(name) for name in runs], protocol)


def test_run_that_was_not_evaluated_so(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    results = run.results()
    (run.path / "results.json").write_text(json.dumps({"standard": results["standard"]}))
    with pytest.raises(ValueError, match=r"was not evaluated by protocol 'official'; do that first: isoconv evaluate"):
        rotation_curve([run], "official")


# Kernels and feature maps


def test_kernels_of_some_layers_from_the_first_to_the_last(evaluated: Evaluated) -> None:
    figure = kernels(evaluated("sre").load_model(), layers=3, columns=6)
    assert len(figure.axes) == 18
    assert [figure.axes[i].get_ylabel() for i in (0, 12)] == ["conv1\n5 × 5", "layer4.1.conv2\n3 × 3"]
    shown = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert all(np.abs(image).max() == 1 for image in shown)
    assert all(np.allclose(image, np.rot90(image)) and np.allclose(image, image.T) for image in shown)


def test_kernels_of_few_filters_leave_room(evaluated: Evaluated) -> None:
    figure = kernels(nn.Sequential(nn.Conv3d(1, 2, 3)), columns=4)
    assert [bool(ax.images) for ax in figure.axes] == [True, True, False, False]
    assert figure.axes[0].images[0].get_array().shape == (3, 3)


def test_network_without_kernels() -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution of more than one tap"):
        kernels(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2)))


def test_feature_maps_of_an_isotropic_network_turn_with_the_image(evaluated: Evaluated) -> None:
    models = {name: evaluated(name).load_model() for name in ("sre", "plain")}
    angles = (0, 45, 90, 180)
    figure = feature_maps(models, torch.rand(1, 3, 16, 16), angles)
    assert len(figure.axes) == 3 * 4
    assert [ax.get_title() for ax in figure.axes[:4]] == ["0°", "45°", "90°", "180°"]
    change = [float(ax.get_xlabel().removesuffix(" %")) for ax in figure.axes[4:]]
    assert (change[0], change[2], change[3], change[4]) == (0, 0, 0, 0)
    assert 0 < change[1] < change[5]
    assert min(change[5:]) > 1


def test_feature_maps_of_a_volume_are_slices(evaluated: Evaluated) -> None:
    figure = feature_maps({"sre": evaluated("volumes").load_model()}, torch.rand(1, 1, 16, 16, 16), (0, 90))
    assert [ax.images[0].get_array().ndim for ax in figure.axes] == [2] * 4
    assert figure.axes[3].get_xlabel() == "0.0 %"


@pytest.mark.parametrize(
    ("name", "options", "arrows"),
    [("steerable_resnet18", {}, True), ("steerable_resnet18", {"form": "dropped"}, False), ("d4_resnet18", {}, False)],
)
def test_maps_turn_back_as_their_fields_say(name: str, options: dict, arrows: bool) -> None:
    net = isoconv.create_model(name, 3, 2, width=8, **options)
    net(torch.rand(4, 3, 16, 16))
    figure = feature_maps({name: net.eval()}, torch.rand(1, 3, 16, 16), (0, 30, 90, 180))
    change = [float(ax.get_xlabel().removesuffix(" %")) for ax in figure.axes[4:8]]
    assert (change[0], change[2], change[3]) == (0, 0, 0)
    assert change[1] > 1
    assert len(figure.axes) == 4 * (2 + arrows)


def test_arrows_turn_with_the_image() -> None:
    net = isoconv.create_model("steerable_resnet18", 1, 2, width=8, orders=1).eval()
    figure = feature_maps({"net": net}, torch.rand(1, 1, 21, 21), (0, 90))
    (upright,), (turned,) = ([part for part in ax.collections if isinstance(part, Quiver)] for ax in figure.axes[4:])

    def field(quiver: Quiver) -> np.ndarray:
        """Right, down; by row, column."""
        side = math.isqrt(quiver.N)
        return np.where(quiver.Umask, 0, [quiver.U, quiver.V]).reshape(2, side, side)

    right, down = field(upright)
    # what pointed right points up
    expected = np.stack([np.rot90(down), -np.rot90(right)])
    assert np.allclose(field(turned), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(field(turned) - field(upright)).max() > 0.1 * np.abs(expected).max()


def test_arrows_of_a_volume_are_those_in_a_slice() -> None:
    net = isoconv.create_model("steerable_resnet18_3d", 1, 2, width=4, orders=1).eval()
    figure = feature_maps({"net": net}, torch.rand(1, 1, 9, 9, 9), (0, 90))
    assert len(figure.axes) == 6
    assert figure.axes[3].get_xlabel() == "0.0 %"


def test_network_without_stages() -> None:
    with pytest.raises(ValueError, match="Conv2d has no stage layer1 whose feature maps could be shown"):
        feature_maps({"one": nn.Conv2d(1, 1, 3)}, torch.rand(1, 1, 8, 8))


def test_more_curves_than_colours_can_be_told_apart() -> None:
    curves = {str(i): [(0.0, 0.9, 0.8, 0.95), (90.0, 0.8, 0.7, 0.9)] for i in range(8)}
    flat = against_angle(curves, Score("accuracy", "accuracy"), "eight runs", 2).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in flat.get_lines()}) == 8


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("letters", [10, 47, 49, 80])
def test_a_legend_of_long_names_lies_inside_the_figure(letters: int, dims: int) -> None:
    curves = {str(i) * letters: [(0.0, 0.9, 0.8, 0.95), (90.0, 0.8, 0.7, 0.9)] for i in range(3)}
    figure = against_angle(curves, Score("accuracy", "accuracy"), "title", dims)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0
    assert inside.x1 <= whole.x1


@pytest.mark.parametrize(("unit", "limits"), [("%", (0.7, 1.0)), ("mm", (0.72, 0.96))])
def test_limits_of_a_share_are_whole_tenths_and_those_of_another_number_follow_it(unit: str, limits: tuple) -> None:
    curve = [(0.0, 0.8, 0.75, 0.94), (90.0, 0.8, 0.74, 0.9)]
    axes = against_angle({"one": curve}, Score("mae", "error", unit, higher_is_better=False), "one run", 2).axes
    assert [ax.get_ylim() for ax in axes] == [pytest.approx(limits, abs=0.003)] * 2
    axes[0].figure.canvas.draw()
    shown = [label.get_text() for label in axes[0].get_yticklabels()]
    assert all(text.endswith(" %") == (unit == "%") for text in shown)


# Files


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("sre", ["rotation_accuracy_official", "kernels", "clinical_official", "feature_maps", "saliency"]),
        ("volumes", ["rotation_accuracy_official", "kernels", "clinical_official", "feature_maps", "saliency"]),
        ("masks/sre", ["rotation_dice_official", "kernels", "saliency"]),  # a U-Net has no stage layer1
    ],
)
def test_figures_of_a_run_are_written(evaluated: Evaluated, name: str, names: list[str]) -> None:
    run = evaluated(name)
    paths = save_all(run, "official")
    assert paths == [run.path / "figures" / f"{each}.png" for each in names]
    assert all(map(is_drawn, paths))


def test_figures_of_a_comparison_are_written(evaluated: Evaluated, tmp_path: Path) -> None:
    paths = save_comparison([evaluated(name) for name in ("sre", "plain", "plain1")], tmp_path / "new" / "figures")
    assert [path.name for path in paths] == ["rotation_accuracy_standard.png", "feature_maps.png"]
    assert all(map(is_drawn, paths))
    (path,) = save_comparison([evaluated(f"masks/{name}") for name in ("sre", "plain")], tmp_path / "masks" / "figures")
    assert path.name == "rotation_dice_standard.png"
    assert is_drawn(path)
