"""Pictures of evaluated runs, saved as PNG: accuracy or Dice against angle, kernels, and feature maps of an image that
turns.

Each function returns a matplotlib figure of its own: no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv.data import load, resize
from isoconv.evaluation.comparison import labels_of, results_by
from isoconv.evaluation.segment_comparison import dice_results
from isoconv.figures.curves import against_angle, curves_of
from isoconv.figures.look import colours, new_figure, style
from isoconv.runs import RunDir
from isoconv.symmetry import circular_mask, rotate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "feature_maps",
    "first_stage",
    "kernels",
    "rotation_accuracy",
    "rotation_dice",
    "save_all",
    "save_comparison",
    "save_dice",
    "speed_ratios",
    "watching_first_stage",
]


def rotation_accuracy(runs: Sequence[RunDir], protocol: str = "standard") -> Figure:
    """Test accuracy against the angle of rotation, one line per configuration.

    For one run the band is the 95 % interval of the bootstrap over test images, for several seeds one standard
    deviation over seeds. Images: on a circle and along an axis. Volumes: along the axis only, rotations by the same
    angle about different axes averaged; the random rotations of the standard protocol are points.

    Raises:
        ValueError: no run, or one that was not evaluated by the protocol.
    """
    results = [results_by(run, protocol) for run in _some(runs)]
    curves = curves_of(
        labels_of([run.config for run in runs]), [result["conditions"] for result in results], "accuracy"
    )
    title = f"{_tested(runs[0], results[0])}, protocol {protocol}"
    return against_angle(curves, "test accuracy", title, _dims(runs[0]), protocol)


def rotation_dice(runs: Sequence[RunDir]) -> Figure:
    """Dice on the test images against the angle of rotation, drawn as :func:`rotation_accuracy` draws accuracy.

    Of one run there is a line for each class but the background, of several one for each configuration, the mean over
    these classes.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: no run, or one that was evaluated by another version of isoconv.
    """
    results = [dice_results(run) for run in _some(runs)]
    labels, tables = labels_of([run.config for run in runs]), [result["conditions"] for result in results]
    if len(runs) == 1:
        (rows,), labels = tables, list(results[0]["classes"])[1:]
        tables = [
            [{**row, "dice": row["classes"][label], "dice_ci": row["classes_ci"][label]} for row in rows]
            for label in labels
        ]
    title = f"{_tested(runs[0], results[0])}, inside the inscribed {'disc' if _dims(runs[0]) == 2 else 'ball'}"
    return against_angle(curves_of(labels, tables, "dice"), "Dice", title, _dims(runs[0]))


def kernels(model: nn.Module, layers: int = 5, columns: int = 8) -> Figure:
    """Dense kernels of a network: of some layers from the first to the last, the ``columns`` kernels of the largest
    norm.

    Each is scaled by its own largest weight: blue negative, white zero, red positive. A volume's kernel is cut through
    its centre."""
    found = [(name, kernel) for name, module in model.named_modules() if (kernel := _kernel(module)) is not None]
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution of more than one tap whose kernels could be shown")
    rows = [found[round(i)] for i in torch.linspace(0, len(found) - 1, min(layers, len(found))).tolist()]
    with style():
        figure = new_figure(1.05 * columns + 1.2, 1.12 * len(rows) + 0.6)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, (name, kernel) in zip(grid, rows, strict=True):
            flat = kernel.flatten(0, 1)
            chosen = flat[flat.flatten(1).norm(dim=1).argsort(descending=True)[:columns]]
            for i, ax in enumerate(axes):
                _bare(ax)
                if i < len(chosen):
                    image = _slice(chosen[i])
                    scaled = image / image.abs().max().clamp_min(1e-12)
                    ax.imshow(scaled.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
                else:
                    ax.set_axis_off()
            size = " × ".join(map(str, kernel.shape[2:]))
            axes[0].set_ylabel(f"{name.removeprefix('net.')}\n{size}", rotation=0, ha="right", va="center", fontsize=9)
        figure.suptitle("strongest kernels, each scaled by its largest weight (blue −, red +)", fontsize=11)
        return figure


def feature_maps(
    models: Mapping[str, nn.Module], image: Tensor, angles: Sequence[float] = (0, 30, 60, 90, 135, 180)
) -> Figure:
    """A turning image, and below it, for each network, a feature map of the first stage turned back to the upright
    position.

    An invariant network shows the same map at every angle. Shown is the channel that varies most in the upright image;
    the percentage is the difference of all channels from the upright ones, ``|g^-1 f(g x) - f(x)| / |f(x)|`` within the
    inscribed disc.

    Args:
        models: networks with a stage ``layer1``, by the name to show, in eval mode.
        image: (1, C, *spatial) in [0, 1]; of a volume, turned about its first axis, the middle slice is shown.
        angles: degrees.
    """
    mask = circular_mask(image.shape[2:])
    with style():
        figure = new_figure(1.45 * len(angles) + 1.2, 1.62 * (1 + len(models)) + 0.5)
        grid = figure.subplots(1 + len(models), len(angles), squeeze=False)
        turned = [rotate(image, angle) * mask for angle in angles]
        for ax, x, angle in zip(grid[0], turned, angles, strict=True):
            _bare(ax)
            ax.imshow(_picture(x[0]).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{angle:g}°")
        grid[0][0].set_ylabel("image", rotation=0, ha="right", va="center")
        for axes, (label, model) in zip(grid[1:], models.items(), strict=True):
            maps = [rotate(first_stage(model, x), -angle) for x, angle in zip(turned, angles, strict=True)]
            inside = circular_mask(maps[0].shape[2:])
            upright = first_stage(model, image * mask) * inside
            channel = int((upright[0] * inside).flatten(1).var(1).argmax())
            scale = upright[0, channel].abs().max().item()
            for ax, each in zip(axes, maps, strict=True):
                _bare(ax)
                shown = _slice(each[0, channel].masked_fill(~inside, math.nan))  # transparent outside of the disc
                ax.imshow(shown.numpy(), cmap="viridis", vmin=0, vmax=scale)
                error = ((each * inside - upright).norm() / upright.norm()).item()
                ax.set_xlabel(f"{100 * error:.1f} %", labelpad=2)
            axes[0].set_ylabel(label.replace(" ", "\n"), rotation=0, ha="right", va="center")
        figure.suptitle(
            "feature map of the first stage, turned back to upright; under it, the change of all channels", fontsize=11
        )
        return figure


def speed_ratios(result: Mapping[str, Any]) -> Figure:
    """How many times faster than the contestant ``result["base"]`` the others are, case by case, one panel per timing;
    ``result`` is one of :func:`isoconv.bench.bench_ops` or :func:`isoconv.bench.bench_models`."""
    rows, base = result["rows"], result["base"]
    names = [name for name in rows[0]["contestants"] if name != base]
    parts = [key for key, value in rows[0]["contestants"][base].items() if isinstance(value, dict)]
    height = 0.8 / len(names)
    with style():
        figure = new_figure(5.2 * len(parts) + 1.5, 0.55 * len(rows) + 1.4)
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for ax, part in zip(panels, parts, strict=True):
            for i, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
                times = [(row["contestants"][base][part]["median"], row["contestants"].get(name)) for row in rows]
                ratios = [math.nan if other is None else own / other[part]["median"] for own, other in times]
                ax.barh([y + i * height for y in range(len(rows))], ratios, 0.9 * height, color=colour, label=name)
            ax.axvline(1, color="black", linewidth=0.8)
            ax.set(xscale="log", xlabel=f"{part}: times faster than {base}")
            ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
            ax.minorticks_off()
            ax.grid(False, axis="y")
        panels[0].set_yticks([y + 0.4 - height / 2 for y in range(len(rows))], [row["case"] for row in rows])
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(f"{result['title']}, {result['device']}, threads: {result['threads']}, {result['clock']}")
        return figure


def save_all(run: RunDir, protocol: str = "standard", image: Tensor | None = None) -> list[Path]:
    """Write ``figures/*.png`` of an evaluated run and return their paths.

    Args:
        image: (1, C, *spatial) in [0, 1] for the feature maps; None takes the first test image.
    """
    model = run.load_model()
    image = _test_image(run) if image is None else image.cpu()
    figures = {
        f"rotation_accuracy_{protocol}": rotation_accuracy([run], protocol),
        "kernels": kernels(model),
        "feature_maps": feature_maps({run.config.model: model}, image),
    }
    return _save(figures, run.path / "figures")


def save_comparison(runs: Sequence[RunDir], folder: Path, protocol: str = "standard") -> list[Path]:
    """Write the accuracy of evaluated runs against the angle, and the feature maps of one run per configuration, into
    ``folder``."""
    labels = labels_of([run.config for run in runs])
    first = dict(reversed(list(zip(labels, runs, strict=True))))
    models = {label: first[label].load_model() for label in dict.fromkeys(labels)}
    figures = {
        f"rotation_accuracy_{protocol}": rotation_accuracy(runs, protocol),
        "feature_maps": feature_maps(models, _test_image(runs[0])),
    }
    return _save(figures, folder)


def save_dice(run: RunDir) -> list[Path]:
    """Write ``figures/dice.png`` of an evaluated run of segmentation and return its path."""
    return _save({"dice": rotation_dice([run])}, run.path / "figures")


def _some(runs: Sequence[RunDir]) -> Sequence[RunDir]:
    if not runs:
        raise ValueError("a figure needs at least one run, got none")
    return runs


def _dims(run: RunDir) -> int:
    return run.model_info["task"]["dims"]


def _tested(run: RunDir, result: Mapping[str, Any]) -> str:
    images = "images" if _dims(run) == 2 else "volumes"
    return f"{run.model_info['task']['title']}: {result['data']['test_images']} test {images}"


def _kernel(module: nn.Module) -> Tensor | None:
    """Dense kernel (out, in, *spatial) of a convolution of more than one tap."""
    if isinstance(module, iso.SREConv2d | iso.SREConv3d):
        return module.kernel().detach().cpu()
    if isinstance(module, nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1:
        return module.weight.detach().cpu()
    return None


@torch.inference_mode()
def first_stage(model: nn.Module, x: Tensor) -> Tensor:
    """Output of the first stage, ``layer1``. Raises ValueError for a model that has none."""
    with watching_first_stage(model) as maps:
        model(x)
    if not maps:
        raise ValueError(f"{type(model).__name__} has no stage layer1 whose feature maps could be shown")
    return maps[0]


@contextmanager
def watching_first_stage(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets the output of the stage ``layer1``, if there is one, when the model runs."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.clone())  # the next layer may work in place

    stages = [module for name, module in model.named_modules() if name.split(".")[-1] == "layer1"]
    hooks = [stage.register_forward_hook(keep) for stage in stages[:1]]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _test_image(run: RunDir) -> Tensor:
    config = run.config
    images = load(config.data, size=config.size, root=config.data_root).test.images[:1]
    return resize(images.float().div(255), run.model_info["input_size"])


def _picture(x: Tensor) -> Tensor:
    """(C, *spatial) to what imshow draws: grey (H, W) or RGB (H, W, 3)."""
    return torch.stack([_slice(channel) for channel in x], dim=-1) if len(x) == 3 else _slice(x[0])


def _slice(x: Tensor) -> Tensor:
    """The middle slice of a volume; an image as it is."""
    return x[x.shape[0] // 2] if x.dim() == 3 else x


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
