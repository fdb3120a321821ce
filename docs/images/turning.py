"""Draw turning.gif of README.md: four blood cells turn, and what the network that comes with isoconv answers.

    python docs/images/turning.py

The cells are the example images of `src/isoconv/models/trained/pbc` (Acevedo et al. 2020, CC BY 4.0).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from PIL import Image

from isoconv.evaluation.prediction import Predictor
from isoconv.models.pretrained import pretrained_folder
from isoconv.symmetry import circular_mask, rotate

OUT = Path(__file__).with_name("turning.gif")
STEP, MILLISECONDS, SHOWN = 15, 120, 128  # degrees, a frame, pixels of a cell


def draw(axes: Axes, image: torch.Tensor, answers: list[float], labels: tuple[str, ...], angle: int) -> None:
    large = F.interpolate(image, (SHOWN, SHOWN), mode="bicubic").clamp(0, 1)
    turned = rotate(large, angle).where(circular_mask((SHOWN, SHOWN)), 1)
    axes.imshow(turned[0].permute(1, 2, 0))
    axes.axis("off")
    best = int(np.argmax(answers))
    axes.set_title(f"{labels[best]} {100 * answers[best]:.0f} %", fontsize=11, y=-0.18)


@torch.no_grad()
def main() -> None:
    folder = pretrained_folder("pbc")
    predictor = Predictor("pbc")
    _, images = predictor.read(folder / "examples")
    cells = images.float() / 255
    frames = []
    for angle in range(0, 360, STEP):
        answers = predictor.outputs(rotate(cells, angle)).softmax(1).tolist()
        figure, places = plt.subplots(1, len(cells), figsize=(7.2, 2.1), dpi=80, squeeze=False)
        for axes, cell, answer in zip(places[0], cells, answers, strict=True):
            draw(axes, cell[None], answer, predictor.task.info.labels, angle)
        figure.subplots_adjust(0.01, 0.14, 0.99, 0.99, wspace=0.05)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(48))
        plt.close(figure)
    frames[0].save(OUT, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)


if __name__ == "__main__":
    main()
