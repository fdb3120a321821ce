"""The CUDA engine against the reference: its compiled kernels where there is a GPU, otherwise its kernels in Triton's
interpreter, and that they compile for a GPU all the same."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoconv import nn as iso
from isoconv.bands import NORMS, PROFILES, band_plan
from isoconv.ops import ConvSpec, conv_spec, sre_conv, triton_cuda

pytest.importorskip("triton", reason="triton is not installed (it is there for Linux only)")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of the largest value
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
            if triton_cuda._kernels().COMPILED:
                pytest.skip("the kernels were loaded before TRITON_INTERPRET was set")
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert error <= TOLERANCE[dtype], f"off by {error:.1e} of the largest value"


def check(input: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> None:
    """Output and all gradients are those of the reference in float64."""
    leaves = [t for t in (input, weight, bias) if t is not None]
    exact = [t.double().requires_grad_() for t in leaves]
    leaves = [t.detach().requires_grad_() for t in leaves]
    output = sre_conv(*leaves, *[None] * (3 - len(leaves)), spec, engine="triton")
    expected = sre_conv(*exact, *[None] * (3 - len(leaves)), spec, engine="reference")
    assert_close(output, expected, input.dtype)
    grad = torch.randn_like(expected).to(input.dtype)
    actual = torch.autograd.grad(output, leaves, grad)
    for a, e in zip(actual, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert_close(a, e, input.dtype)


@st.composite
def convolutions(draw: st.DrawFn) -> dict:
    dims = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, (7, 5, 3)[dims - 1])) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return {
        "plan": band_plan(
            kernel,
            profile=draw(st.sampled_from(list(PROFILES))),
            circular=draw(st.booleans()),
            norm=draw(st.sampled_from(NORMS)),
        ),
        "size": [draw(st.integers(n, n + 6)) for n in least],
        "batch": draw(st.sampled_from([None, 1, 2])),
        "inputs": draw(st.integers(1, 4)),
        "outputs": draw(st.integers(1, 4)),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "channels_last": draw(st.booleans()),
        "arguments": {
            "stride": tuple(draw(st.integers(1, 3)) for _ in range(dims)),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        },
    }


@given(convolutions())
@settings(max_examples=20)
def test_matches_the_reference(c: dict) -> None:
    plan, dtype, groups = c["plan"], c["dtype"], c["arguments"]["groups"]
    batch = [] if c["batch"] is None else [c["batch"]]
    input = random(*batch, c["inputs"] * groups, *c["size"], dtype=dtype)
    if c["channels_last"] and batch and plan.dims > 1:
        input = input.to(memory_format=CHANNELS_LAST[plan.dims])
    weight = random(c["outputs"] * groups, c["inputs"], plan.bands, dtype=dtype)
    bias = random(c["outputs"] * groups, dtype=dtype) if c["bias"] else None
    check(input, weight, bias, conv_spec(plan, **c["arguments"]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_more_channels_than_a_tile(dims: int, dtype: torch.dtype) -> None:
    plan = band_plan((3,) * dims)
    check(random(2, 70, *[5] * dims, dtype=dtype), random(66, 70, plan.bands, dtype=dtype), None, conv_spec(plan))


def test_sums_are_split_where_there_are_few_tiles() -> None:
    """Pixels for the gradient of the weight, channels for the convolution and its adjoint."""
    assert triton_cuda._parts(1, 2, torch.device(DEVICE)) >= 4
    check(random(1, 200, 3, 3), random(70, 200, 2), None, conv_spec(band_plan((3, 3)), padding=1))
    plan = band_plan((5,))
    check(random(1, 3, 1100), random(2, 3, plan.bands), None, conv_spec(plan, padding="same"))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    spec = conv_spec(band_plan((5, 3)), padding=(2, 1), padding_mode=mode)
    check(random(2, 3, 6, 7), random(4, 3, spec.plan.bands), random(4), spec)


def test_even_kernel_with_uneven_padding() -> None:
    spec = conv_spec(band_plan((4, 2)), padding="same")
    check(random(2, 3, 6, 7), random(4, 3, spec.plan.bands), None, spec)


def test_depthwise() -> None:
    spec = conv_spec(band_plan((5, 5)), padding=2, groups=4)
    check(random(2, 4, 6, 7), random(8, 1, spec.plan.bands), None, spec)


def test_memory_of_any_strides() -> None:
    spec = conv_spec(band_plan((3, 3)), padding=1)
    input, weight = random(7, 6, 3, 2).permute(3, 2, 1, 0), random(2, 4, 3).permute(1, 2, 0)
    check(input, weight, None, spec)
    leaf = input.detach().requires_grad_()
    sre_conv(leaf, weight, None, spec, engine="triton").sum().backward()  # its gradient has strides 0
    ones = torch.ones(2, 4, 6, 7, device=DEVICE)
    expected = torch.autograd.grad(sre_conv(leaf, weight, None, spec, engine="reference"), leaf, ones)[0]
    assert_close(leaf.grad, expected.double(), torch.float32)


@pytest.mark.parametrize("dims", [2, 3])
def test_memory_format_is_kept(dims: int) -> None:
    plan = band_plan((3,) * dims)
    input, weight = random(2, 3, *[4] * dims), random(5, 3, plan.bands)
    plain = sre_conv(input, weight, None, conv_spec(plan, padding=1), engine="triton")
    last = sre_conv(
        input.to(memory_format=CHANNELS_LAST[dims]), weight, None, conv_spec(plan, padding=1), engine="triton"
    )
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=CHANNELS_LAST[dims])
    torch.testing.assert_close(plain, last)


def test_empty_batch() -> None:
    input, weight = random(0, 3, 6, 6).requires_grad_(), random(4, 3, 2).requires_grad_()
    output = sre_conv(input, weight, None, conv_spec(band_plan((3, 3))), engine="triton")
    assert output.shape == (0, 4, 4, 4)
    output.sum().backward()
    assert input.grad.shape == input.shape
    assert not weight.grad.any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, of the interpreter
def test_nan_and_inf_go_where_they_go_in_the_reference() -> None:
    spec = conv_spec(band_plan((3, 3)), padding=1)
    input, weight = random(1, 2, 9, 9), random(3, 2, spec.plan.bands).abs()
    input[0, 0, 1, 1], input[0, 1, 6, 6] = float("nan"), float("inf")
    output = sre_conv(input, weight, None, spec, engine="triton")
    expected = sre_conv(input, weight, None, spec, engine="reference")
    finite = expected.isfinite()
    disc = torch.nn.functional.max_pool2d((~input.isfinite()).float().amax(1, keepdim=True), 3, 1, 1).bool()
    assert (finite | disc).all()  # the reference multiplies corners of weight 0 as well, the engine knows no such taps
    torch.testing.assert_close(output[finite], expected[finite])
    assert output[0, 0, 1, 1].isnan()
    assert output[0, 0, 6, 6].isposinf()


def test_double_backward() -> None:
    spec = conv_spec(band_plan((3, 3)), padding=1, stride=2)
    leaves = random(2, 3, 5, 6), random(4, 3, spec.plan.bands) / 4
    second = []
    for engine, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        exact = [t.to(dtype).requires_grad_() for t in leaves]
        output = sre_conv(*exact, None, spec, engine=engine).tanh()
        slopes = torch.autograd.grad(output.sum(), exact, create_graph=True)
        second.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), exact))
    for actual, expected in zip(*second, strict=True):
        assert_close(actual, expected, torch.float32)


def test_registered_operator_is_sound() -> None:
    geometry = ([1, 1], [1, 1], 1, band_plan((3, 3)).key)
    input, weight = random(2, 3, 5, 5), random(4, 3, 2)
    torch.library.opcheck(triton_cuda._convolve, (input.requires_grad_(), weight.requires_grad_(), [1] * 4, *geometry))


def test_compiled_whole() -> None:
    layer = iso.SREConv2d(3, 4, 3, padding=1, engine="triton").to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input = random(2, 3, 6, 6)
    torch.testing.assert_close(compiled(input), layer(input))


def test_autocast() -> None:
    layer = iso.SREConv2d(3, 4, 3, padding=1, engine="triton").to(DEVICE)
    input = random(2, 3, 6, 6)
    with torch.autocast(DEVICE, torch.bfloat16):
        output = layer(input)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(input), rtol=2e-2, atol=2e-2)


def test_tf32_as_the_flag_says() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, precision in ((False, "ieee"), (True, "tf32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert triton_cuda._arithmetic(torch.float32)["PRECISION"] == precision
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float32, float16 and bfloat16"),
        ({"transposed": True}, "no transposed convolution"),
        ({"size": 2}, "smaller than the kernel"),
    ],
)
def test_refuses(change: dict, reason: str) -> None:
    spec = conv_spec(band_plan((3, 3)), transposed=change.get("transposed", False))
    dtype, size = change.get("dtype", torch.float32), change.get("size", 6)
    with pytest.raises(NotImplementedError, match=reason):
        sre_conv(random(1, 4, size, size, dtype=dtype), random(4, 4, 2, dtype=dtype), None, spec, engine="triton")


def test_refuses_the_cpu_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = triton_cuda.can_run(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2), conv_spec(band_plan((3, 3))))
    assert reason == "it runs on CUDA devices, the input is on cpu"


def test_auto_waits_for_measurements() -> None:
    assert not triton_cuda.is_faster(random(1, 4, 6, 6), random(4, 4, 2), conv_spec(band_plan((3, 3))))


def run_apart(code: str, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=known | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_leaves_triton_alone() -> None:
    assert run_apart("import sys, isoconv; print('triton' in sys.modules)").strip() == "False"


def test_kernels_compile_for_a_gpu(tmp_path: os.PathLike) -> None:
    """To machine code of an H100, which needs none: the vectors are wide and the products on tensor cores."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from isoconv.ops import _triton_kernels as kernels

