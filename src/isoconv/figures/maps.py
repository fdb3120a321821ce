"""Pictures of what is inside of a network: kernels, and feature maps of an image that turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from isoconv.figures.look import new_figure, style
from isoconv.nn.dense import convolutions, dense_kernel
from isoconv.nn.fields import Fields, arrows
from isoconv.symmetry import Action, Scalars, carries_fields, circular_mask, fields_of, rotate, turned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Stage",
    "feature_maps",
    "first_stage",
    "kernels",
    "row",
    "show_frame",
    "shows_stages",
    "slice_of",
    "watching_first_stage",
]

_ARROWS = 14  # along a side, nearly


class Stage(NamedTuple):
    """What a stage of a network puts out: ``maps`` (N, C, *spatial), and how they turn with the image."""

    maps: Tensor
    fields: Any  # an Action

    @property
    def scalars(self) -> Tensor:
        """The channels that are images of their own."""
        return self.maps[:, : self.fields.scalars] if isinstance(self.fields, Fields) else self.maps

    def turned(self, degrees: float, plane: tuple[int, int] = (-2, -1)) -> Stage:
        return Stage(turned(self.maps, degrees, self.fields, plane), self.fields)


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
                    image = slice_of(chosen[i])
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
    position; of a network that carries vectors, the strongest of these, too, as arrows that turn with the image.

    An invariant network shows the same map at every angle. Shown is the scalar channel that varies most in the upright
    image; the percentage is the difference of all channels from the upright ones, ``|g^-1 f(g x) - f(x)| / |f(x)|``
    within the inscribed disc.

    Args:
        models: networks with a stage ``layer1``, by the name to show, in eval mode.
        image: (1, C, *spatial) in [0, 1]; of a volume, turned about its first axis, the middle slice is shown.
        angles: degrees.
    """
    mask = circular_mask(image.shape[2:])
    frames = [rotate(image, angle) * mask for angle in angles]
    stages = {label: [first_stage(model, x) for x in frames] for label, model in models.items()}
    rows = 1 + len(models) + sum(_has_arrows(seen[0]) for seen in stages.values())
    with style():
        figure = new_figure(1.45 * len(angles) + 1.2, 1.62 * rows + 0.5)
        grid = iter(figure.subplots(rows, len(angles), squeeze=False))
        for ax, x, angle in zip(row(grid, "image"), frames, angles, strict=True):
            show_frame(ax, x)
            ax.set_title(f"{angle:g}°")
        for label, seen in stages.items():
            _draw_maps(row(grid, label.replace(" ", "\n")), first_stage(models[label], image * mask), seen, angles)
            if _has_arrows(seen[0]):
                _draw_arrows(row(grid, "a vector\nfield in it"), seen, frames)
        told = "feature map of the first stage, turned back to upright; under it, the change of all channels"
        figure.suptitle(told, fontsize=11)
        return figure


def row(grid: Iterator[Sequence[Axes]], label: str) -> Sequence[Axes]:
    """The next row of a figure's axes, bare and named."""
    axes = next(grid)
    for ax in axes:
        _bare(ax)
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return axes


def _draw_maps(axes: Sequence[Axes], upright: Stage, seen: Sequence[Stage], angles: Sequence[float]) -> None:
    inside = circular_mask(upright.maps.shape[2:])
    expected = upright.maps * inside
    channel = int((upright.scalars[0] * inside).flatten(1).var(1).argmax())
    scale = expected[0, channel].abs().max().item()
    for ax, stage, angle in zip(axes, seen, angles, strict=True):
        back = stage.turned(-angle)
        shown = slice_of(back.scalars[0, channel].masked_fill(~inside, math.nan))  # transparent outside of the disc
        ax.imshow(shown.numpy(), cmap="viridis", vmin=0, vmax=scale)
        error = ((back.maps * inside - expected).norm() / expected.norm()).item()
        ax.set_xlabel(f"{100 * error:.1f} %", labelpad=2)


