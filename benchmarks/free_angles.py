"""What steerable kernels and networks lose at angles other than quarter turns, and what lessens it.

Kernels: a smooth random image is a sum of plane waves, and turning it turns their wave vectors, exactly. A kernel from
scalars to a field of order l answers a wave of vector q with H(q); the figure is the largest, over 15 to 60 degrees, of
|H(R q) - D(R) H(q)| / |H(q)| in the 2-norm over the waves of the image, D being how the field turns.

Networks: three small steerable layers with one thing changed at a time, trained on the synthetic set "cells". The
figure is the change of the logits at 15, 30 and 45 degrees over their spread between images, both root mean squares.

    python benchmarks/free_angles.py > benchmarks/results/free_angles.md
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoconv import data
from isoconv.bands import band_plan
from isoconv.data.augment import augmentation
from isoconv.nn import FieldGate, FieldNorm, FieldReLU, Fields, InvariantPool, SteerableConv2d, SymmetricAvgPool2d
from isoconv.nn.harmonics import harmonics, turning
from isoconv.symmetry import circular_mask, plane_rotation, resample

KERNEL = 9
PROFILES = ("hard", "area", "linear", "gaussian")
ANGLES = (15, 30, 45, 60)
WAVES, LENGTH = 4096, 1.5  # their correlation length, pixels
SEEDS, EPOCHS, TRAINED, TESTED = 4, 4, 1000, 500


def ring_error(profile: str, ring: int, order: int) -> float:
    axis = np.arange(KERNEL) - KERNEL // 2
    offset = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    distance = np.linalg.norm(offset, axis=0)
    angular = harmonics(order, offset / np.where(distance > 0, distance, 1)) * ((distance > 0) | (order == 0))
    kernel = angular * band_plan((KERNEL, KERNEL), profile=profile).basis[ring].reshape(-1)
    waves = np.random.default_rng(0).standard_normal((2, WAVES)) / LENGTH

    def response(degrees: float) -> np.ndarray:
        turn = plane_rotation(2, degrees).numpy()
        return turning(order, turn.T) @ kernel @ np.exp(1j * offset.T @ (turn @ waves))

    still = response(0)
    return max(float(np.linalg.norm(response(a) - still) / np.linalg.norm(still)) for a in ANGLES)


class LowPass(nn.Module):
    """Binomial means 1-2-1 along each axis, which commute with the symmetries of the grid."""

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return nn.functional.avg_pool2d(nn.functional.avg_pool2d(padded, 2, 1), 2, 1)


@dataclass(frozen=True)
class Remedy:
    name: str
    fields: tuple[str, str, str] = ("8x0 + 4x1 + 4x2", "12x0 + 6x1 + 6x2", "12x0 + 6x1 + 6x2")
    kernel: int = 5
    options: tuple[tuple[str, Any], ...] = ()
    in_front: bool = False
    low_pass: bool = False
    shifts: bool = False  # in training, by fractions of a pixel
    activation: Callable[[Fields], nn.Module] = FieldGate


def _relu(directions: int) -> Callable[[Fields], nn.Module]:
    return lambda fields: FieldReLU(fields, directions)


_SAME = ("6x0 + 6x1 + 6x2", "8x0 + 8x1 + 8x2", "8x0 + 8x1 + 8x2")
REMEDIES = (
    Remedy("orders 0, 1, 2 (default)"),
    Remedy("scalars alone", ("16x0", "24x0", "24x0")),
    Remedy("orders 0, 1", ("8x0 + 8x1", "12x0 + 12x1", "12x0 + 12x1")),
    Remedy("kernel orders up to 2", options=(("max_order", 2),)),
    Remedy("kernel orders up to 4", options=(("max_order", 4),)),
    Remedy("hard rings", options=(("profile", "hard"),)),
    Remedy("area rings", options=(("profile", "area"),)),
    Remedy("kernels 7 wide", kernel=7),
    Remedy("low-pass before pooling", low_pass=True),
    Remedy("low-pass in front", in_front=True),
    Remedy("low-pass in front and before pooling", in_front=True, low_pass=True),
    Remedy("scalars alone, low-pass in front", ("16x0", "24x0", "24x0"), in_front=True),
    Remedy("trained on shifts by fractions of a pixel", shifts=True),
    Remedy("scalars alone, trained on such shifts", ("16x0", "24x0", "24x0"), shifts=True),
    Remedy("ReLU in 8 directions", _SAME, activation=_relu(8)),
    Remedy("ReLU in 16 directions", _SAME, activation=_relu(16)),
)


def build(remedy: Remedy) -> nn.Module:
    parts: list[nn.Module] = [LowPass()] if remedy.in_front else []
    inputs: Fields | int = 3
    for level, fields in enumerate(remedy.fields):
        conv = SteerableConv2d(
            inputs, fields, remedy.kernel, padding=remedy.kernel // 2, bias=False, **dict(remedy.options)
        )
        activation = remedy.activation(conv.out_fields)
        parts += [*([LowPass()] if remedy.low_pass else []), SymmetricAvgPool2d()] if level else []
        parts += [conv, FieldNorm(conv.out_fields), activation]
        inputs = activation.out_fields
    pool = InvariantPool(inputs, magnitudes=False)
    return nn.Sequential(*parts, pool, nn.Linear(pool.out_fields.channels, 5))


def train(net: nn.Module, images: Tensor, labels: Tensor, shifts: bool) -> None:
    shifted = augmentation("modern", 2, images.shape[-1]) if shifts else nn.Identity()
    batches = [rows for _ in range(EPOCHS) for rows in torch.randperm(len(images)).split(50)]
    optimiser = torch.optim.AdamW(net.train().parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, len(batches))
    for rows in batches:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(shifted(images[rows])), labels[rows]).backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def scores(net: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Accuracy upright and turned, and the change of the logits at free angles over their spread."""
    net.eval()
    upright = net(images)
    turned = [net(resample(images, plane_rotation(2, angle))) for angle in ANGLES[:3]]
    change = torch.stack([(logits - upright).square().mean() for logits in turned]).mean().sqrt()
    accuracy = [(logits.argmax(1) == labels).float().mean().item() for logits in (upright, *turned)]
    return [accuracy[0], float(np.mean(accuracy[1:])), (change / upright.std(0).square().mean().sqrt()).item()]


