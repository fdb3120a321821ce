"""The CPU engine against the reference, and against everything a PyTorch operator is expected to bear."""

import copy
import logging
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.utils._python_dispatch import TorchDispatchMode

from isoconv import nn as iso
from isoconv.bands import NORMS, PROFILES, band_plan
from isoconv.ops import ConvSpec, _pieces, conv_spec, numba_cpu, sre_conv

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
CHEAP = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_call(spec: ConvSpec, shape: tuple[int, ...], outputs: int, dtype: torch.dtype) -> list[Tensor]:
    """Input, weight and bias."""
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    inputs = shape[-spec.plan.dims - 1]
    weight = torch.randn(outputs, inputs // spec.groups, spec.plan.bands, dtype=dtype, requires_grad=True)
    return [x, weight, torch.randn(outputs, dtype=dtype, requires_grad=True)]


def assert_as_reference(spec: ConvSpec, tensors: list[Tensor]) -> None:
    """Output and all gradients are those of the reference."""
    expected = sre_conv(*tensors, spec, engine="reference")
    actual = sre_conv(*tensors, spec, engine="numba")
    grad = torch.randn_like(expected)
    pairs = [(actual, expected)]
    pairs += zip(torch.autograd.grad(actual, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True)
    for one, other in pairs:
        scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        torch.testing.assert_close(one, other, rtol=0, atol=scale * TOLERANCE[tensors[0].dtype])


@contextmanager
def set_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@st.composite
def calls(draw: st.DrawFn) -> tuple[ConvSpec, tuple[int, ...], int, torch.dtype]:
    dims = draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(least, most), min_size=dims, max_size=dims)))

    kernel = draw(st.one_of(st.integers(1, 9 if dims < 3 else 5).map(lambda k: (k,) * dims), st.just(each(1, 6))))
    plan = band_plan(
        kernel,
        profile=draw(st.sampled_from(list(PROFILES))),
        circular=draw(st.booleans()),
        norm=draw(st.sampled_from(NORMS)),
    )
    groups = draw(st.integers(1, 3))
    same = draw(st.booleans())
    stride, dilation = (1,) * dims if same else each(1, 3), each(1, 2)
    padding = "same" if same else each(0, max(kernel) + 1)
    spec = conv_spec(plan, stride=stride, padding=padding, dilation=dilation, groups=groups)
    size = tuple(
        max(n, d * (k - 1) + 1 - before - after, 1)
        for n, k, d, (before, after) in zip(each(1, 12), kernel, dilation, spec.padding, strict=True)
    )
    shape = (*draw(st.sampled_from([(), (0,), (1,), (3,)])), groups * draw(st.integers(1, 3)), *size)
    return spec, shape, groups * draw(st.integers(1, 3)), draw(st.sampled_from(list(TOLERANCE)))


@settings(max_examples=150)
@given(calls(), st.sampled_from([20, 300, 1 << 20]))
def test_drawn_calls_are_those_of_the_reference(call: tuple, buffer: int) -> None:
    spec, shape, outputs, dtype = call
    with pytest.MonkeyPatch.context() as patch:  # small buffers cut images, batches and volumes into pieces
        patch.setattr(_pieces, "_BUFFER", buffer)
        assert_as_reference(spec, random_call(spec, shape, outputs, dtype))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_modes(mode: str, dims: int) -> None:
    spec = conv_spec(band_plan((5,) * dims), padding="same", dilation=2, padding_mode=mode)
    assert_as_reference(spec, random_call(spec, (2, 3, *[9, 7, 6][:dims]), 4, torch.float64))


@pytest.mark.parametrize("channels", [6, 7])
def test_depthwise(channels: int) -> None:
    spec = conv_spec(band_plan((5, 5)), padding=2, groups=channels)
    assert_as_reference(spec, random_call(spec, (2, channels, 9, 8), 2 * channels, torch.float32))


