"""Does a trained network answer to the turn of an image, or to the sharpness that interpolation takes from it?

Validation images are changed in ways that blur alike and turn by much, by little or not at all: turned by 45 degrees,
by 10, by 45 and back; moved by half a pixel along both axes. The figures are the accuracy, and the change of the logits
over their spread between images, both root mean squares. A quarter turn, which moves whole pixels, is the control.

    python benchmarks/sharpness.py RUN [RUN ...] > benchmarks/results/sharpness.md
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from isoconv.data import load
from isoconv.runs import RunDir
from isoconv.symmetry import plane_rotation, resample

STILL = plane_rotation(2, 0)


def turn(degrees: float) -> Callable[[Tensor], Tensor]:
    return lambda x: resample(x, plane_rotation(2, degrees))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "turned by 90": lambda x: x.rot90(1, (2, 3)),
    "by 45": turn(45),
    "by 10": turn(10),
    "by 45 and back": lambda x: turn(-45)(turn(45)(x)),
    "moved by half a pixel": lambda x: resample(x, STILL, shift=(0.5, 0.5)),
}


@torch.no_grad()
def row(run: RunDir) -> str:
    config = run.config
    split = load(config.data, size=config.size, root=config.data_root, task=config.task).val
    images, labels, net = split.images.float() / 255, split.labels.flatten(), run.load_model().eval()

    def logits(x: Tensor) -> Tensor:
        return torch.cat([net(batch) for batch in x.split(100)])

    def accuracy(outputs: Tensor) -> str:
        return f"{100 * (outputs.argmax(1) == labels).float().mean().item():.1f}"

    upright = logits(images)
    spread = upright.std(0).square().mean().sqrt()
    cells = [accuracy(upright)]
    for change in CHANGES.values():
        outputs = logits(change(images))
        cells.append(f"{accuracy(outputs)} / {((outputs - upright).square().mean().sqrt() / spread).item():.2f}")
    return f"| {run.path.name} | {' | '.join(cells)} |"


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    print("# The turn or the blur\n")
    print(
        "`python benchmarks/sharpness.py`: validation images, accuracy in % / change of the logits over their spread.\n"
    )
    print(f"| run | upright | {' | '.join(CHANGES)} |\n|---|---|{'---|' * len(CHANGES)}")
    for folder in folders:
        print(row(RunDir(Path(folder))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