def networks() -> None:
    cells = data.load("cells", size=28)
    mask = circular_mask((28, 28))
    (images, labels), (tests, answers) = (
        (split.images[:count] / 255 * mask, split.labels[:count])
        for split, count in ((cells.train, TRAINED), (cells.test, TESTED))
    )
    print("| network | weights | upright, % | turned, % | change of the logits, untrained | trained | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for remedy in REMEDIES:
        rows = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            net = build(remedy)
            net.train()(images[:200])
            before = scores(net, tests, answers)[2]
            start = time.thread_time()
            train(net, images, labels, remedy.shifts)
            rows.append([*scores(net, tests, answers), before, time.thread_time() - start])
        upright, turned, after, before, seconds = np.mean(rows, axis=0)
        weights = sum(p.numel() for p in net.parameters())
        cells_ = f"{100 * upright:.1f} | {100 * turned:.1f} | {before:.2f} | {after:.2f} | {seconds:.0f}"
        print(f"| {remedy.name} | {weights:,} | {cells_} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print("# Steerable kernels and networks at free angles\n")
    print(f"`python benchmarks/free_angles.py`, torch {torch.__version__}, {platform.machine()}, one thread.\n")
    print(f"## Kernels of {KERNEL} x {KERNEL} taps, ring by ring\n")
    print(
        f"Largest relative error over 15 to 60 degrees, images that correlate over {LENGTH} pixels. 0 is exact; a "
        "kernel of\nwhich nothing turns has about 1.4. In bold: what `kernel_basis` lets the ring carry.\n"
    )
    for profile in PROFILES:
        plan = band_plan((KERNEL, KERNEL), profile=profile)
        print(f"\n{profile}\n\n| ring | " + " | ".join(f"order {order}" for order in range(7)) + " |")
        print("|---|" + "---|" * 7)
        for ring in range(plan.bands):
            errors = [ring_error(profile, ring, order) if ring or not order else math.nan for order in range(7)]
            cells = [f"**{e:.3f}**" if order <= 2 * ring else f"{e:.3f}" for order, e in enumerate(errors)]
            print(f"| {ring} | " + " | ".join(cell.replace("nan", "") for cell in cells) + " |")
    print("\n## Small networks\n")
    print(
        f"Three layers on {TRAINED:,} images of `cells` of 28 pixels, {EPOCHS} epochs, {TESTED} test images, means of "
        f"{SEEDS} seeds.\n"
    )
    networks()


if __name__ == "__main__":
    main()
