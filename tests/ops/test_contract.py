"""What every engine promises, whichever joins :data:`isoconv.ops.ENGINES`: the reference's outputs and gradients, or a
reason."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoconv.bands import NORMS, PROFILES, band_plan
from isoconv.ops import ENGINES, ConvSpec, conv_spec, sre_conv, triton_cuda

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}  # of the largest value

Call = tuple[ConvSpec, tuple[int, ...], int, torch.dtype]


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    """Triton's kernels run on the CPU, unless they were compiled for a GPU before."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        yield


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Hyperparameters, the input's shape, output channels, and a dtype."""
    dims = draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    kernel = each(1, (7, 5, 3)[dims - 1])
    spacing = draw(st.sampled_from([None, (2.5, 1.0, 0.8)[:dims]]))
    plan = band_plan(
        kernel,
        profile=draw(st.sampled_from(list(PROFILES))),
        circular=draw(st.booleans()),
        norm=draw(st.sampled_from(NORMS)),
        spacing=spacing,
    )
    groups, padding, dilation = draw(st.sampled_from([1, 1, 2])), each(0, 3), each(1, 2)
    spec = conv_spec(plan, stride=each(1, 3), padding=padding, dilation=dilation, groups=groups)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(n + more for n, more in zip(least, each(0, 5), strict=True))
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    shape = (*batch, groups * draw(st.integers(1, 3)), *size)
    return spec, shape, groups * draw(st.integers(1, 3)), draw(st.sampled_from(list(TOLERANCE)))


def tensors(call: Call) -> list[Tensor]:
    """Input, weight and bias."""
    spec, shape, outputs, dtype = call
    weight = (outputs, shape[-spec.plan.dims - 1] // spec.groups, spec.plan.bands)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.randn(s).to(device, dtype) for s in (shape, weight, (outputs,))]


def results(engine: str, leaves: list[Tensor], spec: ConvSpec, grad: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of input, weight and bias."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = sre_conv(*leaves, spec, engine=engine)
    grad = torch.ones_like(output) if grad is None else grad.to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=30)
@given(call=calls())
def test_outputs_and_gradients_are_those_of_the_reference_in_float64(engine: str, call: Call) -> None:
    spec, *_, dtype = call
    # PyTorch's own convolution in half precision is not ours to test: oneDNN's is wrong for images one pixel wide
    assume(engine != "reference" or dtype not in (torch.float16, torch.bfloat16))
    leaves = tensors(call)
    reason = ENGINES[engine].can_run(leaves[0], leaves[1], spec)
    if reason is not None:  # what it cannot run it refuses, and says why
        with pytest.raises(NotImplementedError) as refusal:
            results(engine, leaves, spec)
        assert reason in str(refusal.value)
        return
    exact = [leaf.double() for leaf in leaves]
    grad = torch.randn_like(sre_conv(*exact, spec, engine="reference"))
    grad = grad.to(dtype)
    for actual, expected in zip(
        results(engine, leaves, spec, grad), results("reference", exact, spec, grad), strict=True
    ):
        assert actual.dtype == dtype
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=scale * TOLERANCE[dtype])


@pytest.mark.parametrize("engine", ENGINES)
def test_each_runs_a_plain_call(engine: str) -> None:
    """Else the test above would pass for an engine that refuses everything."""
    if engine == "triton":
        pytest.importorskip("triton", reason="triton is not installed (it is there for Linux only)")
        if not torch.cuda.is_available() and triton_cuda._kernels().COMPILED:
            pytest.skip("the kernels were loaded before TRITON_INTERPRET was set")
    spec = conv_spec(band_plan((3, 3)), padding=1)
    leaves = tensors((spec, (1, 2, 5, 5), 2, torch.float32))
    assert ENGINES[engine].can_run(leaves[0], leaves[1], spec) is None


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "reference"])
@pytest.mark.parametrize("parity", [(1, -1), (None, 1)])
def test_fast_ones_refuse_a_basis_that_is_not_even(engine: str, parity: tuple[int | None, ...]) -> None:
    """Their adjoint is the same ring sums, which holds for a row that equals its reflection through the centre."""
    plan = band_plan((3, 3))
    spec = conv_spec(replace(plan, parity=(plan.parity[0], parity)))
    even = conv_spec(replace(plan, parity=(plan.parity[0], (-1, -1))))
    leaves = tensors((spec, (1, 2, 5, 5), 2, torch.float32))
    if ENGINES[engine].can_run(leaves[0], leaves[1], even) is not None:
        pytest.skip("it cannot run here")
    with pytest.raises(NotImplementedError, match="even under reflection through their centre"):
        results(engine, leaves, spec)
