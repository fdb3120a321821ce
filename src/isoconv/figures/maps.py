"""Pictures of what is inside of a network: kernels, and feature maps of an image that turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoconv.figures.look import new_figure, style
from isoconv.nn.dense import convolutions, dense_kernel
from isoconv.symmetry import circular_mask, rotate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["feature_maps", "first_stage", "kernels", "shows_stages", "watching_first_stage"]


def kernels(model: nn.Module, layers: int = 5, columns: int = 8) -> Figure:
    """Dense kernels of a network: of some layers from the first to the last, the ``columns`` kernels of the largest
    norm.

    Each is scaled by its own largest weight: blue negative, white zero, red positive. A volume's kernel is cut through
    its centre."""
    found = [(name, kernel) for name, module in convolutions(model) if (kernel := _kernel(module)) is not None]
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


def _kernel(module: nn.Module) -> Tensor | None:
    """Dense kernel (out, in, *spatial) of a convolution of more than one tap, in 2D or 3D."""
    kernel = dense_kernel(module)
    if kernel is None or kernel.dim() not in (4, 5) or max(kernel.shape[2:]) == 1:
        return None
    return kernel.detach().cpu()


@torch.inference_mode()
def first_stage(model: nn.Module, x: Tensor) -> Tensor:
    """Output of the first stage, ``layer1``. Raises ValueError for a model that has none."""
    with watching_first_stage(model) as maps:
        model(x)
    if not maps:
        raise ValueError(f"{type(model).__name__} has no stage layer1 whose feature maps could be shown")
    return maps[0]


def shows_stages(model: nn.Module) -> bool:
    """Whether there is a stage ``layer1``, whose feature maps can be shown."""
    return any(name.split(".")[-1] == "layer1" for name, _ in model.named_modules())


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
