"""The CUDA engine on a machine with a GPU: is it right, and how fast is it beside ``torch.nn.ConvNd``?

    python benchmarks/gpu.py --out FOLDER [--seconds 560] [--only REGEX]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --out FOLDER --dry      # tiny sizes, without a GPU

Needs this checkout and torch with triton, nothing else. Every figure is written to ``FOLDER/gpu.json`` as soon as it is
there, and ``FOLDER/gpu.md`` is made from it; what is there already is not measured again, so a run that ended early, or
at ``--seconds``, is continued by the same command.

No figure without a check: output and gradients of every layer are held against the reference in float64 first.
Contestants take turns within each round; figures are medians and quartiles over the rounds. ``graph`` is the time on
the device, launched as a CUDA graph; ``eager`` is what a caller waits, overhead of Python included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
for unused, parts in {"numba": (), "safetensors": ("torch",)}.items():  # the CPU engine and files: no part in this
    if importlib.util.find_spec(unused) is None:
        sys.modules |= {name: MagicMock() for name in (unused, *(f"{unused}.{part}" for part in parts))}

import isoconv  # noqa: E402
from isoconv.bands import PROFILES, band_plan  # noqa: E402
from isoconv.ops import conv_spec, sre_conv, triton_cuda  # noqa: E402

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SRE_CONV = {1: isoconv.SREConv1d, 2: isoconv.SREConv2d, 3: isoconv.SREConv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
TOLERANCE = {"float32": 1e-5, "tf32": 3e-3, "float16": 3e-3, "bfloat16": 2e-2}  # of the largest value
# (channels, size, kernel); k = 9 in 2D and k = 5 in 3D, of which most is expected, come first
LAYERS = [
    (64, (32, 32), 9),
    (64, (16, 16, 16), 5),
    (128, (16, 16), 9),
    (128, (16, 16, 16), 5),
    (256, (8, 8), 5),
    (512, (4, 4), 5),
    (64, (32, 32), 5),
    (64, (32, 32), 3),
    (64, (32, 32), 15),
    (64, (16, 16, 16), 3),
    (32, (24, 24, 24), 7),
]
BATCHES = {2: (128, 8), 3: (16, 2)}  # of training, and of the CPU benchmark
SETTINGS = [("bfloat16", True), ("tf32", False), ("float32", False), ("bfloat16", False)]  # precision, channels last
DRY = {"layers": [(4, (6, 6), 5), (3, (4, 4, 4), 3)], "batches": {2: (2,), 3: (1,)}, "rounds": 1}


class Results:
    """Figures by name, in a file that is complete after every one of them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu.json"
        self.data = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def __setitem__(self, key: str, value: object) -> None:
        self.data[key] = value
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.data, indent=1))
        os.replace(partial, self.path)
        self.path.with_suffix(".md").write_text("\n".join(tables(self.data)))


