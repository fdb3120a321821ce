"""Time the CPU engine against the reference on layers near the point where they cost the same, and write
``results/choice-cpu.md``: what ``engine="auto"`` would choose, beside what is faster.

One thread and its CPU time, so that a busy machine does not matter.

python benchmarks/choice.py
"""

import time
from pathlib import Path

import torch

from isoconv.bands import band_plan
from isoconv.ops import conv_spec, numba_cpu, sre_conv

PAIRS = ((1, 64), (3, 64), (8, 8), (16, 16), (32, 32), (64, 8), (64, 64))
GRID = [  # axes, kernel, channels, size, groups, stride
    *((2, k, c, s, 1, 1) for k in (3, 5, 9) for c in PAIRS for s in (8, 32)),
    *((2, 1, (64, 64), s, 1, 1) for s in (8, 32)),
    *((2, k, (64, 64), s, 64, 1) for k in (3, 5, 9) for s in (8, 32)),
    *((2, k, (64, 64), 32, 4, 1) for k in (3, 5, 9)),
    *((2, k, c, 32, 1, 2) for k in (3, 5, 9) for c in ((3, 64), (16, 16), (64, 64))),
    *((3, k, c, 16, 1, 1) for k in (3, 5) for c in ((1, 16), (4, 4), (16, 16), (64, 64))),
    *((3, k, (16, 16), 4, 1, 1) for k in (3, 5)),
    (3, 5, (64, 64), 16, 64, 1),
    *((1, k, c, 256, 1, 1) for k in (3, 9, 31) for c in ((1, 16), (16, 16), (64, 64))),
]


def measure(dims: int, kernel: int, channels: tuple[int, int], size: int, groups: int, stride: int) -> str:
    plan = band_plan((kernel,) * dims)
    spec = conv_spec(plan, padding=kernel // 2, groups=groups, stride=stride)
    batch = 8 if dims < 3 else 2
    x = torch.randn(batch, channels[0], *[size] * dims, requires_grad=True)
    weight = torch.randn(channels[1], channels[0] // groups, plan.bands, requires_grad=True)
    grad = torch.randn_like(sre_conv(x, weight, None, spec, engine="reference"))
    times: dict[tuple[str, bool], float] = {}
    for _ in range(8):
        for backward in (False, True):
            for engine in ("reference", "numba"):
                start = time.thread_time()
                with torch.set_grad_enabled(backward):
                    y = sre_conv(x, weight, None, spec, engine=engine)
                if backward:
                    torch.autograd.grad(y, (x, weight), grad)
                spent = 1e3 * (time.thread_time() - start)
                times[engine, backward] = min(times.get((engine, backward), spent), spent)
    forward, both = (times["reference", b] / times["numba", b] for b in (False, True))
    choice = "numba" if numba_cpu.is_faster(x, weight, spec) else "reference"
    loss = max(1.0, 1 / both if choice == "numba" else both)
    layer = f"{dims}D k={kernel} {channels[0]}->{channels[1]} size {size} groups {groups} stride {stride} batch {batch}"
    cells = [f"{times[engine, b]:.2f}" for b in (False, True) for engine in ("reference", "numba")]
    return f"| {layer} | {' | '.join(cells)} | {forward:.2f} | {both:.2f} | {choice} | {loss:.2f} |"


torch.set_num_threads(1)
columns = (
    "layer",
    "forward, reference",
    "forward, numba",
    "both, reference",
    "both, numba",
    "ratio",
    "ratio",
    "auto",
    "loss",
)
header = f"| {' | '.join(columns)} |"
lines = [header, "|---" * 9 + "|", *(measure(*case) for case in GRID)]
text = "\n".join(
    [
        "# The choice of `engine=\"auto\"` on the CPU",
        "",
        "Least thread CPU time of 8 interleaved calls, ms; one thread, float32; forward alone, and forward + backward "
        "(both), by which `auto` decides in training. Last: time of the engine chosen over that of the faster.",
        "",
        *lines,
        "",
        f"torch {torch.__version__}. Command: `python benchmarks/choice.py`",
    ]
)  # fmt: skip
(Path(__file__).parent / "results" / "choice-cpu.md").write_text(text + "\n")
print(text)
