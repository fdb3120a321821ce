"""What steerable layers and networks cost beside plain ones of the same channels and kernel size.

All contestants take turns in one process: on one thread by its CPU time, on two by the clock on the wall. A ratio is
the median over the rounds of the time of a contestant over that of the plain one in the same round.

    python benchmarks/steerable_cost.py > benchmarks/results/steerable_cost.md
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

import isoconv
from isoconv import nn as iso
from isoconv._checks import count_of
from isoconv.nn import Fields

ROUNDS = 15
PLAIN = {2: nn.Conv2d, 3: nn.Conv3d}
SRE = {2: iso.SREConv2d, 3: iso.SREConv3d}
STEERABLE = {2: iso.SteerableConv2d, 3: iso.SteerableConv3d}
LAYERS = [
    (24, (28, 28), 5, 64),
    (64, (28, 28), 3, 8),
    (64, (28, 28), 5, 8),
    (128, (14, 14), 5, 8),
    (64, (12, 12, 12), 3, 2),
]
NETWORKS = [("resnet18", 16, 3, (28, 28), 32), ("resnet18_3d", 8, 1, (16, 16, 16), 4)]

Step = Callable[[], object]


def fields_of(channels: int, dims: int) -> Fields:
    """Half of the channels scalars, the rest vectors and fields of order 2, as many of each."""
    count = channels // 2 // {2: 4, 3: 8}[dims]
    return Fields(f"{channels // 2}x0 + {count}x1 + {count}x2", dims)


def layers(channels: int, dims: int, kernel: int) -> dict[str, nn.Module]:
    options = {"padding": kernel // 2, "bias": False}
    fields = fields_of(channels, dims)
    carried = STEERABLE[dims](fields, fields, kernel, **options)
    return {
        "plain": PLAIN[dims](channels, channels, kernel, **options),
        "isotropic": SRE[dims](channels, channels, kernel, **options),
        "dropped": SRE[dims](channels, channels, kernel, orders=2, profile="gaussian", **options),
        "carried": carried,
        "carried, engine='reference'": STEERABLE[dims](fields, fields, kernel, engine="reference", **options),
        "carried, norm, gate": nn.Sequential(carried, iso.FieldNorm(fields), iso.FieldGate(fields)),
        "plain, norm, ReLU": nn.Sequential(
            PLAIN[dims](channels, channels, kernel, **options),
            (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(channels),
            nn.ReLU(inplace=True),
        ),
    }


def medians(steps: Mapping[str, Step]) -> dict[str, tuple[float, float]]:
    """Milliseconds, and times the first contestant's: medians over the rounds, the first two apart."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS + 2):
        rounds.append({})
        for name, step in steps.items():
            start = clock()
            step()
            rounds[-1][name] = 1e3 * (clock() - start)
    base = next(iter(steps))
    kept = rounds[2:]
    return {
        name: (statistics.median(r[name] for r in kept), statistics.median(r[name] / r[base] for r in kept))
        for name in steps
    }


def forward(layer: nn.Module, x: Tensor) -> Step:
    def step() -> None:
        with torch.no_grad():
            layer(x)

    return step


def both_ways(layer: nn.Module, x: Tensor) -> Step:
    return lambda: layer(x).sum().backward()


def training_step(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Step:
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)
    classes = torch.randint(5, (len(x),))

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x), classes)
        loss.backward()
        optimiser.step()

    return step


def layer_rows() -> Iterator[str]:
    for channels, size, kernel, batch in LAYERS:
        x = torch.randn(batch, channels, *size, requires_grad=True)
        contestants = layers(channels, len(size), kernel)
        ways = [medians({name: way(layer, x) for name, layer in contestants.items()}) for way in (forward, both_ways)]
        case = f"{len(size)}D, {channels} channels, {' x '.join(map(str, size))}, kernel {kernel}, batch {batch}"
        for name in contestants:
            cells = " | ".join(f"{way[name][0]:.1f} | {way[name][1]:.2f}" for way in ways)
            yield f"| {case} | {name} | {cells} |"


def network_rows(dtype: torch.dtype, alone: bool) -> Iterator[str]:
    """Of all families, or of the three that matter most ``alone``."""
    for plain, width, channels, size, batch in NETWORKS:
        x = torch.randn(batch, channels, *size)
        families = {
            plain: {},
            f"sre_{plain}": {},
            f"steerable_{plain}, orders=0": {"orders": 0},
            f"steerable_{plain}, form='dropped'": {"form": "dropped"},
            f"steerable_{plain}, orders=1": {"orders": 1},
            f"steerable_{plain}": {},
        }
        if alone:
            families = {name: options for name, options in families.items() if "," not in name}
        nets = {
            name: isoconv.create_model(name.split(",")[0], channels, 5, width=width, **options)
            for name, options in families.items()
        }
        found = medians({name: training_step(net, x, dtype) for name, net in nets.items()})
        for name, (milliseconds, ratio) in found.items():
            weights = sum(p.numel() for p in nets[name].parameters())
            how = f"{count_of(torch.get_num_threads(), 'thread')}, {str(dtype).removeprefix('torch.')}"
            case = f"{how}, width {width}, {batch} x {channels} x {' x '.join(map(str, size))}"
            yield f"| {case} | {name} | {weights:,} | {milliseconds:.0f} | {ratio:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("# What steerable layers and networks cost\n")
    print(
        f"`python benchmarks/steerable_cost.py`, torch {torch.__version__}, {platform.machine()}, milliseconds, "
        f"medians of {ROUNDS}\nrounds: CPU time on one thread, the clock on the wall on two. All contestants of a case "
        "take turns; times plain: the medians of the\nratios to plain within each round. The load of this machine of "
        f"{os.cpu_count()} cores was {os.getloadavg()[0]:.1f} at the start: on two threads the ratios are rough.\n"
    )
    print("Carried: half of the channels are scalars, the others vectors and fields of order 2, as many of each.\n")
    print("| layer | contestant | forward, ms | times plain | forward and backward, ms | times plain |")
    print("|---|---|---|---|---|---|")
    for row in layer_rows():
        print(row, flush=True)
    print("\nTraining steps (forward, backward, AdamW), kernels as by default; bfloat16 is autocast:\n")
    print("| case | network | weights | ms | times plain |")
    print("|---|---|---|---|---|")
    for threads, dtype in ((1, torch.float32), (1, torch.bfloat16), (2, torch.float32)):
        torch.set_num_threads(threads)
        for row in network_rows(dtype, alone=threads > 1 or dtype == torch.bfloat16):
            print(row, flush=True)


if __name__ == "__main__":
    main()
