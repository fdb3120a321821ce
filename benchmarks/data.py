"""Share of loading and augmentation in a training step: the time to draw a batch against the time of the whole step.

python benchmarks/data.py > benchmarks/results/data.md
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from isoconv.data import DeviceBatches, Split, augmentation
from isoconv.models import create_model, model_info

THREADS, STEPS = 2, 8
CASES = [  # network, width, channels, batch size
    ("sre_resnet18", 64, 3, 128),
    ("sre_resnet18", 16, 3, 128),
    ("sre_resnet18_3d", 64, 1, 4),
    ("sre_resnet18_3d", 16, 1, 4),
    ("sre_resnet18_3d", 8, 1, 4),
]


def endless(batches: DeviceBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from batches


def measure(name: str, width: int, channels: int, batch_size: int) -> tuple[float, float]:
    """Median seconds of drawing a batch, and of drawing it and taking a step of SGD with it."""
    dims = model_info(name).dims
    count = STEPS * batch_size
    images = torch.randint(0, 256, (count, channels) + (28,) * dims, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 2)
    augment = augmentation("official", dims, 32)
    drawn = endless(DeviceBatches(split, batch_size, device="cpu", seed=0, shuffle=True, augment=augment, resize=32))
    net = create_model(name, channels, 2, width=width, **({"stem_stride": 2} if dims == 3 else {}))
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    drawing, steps = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        x, y = next(drawn)
        drawing.append(time.perf_counter() - start)
        optimizer.zero_grad()
        F.cross_entropy(net((x - 0.5) / 0.5), y).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
    return statistics.median(drawing[1:]), statistics.median(steps[1:])


def main() -> None:
    torch.set_num_threads(THREADS)
    print("# Share of loading and augmentation in a training step\n")
    print(f"Recipe official, 28 to 32 pixels; {platform.machine()}, {THREADS} threads, torch {torch.__version__};")
    print(f"medians of {STEPS - 1} steps. `python benchmarks/data.py`\n")
    print("| network | width | batch | drawing a batch, ms | whole step, ms | share |\n|---|---|---|---|---|---|")
    for case in CASES:
        drawing, step = measure(*case)
        name, width, _, batch_size = case
        cells = f"{1e3 * drawing:.1f} | {1e3 * step:.0f} | {100 * drawing / step:.1f} %"
        print(f"| {name} | {width} | {batch_size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
