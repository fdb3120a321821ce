"""Side-by-side timings: isotropic layers and networks against plain ones and against each other's engines.

All contestants take turns in one process, so that whatever else the machine does hits them alike; a layer whose engines
do not agree is not timed at all."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv
from isoconv._checks import count_of
from isoconv._progress import track
from isoconv.bands import BandPlan, band_plan
from isoconv.models import create_model
from isoconv.ops import ENGINES, ConvSpec, conv_spec, sre_conv

__all__ = ["LAYERS", "NETWORKS", "Layer", "Network", "bench_models", "bench_ops", "markdown"]

_CONV = {2: F.conv2d, 3: F.conv3d}
_E2CNN = "e2cnn, C4"
_AGREEMENT = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest value

Step = Callable[[], Any]


@dataclass(frozen=True)
class Layer:
    """A convolution from ``channels`` to ``channels`` of a batch of images, with zero padding to the same size."""

    channels: int
    size: tuple[int, ...]
    kernel: int
    batch: int

    def __str__(self) -> str:
        return f"{len(self.size)}D {self.channels}x{'x'.join(map(str, self.size))} k={self.kernel}"


LAYERS = (
    *(Layer(64, (32, 32), kernel, 8) for kernel in (3, 5, 9, 15)),
    Layer(128, (16, 16), 9, 8),
    Layer(256, (8, 8), 5, 8),
    Layer(512, (4, 4), 5, 8),
    Layer(32, (24, 24, 24), 7, 2),
    *(Layer(64, (16, 16, 16), kernel, 2) for kernel in (3, 5)),
    Layer(128, (16, 16, 16), 5, 2),
)


@dataclass(frozen=True)
class Network:
    """A training step of an isotropic network and of its plain twin."""

    name: str
    twin: str
    channels: int
    size: tuple[int, ...]
    width: int
    kernel_sizes: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        kernels = ", ".join(map(str, self.kernel_sizes))
        size = "x".join(map(str, (self.channels, *self.size)))
        return f"{self.name} ({kernels}) width {self.width}, {self.batch} x {size}"


NETWORKS = (
    Network("sre_resnet18", "resnet18", 3, (32, 32), 64, (9, 9, 5, 5), 32),
    *(Network("sre_resnet18_3d", "resnet18_3d", 1, (32, 32, 32), width, (5, 5, 5, 5), 2) for width in (16, 32)),
)


def bench_ops(
    layers: Sequence[Layer] = LAYERS, *, rounds: int = 15, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Time layers: every engine that can run them, the plain convolution of the same kernel size and of size 3, and the
    isotropic convolution in two eager steps, depthwise and pointwise; of images also, where e2cnn is installed, its
    convolution of as many channels that is equivariant to quarter turns.

    ``"product alone"`` is the matrix product that the banded weight leaves to do, the limit of every engine here.

    Returns:
        a dictionary for :func:`markdown` and for JSON: the machine, and a row per layer with, for every contestant,
        milliseconds (median and quartiles) of ``forward`` and ``forward+backward``, ``multiply_adds`` of a forward pass
        and ``peak_memory`` in bytes of a forward and backward pass (None where it cannot be measured).

    Raises:
        RuntimeError: if an engine's output or gradient is not that of the reference.
    """
    rows: list[dict[str, Any]] = []
    for layer in track(layers, "layers", len(layers)):
        contestants = _layer_contestants(layer, torch.device(device), dtype)
        steps = {name: steps for name, (steps, _) in contestants.items()}
        timings = {
            part: _take_turns({name: step[i] for name, step in steps.items()}, rounds, device)
            for i, part in enumerate(("forward", "forward+backward"))
        }
        rows.append(
            {
                "case": str(layer),
                "batch": layer.batch,
                "contestants": {
                    name: {part: timings[part][name] for part in timings}
                    | {"multiply_adds": cost, "peak_memory": _peak_memory(step[1], device)}
                    for name, (step, cost) in contestants.items()
                },
            }
        )
    machine = _machine(device, rounds)
    if any(_E2CNN in row["contestants"] for row in rows):
        machine["versions"]["e2cnn"] = version("e2cnn")
    return {"title": "Layers", "base": "plain", "dtype": str(dtype), **machine, "rows": rows}


def bench_models(networks: Sequence[Network] = NETWORKS, *, rounds: int = 5, device: str = "cpu") -> dict[str, Any]:
    """Time training steps (forward, backward, SGD) of networks: every engine, and the plain twin with 3-wide kernels.

    Returns, raises: as :func:`bench_ops`, with ``step`` in place of its two parts.
    """
    rows = []
    for network in track(networks, "networks", len(networks)):
        steps = _network_contestants(network, torch.device(device))
        timings = _take_turns(steps, rounds, device)
        rows.append(
            {
                "case": str(network),
                "batch": network.batch,
                "contestants": {
                    name: {"step": timings[name], "peak_memory": _peak_memory(step, device)}
                    for name, step in steps.items()
                },
            }
        )
    return {"title": "Training steps", "base": "reference", **_machine(device, rounds), "rows": rows}


