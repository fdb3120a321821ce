"""Pictures of evaluated runs, saved as PNG: accuracy against angle, kernels, and feature maps of an image that turns.

Each function returns a matplotlib figure of its own: no display, no global state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._extras import require
from isoconv.comparison import labels_of, results_by
from isoconv.data import load, resize
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
    "save_all",
    "save_comparison",
    "speed_ratios",
    "watching_first_stage",
]

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: for all kinds of colour vision
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_DPI = 150


def rotation_accuracy(runs: Sequence[RunDir], protocol: str = "standard") -> Figure:
    """Test accuracy against the angle of rotation, one line per configuration.

    For one run the band is the 95 % interval of the bootstrap over test images, for several seeds one standard
    deviation over seeds. Images: on a circle and along an axis. Volumes: along the axis only, rotations by the same
    angle about different axes averaged; the random rotations of the standard protocol are points.

    Raises:
        ValueError: no run, or one that was not evaluated by the protocol.
    """
    if not runs:
        raise ValueError("a figure needs at least one run, got none")
    results = [results_by(run, protocol) for run in runs]
    task = runs[0].model_info["task"]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for label, result in zip(labels_of([run.config for run in runs]), results, strict=True):
        groups[label].append(result)
    curves = {_legend(label, group): _curve(group) for label, group in groups.items()}
    low = min(low for curve in curves.values() for _, _, low, _ in curve)
    high = max(high for curve in curves.values() for _, _, _, high in curve)
    limits = max(0.0, math.floor(10 * low - 0.2) / 10), min(1.0, math.ceil(10 * high + 0.2) / 10)
    with _style():
        figure = _figure(9.6 if task["dims"] == 2 else 6.4, 4.4)
        flat = figure.add_subplot(1, 2, 2) if task["dims"] == 2 else figure.add_subplot()
        for colour, (label, curve) in zip(_cycle(len(curves)), curves.items(), strict=True):
            _draw(flat, curve, colour, label, points=task["dims"] == 3 and protocol != "official")
            if task["dims"] == 2:
                polar = _polar(figure) if len(figure.axes) == 1 else figure.axes[1]
                _draw(polar, [(math.radians(angle), *rest) for angle, *rest in curve], colour)
        ticks = require("matplotlib.ticker", "study")
        for ax in figure.axes:
            ax.set_ylim(*limits)
            ax.yaxis.set_major_locator(ticks.MaxNLocator(7, steps=[1, 2, 5, 10]))
            ax.yaxis.set_major_formatter(ticks.PercentFormatter(1, decimals=0, symbol=" %"))
        last = 180 if task["dims"] == 3 and protocol != "official" else 360
        flat.set(xlabel="rotation of the test images (degrees)", ylabel="test accuracy")
        flat.set_xlim(-last / 60, last * 61 / 60)
        flat.set_xticks(range(0, last + 1, last // 8 if last == 360 else 30))
        images = "images" if task["dims"] == 2 else "volumes"
        figure.suptitle(f"{task['title']}: {results[0]['data']['test_images']} test {images}, protocol {protocol}")
        columns = 2 if task["dims"] == 2 else 1
        figure.legend(*flat.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
        return figure


def kernels(model: nn.Module, layers: int = 5, columns: int = 8) -> Figure:
    """Dense kernels of a network: of some layers from the first to the last, the ``columns`` kernels of the largest
    norm.

    Each is scaled by its own largest weight: blue negative, white zero, red positive. A volume's kernel is cut through
    its centre."""
    found = [(name, kernel) for name, module in model.named_modules() if (kernel := _kernel(module)) is not None]
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution of more than one tap whose kernels could be shown")
    rows = [found[round(i)] for i in torch.linspace(0, len(found) - 1, min(layers, len(found))).tolist()]
    with _style():
        figure = _figure(1.05 * columns + 1.2, 1.12 * len(rows) + 0.6)
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
    with _style():
        figure = _figure(1.45 * len(angles) + 1.2, 1.62 * (1 + len(models)) + 0.5)
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
    with _style():
        figure = _figure(5.2 * len(parts) + 1.5, 0.55 * len(rows) + 1.4)
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for ax, part in zip(panels, parts, strict=True):
            for i, (name, colour) in enumerate(zip(names, _cycle(len(names)), strict=True)):
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


def _legend(label: str, group: Sequence[Any]) -> str:
    return f"{label} (mean of {len(group)} seeds ± sd)" if len(group) > 1 else f"{label} (95 % interval)"


def _polar(figure: Figure) -> Any:
    """The left half: 0 degrees up, counter-clockwise as the images turn, radii labelled between two spokes."""
    ax: Any = figure.add_subplot(1, 2, 1, projection="polar")
    ax.set_theta_zero_location("N")
    ax.set_xticks([math.radians(angle) for angle in range(0, 360, 45)])
    ax.set_rlabel_position(22.5)
    ax.tick_params(axis="y", labelsize=8, labelcolor="#555555")
    ax.spines["polar"].set_color("#bbbbbb")
    return ax


def _draw(ax: Any, curve: Sequence[Any], colour: str, label: str | None = None, points: bool = False) -> None:
    x, centre, low, high = map(list, zip(*curve, strict=True))
    if points:
        below = [c - a for c, a in zip(centre, low, strict=True)]
        above = [b - c for c, b in zip(centre, high, strict=True)]
        ax.errorbar(x, centre, [below, above], fmt="o", ms=4, color=colour, ecolor=colour + "55", label=label)
    else:
        ax.plot(x, centre, color=colour, lw=1.8, label=label)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)


def _curve(results: Sequence[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """(angle, accuracy, low, high), sorted; equal angles of a run are averaged; a full circle is closed."""
    at: dict[float, list[tuple[float, float, float]]] = defaultdict(list)
    for result in results:
        own: dict[float, list[tuple[float, float, float]]] = defaultdict(list)
        for row in result["conditions"]:
            if row["group"] in ("rotation", "cube"):
                own[round(row["angle"], 6)].append((row["accuracy"], *row["accuracy_ci"]))
        for angle, values in own.items():
            at[angle].append(tuple(map(mean, zip(*values, strict=True))))
    curve = []
    for angle in sorted(at):
        centre = mean(value for value, _, _ in at[angle])
        if len(results) > 1:
            spread = stdev(value for value, _, _ in at[angle])
            curve.append((angle, centre, centre - spread, centre + spread))
        else:
            curve.append((angle, *at[angle][0]))
    return [*curve, (360.0, *curve[0][1:])] if 180 < curve[-1][0] < 360 else curve


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


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _style() -> Any:
    return require("matplotlib", "study").rc_context(_STYLE)


def _figure(width: float, height: float) -> Figure:
    return require("matplotlib.figure", "study").Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
