"""A picture of what an answer rests on, while the image turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isoconv.evaluation.saliency import HiResCAM, saliency_errors
from isoconv.figures.look import new_figure, style
from isoconv.figures.maps import row, show_frame, slice_of
from isoconv.symmetry import circular_mask, rotate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["saliency_maps"]


def saliency_maps(
    models: Mapping[str, nn.Module], image: Tensor, output: int, label: str, angles: Sequence[float] = (0, 30, 60, 90)
) -> Figure:
    """A turning image, and below it for each network what an output rests on, by HiResCAM, turned back: red for it,
    blue against it. Below stand the errors of :func:`isoconv.evaluation.saliency.saliency_errors`.

    Args:
        models: networks that :class:`isoconv.evaluation.saliency.HiResCAM` takes, by the name to show.
        image: (1, C, *spatial) in [0, 1]; of a volume, turned about its first axis, the middle slice is shown.
        output: its number; ``label``: its name.
        angles: degrees.
    """
    inside = circular_mask(image.shape[2:])
    frames = [rotate(image, angle) * inside for angle in angles]
    with style():
        figure = new_figure(1.75 * len(angles) + 1.8, 1.75 * (1 + len(models)) + 0.5)
        axes_of = iter(figure.subplots(1 + len(models), len(angles), squeeze=False))
        for ax, frame, angle in zip(row(axes_of, "image"), frames, angles, strict=True):
            show_frame(ax, frame)
            ax.set_title(f"{angle:g}°")
        for name, model in models.items():
            axes = row(axes_of, name.replace(" ", "\n"))
            maps = [HiResCAM(model, output)(frame) for frame in frames]
            scale = max(maps[0].abs().max().item(), 1e-12)
            for ax, found, angle in zip(axes, maps, angles, strict=True):
                back = slice_of(rotate(found, -angle)[0, 0].masked_fill(~inside, math.nan))
                ax.imshow(back.numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale)
            errors = saliency_errors(model, image, output)
            told = {"quarter turns": errors["quarter_turns"], "free angles": errors["free_angles"]}
            text = ", ".join(f"{at} -" if e is None else f"{at} {100 * e:.3g} %" for at, e in told.items())
            axes[len(angles) // 2].set_xlabel(f"error: {text}", labelpad=2)
        figure.suptitle(f"what {label} rests on (red for, blue against), turned back to upright", fontsize=11)
        return figure