def _layer_contestants(
    layer: Layer, device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[tuple[Step, Step], int]]:
    """Forward step, forward and backward step, and multiply-adds of a forward pass, by name."""
    torch.manual_seed(0)
    dims, channels = len(layer.size), layer.channels
    plan = band_plan((layer.kernel,) * dims)
    spec = conv_spec(plan, padding=layer.kernel // 2)
    x = torch.randn(layer.batch, channels, *layer.size, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    scale = (channels * layer.kernel**dims) ** -0.5
    banded = (scale * torch.randn(channels, channels, plan.bands, device=device, dtype=dtype)).requires_grad_()
    pixels = layer.batch * prod(layer.size)

    def plain(kernel: int) -> tuple[tuple[Step, Step], int]:
        shape = (channels, channels, *[kernel] * dims)
        weight = (scale * torch.randn(shape, device=device, dtype=dtype)).requires_grad_()
        convolve = _CONV[dims]
        return _steps(lambda: convolve(x, weight, padding=kernel // 2), (x, weight), grad), pixels * weight.numel()

    calls: dict[str, Callable[[], Tensor]] = {
        "reference": lambda: sre_conv(x, banded, None, spec, engine="reference"),
        "depthwise + pointwise": _depthwise_pointwise(x, banded, plan, layer.kernel),
    }
    for name, engine in ENGINES.items():
        if name != "reference" and engine.can_run(x, banded, spec) is None:
            calls[name] = _engine_call(x, banded, spec, name)
    costs = dict.fromkeys(calls, pixels * banded.numel())
    costs["reference"] = pixels * channels**2 * layer.kernel**dims
    costs["depthwise + pointwise"] += pixels * channels * plan.bands * layer.kernel**dims
    _check_agreement(str(layer), calls, (x, banded), grad)
    contestants = {"plain": plain(layer.kernel), "plain k=3": plain(3)}
    contestants |= {name: (_steps(call, (x, banded), grad), costs[name]) for name, call in calls.items()}
    if dims == 2 and importlib.util.find_spec("e2cnn"):
        contestants[_E2CNN] = (_steps(*_e2cnn(x, layer.kernel), grad), pixels * channels**2 * layer.kernel**dims)
    contestants["product alone"] = (_products(x, banded), pixels * banded.numel())
    return contestants


def _e2cnn(x: Tensor, kernel: int) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python and NumPy: they are newer than it
        from e2cnn import gspaces  # type: ignore[import-not-found]
        from e2cnn import nn as e2nn

        turns = gspaces.Rot2dOnR2(4)
        fields = e2nn.FieldType(turns, x.shape[1] // 4 * [turns.regular_repr])
        layer = e2nn.R2Conv(fields, fields, kernel, padding=kernel // 2, bias=False).to(x)
    return lambda: layer(e2nn.GeometricTensor(x, fields)).tensor, (x, *layer.parameters())


def _engine_call(x: Tensor, weight: Tensor, spec: ConvSpec, engine: str) -> Callable[[], Tensor]:
    return lambda: sre_conv(x, weight, None, spec, engine=engine)


def _depthwise_pointwise(x: Tensor, weight: Tensor, plan: BandPlan, kernel: int) -> Callable[[], Tensor]:
    """The isotropic convolution as a depthwise convolution with the basis, then one over channels and bands."""
    basis = torch.from_numpy(plan.basis).to(x).unsqueeze(1).repeat(x.shape[1], *[1] * (plan.dims + 1))
    convolve = _CONV[plan.dims]

    def call() -> Tensor:
        sums = convolve(x, basis, padding=kernel // 2, groups=x.shape[1])
        return convolve(sums, weight.flatten(1)[(..., *[None] * plan.dims)])

    return call


def _products(x: Tensor, weight: Tensor) -> tuple[Step, Step]:
    mixing = weight.detach().flatten(1)
    sums = torch.randn(mixing.shape[1], x.shape[0] * x[0, 0].numel(), device=x.device, dtype=x.dtype)
    grad = torch.randn(mixing.shape[0], sums.shape[1], device=x.device, dtype=x.dtype)

    def forward() -> None:
        torch.mm(mixing, sums)

    def both() -> None:
        torch.mm(mixing, sums)
        torch.mm(mixing.t(), grad)
        torch.mm(grad, sums.t())

    return forward, both


def _steps(call: Callable[[], Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Step, Step]:
    def forward() -> None:
        with torch.no_grad():
            call()

    return forward, lambda: torch.autograd.grad(call(), inputs, grad)


def _check_agreement(case: str, calls: Mapping[str, Callable[[], Tensor]], inputs: Sequence[Tensor], v: Tensor) -> None:
    def results(call: Callable[[], Tensor]) -> list[Tensor]:
        output = call()
        return [output.detach(), *torch.autograd.grad(output, inputs, v)]

    expected = results(calls["reference"])
    for name, call in calls.items():
        for what, actual, wanted in zip(
            ("output", "gradient", "weight gradient"), results(call), expected, strict=True
        ):
            error = ((actual - wanted).abs().max() / wanted.abs().max()).item()
            if not error < _AGREEMENT[v.dtype]:
                raise RuntimeError(
                    f"{case}: the {what} of {name} differs from the reference's by {error:.1e} of its largest value, "
                    f"{_AGREEMENT[v.dtype]:.0e} is allowed; nothing is timed"
                )


def _network_contestants(network: Network, device: torch.device) -> dict[str, Step]:
    torch.manual_seed(0)
    x = torch.randn(network.batch, network.channels, *network.size, device=device)
    labels = torch.arange(network.batch, device=device) % 8
    options: dict[str, Any] = {"in_channels": network.channels, "num_classes": 8, "width": network.width}

    def build(engine: str) -> nn.Module:
        return create_model(network.name, kernel_sizes=network.kernel_sizes, engine=engine, **options).to(device)

    fast = "numba" if device.type == "cpu" else "triton"
    nets = {"plain twin, k=3": create_model(network.twin, **options).to(device)}
    nets |= {engine: build(engine) for engine in ("reference", fast, "auto")}
    losses = {}
    for name, net in nets.items():
        if name != "plain twin, k=3":
            net.load_state_dict(nets["reference"].state_dict())
            losses[name] = F.cross_entropy(net(x), labels).item()
    spread = max(losses.values()) - min(losses.values())
    if not spread < 1e-3:
        raise RuntimeError(f"{network}: losses of the engines differ by {spread:.1e}: {losses}; nothing is timed")
    return {name: _training_step(net, x, labels) for name, net in nets.items()}


def _training_step(net: nn.Module, x: Tensor, labels: Tensor) -> Step:
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimiser.step()

    return step


def _take_turns(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of every step: the median of ``rounds`` calls in turn, and the quartiles."""
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, for a spread to be seen, got {rounds}")
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    clock = time.thread_time if _clock(device) == "CPU time" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            wait()
            start = clock()
            step()
            wait()
            if turn > 1:  # the first ones compile, tune and fill caches
                times[name].append(1e3 * (clock() - start))
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"median": median, "low": low, "high": high}
    return result


def _clock(device: str) -> str:
    """With one thread, its CPU time: other programs of a busy machine do not count."""
    return "CPU time" if device == "cpu" and torch.get_num_threads() == 1 else "wall time"


def _peak_memory(step: Step, device: str) -> int | None:
    """Bytes that a step takes at most above those in use before it; on a CPU only Linux can tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory freed before would be used again unnoticed
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        step()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _machine(device: str, rounds: int) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "clock": _clock(device),
        "rounds": rounds,
        "versions": {"isoconv": isoconv.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result of :func:`bench_ops` or :func:`bench_models`: per part, milliseconds (median, with the
    quartiles) and how many times faster than the contestant ``result["base"]``."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{result['device']}, threads: {result['threads']}, {result['clock']}; {versions}"
    lines = [
        f"# {result['title']}",
        "",
        f"{machine}; median of {count_of(result['rounds'], 'interleaved call')} (quartiles); in brackets: times faster "
        f"than {result['base']}.",
    ]
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["contestants"]))
    first = next(iter(result["rows"][0]["contestants"].values()))

    def table(title: str, cell: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> list[str]:
        lines = ["", f"## {title}", "", f"| case | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for row in result["rows"]:
            entries = row["contestants"]
            cells = [cell(entries[name], entries[result["base"]]) if name in entries else "" for name in names]
            lines.append(f"| {row['case']}, batch {row['batch']} | {' | '.join(cells)} |")
        return lines

    for part in [key for key, value in first.items() if isinstance(value, dict)]:
        lines += table(f"{part}, ms", partial(_timing, part))
    for key, unit, scale in (("peak_memory", "MiB", 2**20), ("multiply_adds", "millions", 1e6)):
        if first.get(key) is not None:
            lines += table(f"{key.replace('_', ' ')}, {unit}", partial(_amount, key, scale))
    return "\n".join(lines) + "\n"


def _timing(part: str, entry: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    t = entry[part]
    return f"{t['median']:.2f} ({t['low']:.2f}-{t['high']:.2f}) [{base[part]['median'] / t['median']:.1f}]"


def _amount(key: str, scale: float, entry: Mapping[str, Any], _: Mapping[str, Any]) -> str:
    return f"{entry[key] / scale:.1f}"
