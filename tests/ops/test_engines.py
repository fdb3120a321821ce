"""How ``sre_conv`` chooses its engine."""

import pytest
import torch

from isoconv import nn as iso
from isoconv.bands import band_plan
from isoconv.ops import ENGINES, conv_spec, numba_cpu, sre_conv

SPEC = conv_spec(band_plan((9, 9)), padding=4)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the engines that ran."""
    names: list[str] = []
    for name, engine in ENGINES.items():
        run = engine.run

        def record(*arguments, name=name, run=run):  # type: ignore[no-untyped-def]
            names.append(name)
            return run(*arguments)

        monkeypatch.setattr(engine, "run", record)
    return names


def tensors(channels: int = 64, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, None]:
    return torch.randn(2, channels, 16, 16, dtype=dtype), torch.randn(channels, channels, 5, dtype=dtype), None


def test_auto_takes_the_fast_engine_for_a_large_kernel(ran: list[str]) -> None:
    sre_conv(*tensors(), SPEC)
    assert ran == ["numba"]


def test_auto_takes_the_reference_for_a_single_tap(ran: list[str]) -> None:
    iso.SREConv2d(64, 64, 1)(torch.randn(2, 64, 16, 16))
    assert ran == ["reference"]


def test_auto_takes_the_reference_for_what_others_cannot_run(ran: list[str]) -> None:
    sre_conv(*tensors(dtype=torch.bfloat16), SPEC)
    assert ran == ["reference"]


def test_auto_asks_whether_it_is_faster(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cpu, "is_faster", lambda *_: False)
    sre_conv(*tensors(), SPEC)
    assert ran == ["reference"]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_auto_takes_the_reference_for_what_is_exported() -> None:
    layer, x = iso.SREConv2d(64, 64, 9, padding=4).eval(), tensors()[0]
    program = torch.export.export(layer, (x,))
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "ops.isoconv" not in str(program.graph)
    assert "isoconv::" not in str(traced.inlined_graph)
    torch.testing.assert_close(program.module()(x), layer(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_a_named_engine_runs(engine: str, ran: list[str]) -> None:
    sre_conv(*tensors(2), SPEC, engine=engine)
    assert ran == [engine]


def test_a_named_engine_that_cannot_run_says_why() -> None:
    with pytest.raises(
        NotImplementedError, match=r"engine='numba' cannot run.*bfloat16.*use engine='auto' or 'reference'"
    ):
        sre_conv(*tensors(dtype=torch.bfloat16), SPEC, engine="numba")


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'numbas': expected one of auto, reference, numba.*numba"):
        sre_conv(*tensors(2), SPEC, engine="numbas")
    with pytest.raises(ValueError, match="unknown engine 'cuda'"):
        iso.SREConv2d(2, 2, 3, engine="cuda")


@pytest.mark.parametrize("name", ENGINES)
def test_engines_have_one_interface(name: str) -> None:
    reason = ENGINES[name].can_run(*tensors(2)[:2], SPEC)
    assert reason is None or isinstance(reason, str)