def _has_arrows(stage: Stage) -> bool:
    return isinstance(stage.fields, Fields) and 1 in stage.fields.counts


def _draw_arrows(axes: Sequence[Axes], seen: Sequence[Stage], frames: Sequence[Tensor]) -> None:
    """The vector field that is strongest in the first frame, of a volume its part in the middle slice, over the
    frames."""
    vectors = [arrows(stage.maps, stage.fields)[0] for stage in seen]  # (count, dims, *spatial)
    inside = circular_mask(vectors[0].shape[2:])
    strongest = int((vectors[0] * inside).square().flatten(1).sum(1).argmax())
    lengths = vectors[0][strongest].norm(dim=0)[inside]
    size, unit = vectors[0].shape[-1], frames[0].shape[-1] / vectors[0].shape[-1]  # in pixels of the frames
    step = max(round(size / _ARROWS), 1)
    rows, columns = torch.meshgrid(*[torch.arange((size - 1) % step // 2, size, step)] * 2, indexing="ij")
    for ax, field, frame in zip(axes, vectors, frames, strict=True):
        down, right = (slice_of(part.masked_fill(~inside, math.nan))[rows, columns] for part in field[strongest][-2:])
        show_frame(ax, frame, alpha=0.4)
        ax.quiver(
            (columns + 0.5) * unit - 0.5,
            (rows + 0.5) * unit - 0.5,
            right,
            down,
            angles="xy",
            scale_units="xy",
            scale=lengths.quantile(0.95).item() / (1.3 * step * unit),
            pivot="mid",
            width=0.01,
            minlength=0.5,
        )


def _kernel(module: nn.Module) -> Tensor | None:
    """Dense kernel (out, in, *spatial) of a convolution of more than one tap, in 2D or 3D."""
    kernel = dense_kernel(module)
    if kernel is None or kernel.dim() not in (4, 5) or max(kernel.shape[2:]) == 1:
        return None
    return kernel.detach().cpu()


@torch.inference_mode()
def first_stage(model: nn.Module, x: Tensor) -> Stage:
    """Output of the first stage, ``layer1``. Raises ValueError for a model that has none."""
    with watching_first_stage(model) as stages:
        model(x)
    if not stages:
        raise ValueError(f"{type(model).__name__} has no stage layer1 whose feature maps could be shown")
    return stages[0]


def shows_stages(model: nn.Module) -> bool:
    """Whether there is a stage ``layer1``, whose feature maps can be shown."""
    return any(name.split(".")[-1] == "layer1" for name, _ in model.named_modules())


@contextmanager
def watching_first_stage(model: nn.Module) -> Iterator[list[Stage]]:
    """A list that gets the output of the stage ``layer1``, if there is one, when the model runs."""
    stages: list[Stage] = []
    fields: list[Action] = [Scalars()]

    def note(layer: nn.Module, _: Any, __: Any) -> None:
        fields[:] = [fields_of(layer)[1]]  # sums and activations that follow keep them

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            stages.append(Stage(output.clone(), *fields))  # the next layer may work in place

    found = [module for name, module in model.named_modules() if name.split(".")[-1] == "layer1"][:1]
    hooks = [layer.register_forward_hook(note) for stage in found for layer in stage.modules() if carries_fields(layer)]
    hooks += [stage.register_forward_hook(keep) for stage in found]
    try:
        yield stages
    finally:
        for hook in hooks:
            hook.remove()


def show_frame(ax: Axes, frame: Tensor, alpha: float = 1) -> None:
    """An image (1, C, *spatial), grey or RGB."""
    slices = [slice_of(channel) for channel in frame[0]]
    picture = torch.stack(slices, dim=-1) if len(slices) == 3 else slices[0]
    ax.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, alpha=alpha)


def slice_of(x: Tensor) -> Tensor:
    """The middle slice of a volume; an image as it is."""
    return x[x.shape[0] // 2] if x.dim() == 3 else x


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
