"""Pictures of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isoconv.figures.look import colours, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["speed_ratios"]


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
