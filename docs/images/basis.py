"""Draws docs/images/steerable_basis.png: the rows of a 9 x 9 kernel from scalars, rings times harmonics.

python docs/images/basis.py
"""

from pathlib import Path

import numpy as np

from isoconv.bands import band_plan
from isoconv.figures.look import new_figure, save, style
from isoconv.nn.harmonics import kernel_basis

ORDERS = 4


def main() -> None:
    plan = band_plan((9, 9), profile="gaussian")
    columns = [(order, part) for order in range(ORDERS + 1) for part in range(1 + min(order, 1))]
    with style():
        figure = new_figure(0.92 * len(columns) + 0.9, 0.92 * plan.bands + 0.75)
        grid = figure.subplots(plan.bands, len(columns))
        for ax in grid.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        for column, (order, part) in enumerate(columns):
            basis = kernel_basis(plan, 0, order, max_order=ORDERS)
            grid[0, column].set_title(f"order {order}" + ("" if order == 0 else ("\ncos", "\nsin")[part]), fontsize=9)
            for path, row in zip(basis.paths, basis.rows[:, part, 0], strict=True):
                grid[path.band, column].imshow(row / np.abs(row).max(), cmap="RdBu_r", vmin=-1, vmax=1)
        for ring, axes in enumerate(grid):
            axes[0].set_ylabel(f"ring {ring}", rotation=0, ha="right", va="center", fontsize=9)
        save(figure, Path(__file__).with_name("steerable_basis.png"))


if __name__ == "__main__":
    main()