def environment(device: str) -> dict[str, object]:
    import triton

    gpu = torch.cuda.get_device_name() if device == "cuda" else "none, a dry run"
    known = {"gpu": gpu, "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    return known | {"isoconv": isoconv.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The dtype of a precision, with TF32 allowed in products and convolutions alike, or in neither."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield torch.float32 if name == "tf32" else getattr(torch, name)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def deviation(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def errors(input: Tensor, weight: Tensor, spec: isoconv.ops.ConvSpec) -> dict[str, float]:
    """Of output and gradients, relative to the largest value of each."""
    found = []
    grad = None
    for engine, dtype in (("reference", torch.float64), ("triton", input.dtype)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (input, weight)]
        output = sre_conv(*leaves, None, spec, engine=engine)
        grad = torch.randn_like(output).to(input.dtype) if grad is None else grad
        found.append((output, *torch.autograd.grad(output, leaves, grad.to(dtype))))
    expected, actual = found
    names = ("output", "grad_input", "grad_weight")
    return {name: deviation(a, e) for name, a, e in zip(names, actual, expected, strict=True)}


def check(seed: int, device: str) -> dict[str, object]:
    """One convolution drawn at random, by one of the tuned tiles drawn at random."""
    draw = random.Random(seed)
    dims = seed % 3 + 1
    kernel = tuple(draw.randint(1, (9, 6, 4)[dims - 1]) for _ in range(dims))
    groups = draw.choice((1, 1, 2))
    name = list(TOLERANCE)[seed // 3 % 4]
    arguments = {
        "stride": tuple(draw.choice((1, 1, 2)) for _ in range(dims)),
        "padding": tuple(draw.randint(0, k) for k in kernel),
        "dilation": tuple(draw.choice((1, 1, 2)) for _ in range(dims)),
        "groups": groups,
    }
    plan = band_plan(kernel, profile=draw.choice(list(PROFILES)), circular=draw.random() < 0.5)
    size = [2 * k + draw.randint(0, 9) for k in kernel]
    most = 6 if device == "cpu" else 100
    inputs, outputs = (draw.choice((draw.randint(1, most), most // 3 * 2)) for _ in range(2))
    tiles = {}
    for tuned in (triton_cuda._kernels().tuned_convolve_kernel, triton_cuda._kernels().tuned_weight_gradient_kernel):
        tiles[tuned], tuned.configs = tuned.configs, [draw.choice(tuned.configs)]
    chosen = [str(tuned.configs[0]) for tuned in tiles]
    try:
        with precision(name) as dtype:
            input = torch.randn(draw.randint(1, 3), inputs * groups, *size, device=device, dtype=dtype)
            if dims > 1 and draw.random() < 0.5:
                input = input.to(memory_format=CHANNELS_LAST[dims])
            weight = torch.randn(outputs * groups, inputs, plan.bands, device=device, dtype=dtype)
            off = errors(input, weight, conv_spec(plan, **arguments))
    finally:
        for tuned, configs in tiles.items():
            tuned.configs = configs
    shape = {"input": list(input.shape), "weight": list(weight.shape), "kernel": kernel, "plan": str(plan)}
    right = all(error <= TOLERANCE[name] for error in off.values())
    return {"right": right, "precision": name, "errors": off, "tiles": chosen, **shape, **arguments}


def as_graph(call: Callable[[], object], device: str) -> Callable[[], object]:
    if device == "cpu":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def clock(calls: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: median and quartiles over rounds in which all take turns."""
    many = {}
    for name, call in calls.items():
        once = min(seconds(call, 1, device) for _ in range(3))  # the first times are those of tuning
        many[name] = max(1, min(100, int(5e-3 / max(once, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(1e3 * seconds(call, many[name], device) / many[name])
    spread = {name: statistics.quantiles(t, n=4) if len(t) > 1 else t * 3 for name, t in times.items()}
    return {name: dict(zip(("q1", "median", "q3"), quartiles, strict=True)) for name, quartiles in spread.items()}


def seconds(call: Callable[[], object], count: int, device: str) -> float:
    """Wall time of ``count`` calls, waited for."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return time.perf_counter() - start


def peak(call: Callable[[], object], device: str) -> float:
    """Mebibytes that a call needs beside what was there."""
    if device == "cpu":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def backward(layer: nn.Module, input: Tensor, grad: Tensor) -> Callable[[], object]:
    leaves = [input, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(input), leaves, grad)


def bench_layer(
    channels: int, size: tuple[int, ...], kernel: int, batch: int, setting: tuple[str, bool], device: str, rounds: int
) -> dict[str, object]:
    name, last = setting
    dims = len(size)
    with precision(name) as dtype:
        input = torch.randn(batch, channels, *size, device=device, dtype=dtype)
        if last:
            input = input.to(memory_format=CHANNELS_LAST[dims])
        sre = {
            engine: SRE_CONV[dims](channels, channels, kernel, padding=kernel // 2, bias=False, engine=engine)
            for engine in ("triton", "reference")
        }
        plain = {
            f"k={k}": CONV[dims](channels, channels, k, padding=k // 2, bias=False) for k in dict.fromkeys((kernel, 3))
        }
        layers = {label: layer.to(device, dtype) for label, layer in (sre | plain).items()}
        if last:
            for label in plain:
                layers[label] = layers[label].to(memory_format=CHANNELS_LAST[dims])
        off = errors(input[:8], layers["triton"].weight, layers["triton"].spec)
        if any(error > TOLERANCE[name] for error in off.values()):
            return {"right": False, "errors": off}
        result: dict[str, object] = {"right": True, "errors": off, "plain": f"k={kernel}"}
        grad = torch.randn_like(layers["triton"](input))
        input.requires_grad_()
        steps = {label: backward(layer, input, grad) for label, layer in layers.items()}
        result["MiB"] = {label: peak(step, device) for label, step in steps.items()}
        with torch.no_grad():
            calls = {label: (lambda layer=layer: layer(input)) for label, layer in layers.items()}
            result["forward eager"] = clock(calls, device, rounds)
            result["forward graph"] = clock({k: as_graph(c, device) for k, c in calls.items()}, device, rounds)
        result["step eager"] = clock(steps, device, rounds)
        result["step graph"] = clock({k: as_graph(c, device) for k, c in steps.items()}, device, rounds)
        return result


def bench_model(dims: int, name: str, device: str, dry: bool, rounds: int) -> dict[str, object]:
    """A training step: forward, cross entropy, backward, SGD."""
    suffix, size, batch = ("", 32, 128) if dims == 2 else ("_3d", 32, 8)
    width, channels = 64, 3 if dims == 2 else 1
    kernels: tuple[int, ...] = (9, 9, 5, 5) if dims == 2 else (5, 5, 5, 5)
    if dry:
        size, batch, width, kernels = 6, 1, 2, (3, 3, 3, 3)
    models = {
        label: isoconv.create_model(f"sre_resnet18{suffix}", channels, 10, width=width, kernel_sizes=kernels, engine=e)
        for label, e in (("triton", "triton"), ("reference", "reference"))
    }
    models["plain k=3"] = isoconv.create_model(f"resnet18{suffix}", channels, 10, width=width)
    input = torch.rand(batch, channels, *[size] * dims, device=device)
    target = torch.randint(10, (batch,), device=device)
    half = name == "bfloat16"
    with precision("tf32" if half else name):
        steps = {}
        for label, model in models.items():
            model.to(device).train(not dry)  # one image has no variance to normalise by
            optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

            def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.zero_grad()
                with torch.autocast(device, torch.bfloat16) if half else nullcontext():
                    loss = F.cross_entropy(model(input), target)
                loss.backward()
                optimizer.step()

            steps[label] = step
        times = clock(steps, device, rounds)
        memory = {label: peak(step, device) for label, step in steps.items()}
        return {"right": True, "plain": "plain k=3", "step eager": times, "MiB": memory}


def tables(data: dict) -> Iterator[str]:
    yield "# The CUDA engine\n"
    for name, value in data.get("environment", {}).items():
        yield f"- {name}: {value}"
    checks = [value for key, value in data.items() if key.startswith("check ")]
    wrong = [key for key, value in data.items() if not value.get("right", True)]
    yield f"\n{len(checks)} random convolutions checked. Wrong: {', '.join(wrong) or 'none'}.\n"
    for mode in ("forward graph", "step graph", "forward eager", "step eager"):
        rows = [(key, value) for key, value in data.items() if value.get("right") and mode in value]
        if not rows:
            continue
        yield f"\n## {mode}: median milliseconds, and how many times faster triton is\n"
        yield "| | triton (quartiles) | plain | reference | plain k=3 | x plain | x reference | MiB triton / plain |"
        yield "|---|---|---|---|---|---|---|---|"
        for key, value in rows:
            times, plain = value[mode], value["plain"]
            ours, theirs, other = (times[label]["median"] for label in ("triton", plain, "reference"))
            three = times.get("k=3", times.get("plain k=3", {})).get("median", float("nan"))
            memory = f"{value['MiB']['triton']:.0f} / {value['MiB'][plain]:.0f}"
            spread = f"{ours:.3f} ({times['triton']['q1']:.3f}-{times['triton']['q3']:.3f})"
            ratios = f"{theirs / ours:.2f} | {other / ours:.2f}"
            yield f"| {key} | {spread} | {theirs:.3f} | {other:.3f} | {three:.3f} | {ratios} | {memory} |"
    for kernel, choices in data.get("tiles", {}).items():
        yield f"\n## Tiles chosen for {kernel}\n"
        yield from (f"- {key}: {tile}" for key, tile in choices.items())
    yield ""


def jobs(device: str, dry: bool) -> Iterator[tuple[str, Callable[[], dict[str, object]]]]:
    layers, batches, rounds = (DRY["layers"], DRY["batches"], 1) if dry else (LAYERS, BATCHES, 10)
    for seed in range(6 if dry else 24):
        yield f"check {seed}", lambda seed=seed: check(seed, device)
    for rank in range(max(len(b) for b in batches.values())):
        for setting in SETTINGS:
            for channels, size, kernel in layers:
                batch = batches[len(size)][min(rank, len(batches[len(size)]) - 1)]
                shape = f"{channels}x{'x'.join(map(str, size))} k={kernel} batch {batch}"
                key = f"{shape} {setting[0]}{' channels last' if setting[1] else ''}"
                arguments = (channels, size, kernel, batch, setting, device, rounds)
                yield key, lambda arguments=arguments: bench_layer(*arguments)
            if rank == 0 and not setting[1] and not (dry and setting[0] == "float32"):
                for dims in (2, 3):
                    key = f"resnet18 {dims}D {setting[0]}"
                    yield key, lambda dims=dims, name=setting[0]: bench_model(dims, name, device, dry, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=560, help="no new measurement is begun after this time")
    parser.add_argument("--only", default="", help="measure only what this regular expression finds in the name of")
    parser.add_argument("--dry", action="store_true", help="tiny sizes in Triton's interpreter, to try the script")
    options = parser.parse_args()
    start = time.monotonic()
    device = "cpu" if options.dry else "cuda"
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here: use --dry to try the script without one")
    results = Results(options.out)
    results["environment"] = environment(device)
    kernels = triton_cuda._kernels()
    left = 0
    for key, job in jobs(device, options.dry):
        if key in results and "error" not in results.data[key] or not re.search(options.only, key):
            continue
        if time.monotonic() - start > options.seconds:
            left += 1
            continue
        torch.manual_seed(0)
        began = time.monotonic()
        try:
            results[key] = job()
        except Exception as error:  # noqa: BLE001 - one failure must not cost the others their figures
            results[key] = {"right": False, "error": "".join(traceback.format_exception(error))[-4000:]}
            print(results.data[key]["error"], file=sys.stderr)
            if "CUDA error" in str(error):  # the device answers nothing more
                break
        torch.cuda.empty_cache()
        print(f"{time.monotonic() - start:6.1f} s  {key}: {time.monotonic() - began:.1f} s", flush=True)
    if not options.dry:
        tuned = (kernels.tuned_convolve_kernel, kernels.tuned_weight_gradient_kernel)
        chosen = {t.base_fn.__name__: {str(key): str(tile) for key, tile in t.cache.items()} for t in tuned}
        results["tiles"] = {name: results.data.get("tiles", {}).get(name, {}) | new for name, new in chosen.items()}
    wrong = [key for key, value in results.data.items() if not value.get("right", True)]
    print(f"{len(results.data)} entries, wrong: {wrong or 'none'}, left for the next run: {left}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