POINTERS = {"offsets": "*i64", "starts": "*i64", "coefficients": "*fp32"}
for kernel, tile in ((kernels.convolve_kernel.fn, {"BP": 64, "BO": 64, "BC": 64}),
                     (kernels.weight_gradient_kernel.fn, {"BP": 64, "BO": 64, "BC": 64}),
                     (kernels.pad_kernel, {"BP": 64, "BC": 32})):
    fixed = {"HARD": True, "WHOLE": True, "PAIR": kernels.tl.bfloat16, "OPERAND": kernels.tl.bfloat16,
             "PRECISION": "ieee", **tile}
    constants = {name: fixed[name] for name in kernel.arg_names if name in fixed}
    data = dict.fromkeys(("input", "grad", "mixing", "output"), "*bf16")
    types = {name: "constexpr" if name in fixed else (POINTERS | data).get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in fixed}
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    print(kernel.__name__, "ld.global.v4" in text, "wgmma.mma_async" in text)
"""
    lines = run_apart(code, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines[:2] == ["convolve_kernel True True", "weight_gradient_kernel True True"]
    assert lines[2].startswith("pad_kernel")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("channels", "size", "kernel"), [(64, (32, 32), 9), (256, (8, 8), 5), (3, (32, 32), 5), (32, (16, 16, 16), 5)]
)
def test_layers_of_networks(channels: int, size: tuple[int, ...], kernel: int, dtype: torch.dtype) -> None:
    plan = band_plan((kernel,) * len(size))
    spec = conv_spec(plan, padding=kernel // 2)
    input, weight = random(8, channels, *size, dtype=dtype), random(64, channels, plan.bands, dtype=dtype)
    check(input, weight, None, spec)
    first = sre_conv(input, weight, None, spec, engine="triton")
    assert torch.equal(first, sre_conv(input, weight, None, spec, engine="triton"))