@pytest.mark.parametrize(
    ("kernel", "shape", "outputs"),
    [
        ((9, 9), (8, 64, 32, 32), 64),
        ((5, 5), (8, 128, 4, 4), 96),
        ((15, 15), (1, 8, 70, 90), 8),
        ((5, 5, 5), (2, 32, 16, 16, 16), 16),
        ((101,), (2, 4, 5000), 4),
    ],
)
def test_layers_of_real_size(kernel: tuple[int, ...], shape: tuple[int, ...], outputs: int) -> None:
    spec = conv_spec(band_plan(kernel), padding="same")
    assert_as_reference(spec, random_call(spec, shape, outputs, torch.float32))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.flip(3),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
    ids=["channels_last", "transposed", "sliced", "flipped", "expanded"],
)
def test_layouts(view) -> None:  # type: ignore[no-untyped-def]
    spec = conv_spec(band_plan((3, 3)), padding=1)
    x, _, bias = random_call(spec, (2, 6, 12, 12), 5, torch.float32)
    weight = torch.randn(spec.plan.bands, 6, 5).permute(2, 1, 0).requires_grad_()
    assert_as_reference(spec, [view(x.detach()).requires_grad_(), weight, bias])
    y = sre_conv(x, weight, bias, spec, engine="numba")
    (grad,) = torch.autograd.grad(y.sum(), x)  # an expanded gradient
    torch.testing.assert_close(
        grad, torch.autograd.grad(sre_conv(x, weight, bias, spec, engine="reference").sum(), x)[0]
    )


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_first_and_second_derivatives(wanted: tuple[bool, bool], stride: int) -> None:
    spec = conv_spec(band_plan((3, 4), profile="gaussian"), padding=(2, 0), stride=stride, groups=2)
    x, weight, _ = random_call(spec, (2, 4, 5, 6), 4, torch.float64)
    tensors = (x.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1]))

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return sre_conv(x, weight, None, spec, engine="numba")

    assert torch.autograd.gradcheck(convolve, tensors)
    assert torch.autograd.gradgradcheck(convolve, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("profile", ["hard", "area"])
def test_nan_and_infinity_spread_as_in_the_reference(value: float, profile: str) -> None:
    # over taps that are not zero: the reference multiplies by zeros too and gets NaN there
    spec = conv_spec(band_plan((5, 5), circular=False, profile=profile), padding=2)
    x, weight, bias = random_call(spec, (2, 3, 11, 11), 4, torch.float32)
    weight = weight.detach().abs()  # infinities of two signs in one tap are a matter of order
    x.data[1, 2, 4, 5] = value
    with torch.no_grad():
        expected, actual = (sre_conv(x, weight, bias, spec, engine=engine) for engine in ("reference", "numba"))
    assert not expected.isfinite().all()
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_nan_stays_within_the_taps() -> None:
    spec = conv_spec(band_plan((5, 5)), padding=2)
    x, weight, _ = random_call(spec, (1, 1, 11, 11), 1, torch.float32)
    x.data[0, 0, 5, 5] = float("nan")
    hit = sre_conv(x, weight, None, spec, engine="numba").isnan()[0, 0, 3:8, 3:8]
    assert torch.equal(hit, torch.tensor(spec.plan.basis.any(axis=0)))


def test_repeated_calls_agree_to_the_bit_and_keep_no_memory() -> None:
    layer = iso.SREConv2d(3, 4, 5, padding=2, engine="numba")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def step() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    first = step()
    for _ in range(200):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        last = step()
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert growth < 8192
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_two_threads_at_once(threads: int) -> None:
    layer = iso.SREConv2d(16, 16, 5, padding=2, engine="numba")
    x = torch.randn(4, 16, 32, 32)
    with set_threads(threads), torch.no_grad(), ThreadPoolExecutor(2) as pool:
        expected = layer(x)
        results = list(pool.map(lambda _: layer(x), range(16)))
    for result in results:
        torch.testing.assert_close(result, expected)


def in_new_process(code: str, **environment: str) -> str:
    lines = [
        "import os, torch, isoconv",
        "layer = isoconv.nn.SREConv2d(8, 8, 5, padding=2, engine='numba')",
        "reference = isoconv.nn.SREConv2d(8, 8, 5, padding=2, engine='reference')",
        "reference.load_state_dict(layer.state_dict())",
        "x = torch.randn(4, 8, 32, 32)",
        "def check(): torch.testing.assert_close(layer(x), reference(x))",
    ]
    command = [sys.executable, "-W", "error", "-c", "\n".join([*lines, code])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_fork_and_in_workers_of_a_data_loader() -> None:
    code = """
class Smoothed(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return layer(x[i]).detach()
torch.set_num_threads(2)
check()
if os.fork() == 0:
    torch.set_num_threads(1)  # as DataLoader does in its workers: OpenMP's threads do not survive a fork
    check()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
loader = torch.utils.data.DataLoader(Smoothed(), batch_size=4, num_workers=2, multiprocessing_context='fork')
torch.testing.assert_close(torch.cat(list(loader)), reference(x).detach())
check()"""
    in_new_process(code)


def test_a_smaller_team_than_asked_for() -> None:
    in_new_process("torch.set_num_threads(2)\nwith torch.no_grad(): check()", OMP_THREAD_LIMIT="1")


def test_without_a_folder_to_keep_compiled_code() -> None:
    code = """
from unittest import mock
import numba.core.caching as caching
with mock.patch.object(caching.CacheImpl, '_locator_classes', []):
    check()"""
    in_new_process(code)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("missing", ["_openmp", "gemm"])
def test_without_what_pytorch_may_lack(missing: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoconv.ops import _numba_kernels

    monkeypatch.setattr(_numba_kernels, missing, {"_openmp": lambda: None, "gemm": lambda _: 0}[missing])
    _pieces._cut.cache_clear()
    with set_threads(threads):
        for spec, shape in both_kinds_of_calls():
            assert_as_reference(spec, random_call(spec, shape, 8, torch.float32))
    _pieces._cut.cache_clear()


def both_kinds_of_calls() -> list[tuple[ConvSpec, tuple[int, ...]]]:
    """With pixels enough that threads take pieces of their own, and with so few that they share them."""
    return [
        (conv_spec(band_plan((5, 5)), padding=2, groups=groups), (4, 64, size, size))
        for groups, size in ((1, 32), (2, 30), (1, 15), (1, 6), (2, 5))
    ]


def test_two_threads() -> None:
    with set_threads(2):
        for spec, shape in both_kinds_of_calls():
            for dtype in TOLERANCE:
                assert_as_reference(spec, random_call(spec, shape, 8, dtype))


def test_compile_time_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    _pieces._compiled.cache_clear()
    layer = iso.SREConv2d(2, 2, 3, engine="numba")
    with caplog.at_level(logging.DEBUG, logger="isoconv.ops._pieces"):
        layer(torch.randn(1, 2, 5, 5))
        layer(torch.randn(1, 2, 5, 5))
    (message,) = caplog.messages
    assert re.fullmatch(r"(compiled|loaded) the (compiled )?convolutions in float32 in \d+\.\d s", message)


def test_copies_and_pickles() -> None:
    layer = iso.SREConv3d(2, 3, 3, padding=1, engine="numba")
    x = torch.randn(2, 2, 5, 5, 5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("layer", [iso.SREConv2d(4, 6, 5, 2, 2, groups=2, engine="numba"), iso.SREConv2d(4, 4, 3)])
def test_compile_and_export(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    expected = layer(x)
    expected.sum().backward()
    (grad, x.grad) = (x.grad, None)
    torch._dynamo.reset()
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(x.grad, grad)
    exported = torch.export.export(layer, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    other = torch.randn(3, 4, 9, 9)
    torch.testing.assert_close(exported(other), layer(other))


class Watcher(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_who_watches_operators_sees_them_and_gets_the_same() -> None:
    layer, x = iso.SREConv2d(4, 6, 5, padding=2, engine="numba"), torch.randn(2, 4, 9, 9, requires_grad=True)
    with Watcher() as watcher:
        watched = layer(x)
        grad = torch.autograd.grad(watched.square().sum(), x)[0]
    assert {"isoconv.ring_conv.default", "isoconv.ring_conv_gradients.default"} <= set(watcher.seen)
    alone = layer(x)
    assert torch.equal(alone, watched)
    assert torch.equal(torch.autograd.grad(alone.square().sum(), x)[0], grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_the_operator_not_its_result() -> None:
    layer = iso.SREConv2d(4, 6, 5, padding=2, engine="numba").eval()
    traced = torch.jit.trace(layer, torch.randn(2, 4, 9, 9))
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(traced(x), layer(x))


def test_operators_keep_the_rules_of_pytorch() -> None:
    plan = band_plan((3, 3))
    x, weight, grad = (torch.randn(s, requires_grad=True) for s in ((2, 4, 5, 6), (6, 2, 2), (2, 6, 3, 3)))
    geometry = ([1, 1, 1, 1], [2, 2], [1, 1], 2, plan.key)
    torch.library.opcheck(numba_cpu._convolve, (x, weight, *geometry))
    for wanted in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(numba_cpu._gradients, (x, weight, grad, wanted, *geometry))


def test_autocast_goes_to_the_reference() -> None:
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert iso.SREConv2d(4, 4, 5)(x).dtype == torch.bfloat16
        with pytest.raises(NotImplementedError, match=r"autocast asks for torch\.bfloat16"):
            iso.SREConv2d(4, 4, 5, engine="numba")(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by forward_ad itself
def test_function_transforms_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cpu, "is_faster", lambda *_: True)
    layer, x = iso.SREConv2d(8, 8, 5, padding=2), torch.randn(2, 8, 8, 8)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(layer.weight, x)
    for grad, sample in zip(per_sample, x, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(loss(layer.weight, sample), layer.weight)[0])
    with torch.autograd.forward_ad.dual_level():
        direction = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        slope = torch.autograd.forward_ad.unpack_dual(layer(direction)).tangent
    torch.testing.assert_close(slope, layer(torch.ones_like(x)) - layer(torch.zeros_like(x)))
    layer.engine = "numba"
    with pytest.raises(NotImplementedError, match=r"torch\.func transforms and .* need the reference"):
        torch.func.grad(loss)(layer.weight, x[0])


def test_several_gradients_at_once() -> None:
    layer, x = iso.SREConv2d(2, 3, 3, engine="numba"), torch.randn(1, 2, 4, 4)

    def outputs(x: Tensor) -> Tensor:
        return layer(x).square().sum((0, 2, 3))

    def total(x: Tensor) -> Tensor:
        return outputs(x).sum()

    for derivatives, function in ((jacobian, outputs), (hessian, total)):
        torch.testing.assert_close(derivatives(function, x, vectorize=True), derivatives(function, x))


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (iso.SREConv2d(2, 2, 5, engine="numba"), (1, 2, 4, 9), "padded input is smaller than the kernel"),
        (iso.SREConv2d(2, 2, 5, padding=4, engine="numba"), (1, 2, 0, 9), "needs pixels"),
        (iso.SREConvTranspose2d(2, 2, 5, engine="numba"), (1, 2, 9, 9), "no transposed convolution"),
        (iso.SREConv2d(2, 2, 5, engine="numba", dtype=torch.float16), (1, 2, 9, 9), r"the input is torch\.float16"),
    ],
)
def test_what_it_cannot_do_is_refused(layer: torch.nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(NotImplementedError, match=f"engine='numba' cannot run.*{reason}"):
        layer(torch.zeros(shape, dtype=layer.weight.dtype))
