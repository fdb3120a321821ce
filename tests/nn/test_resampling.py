"""Down- and up-sampling that commutes with the whole symmetry group at every size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isoconv
from isoconv import functional
from isoconv import nn as iso
from isoconv.ops import resampling
from isoconv.ops.resampling import centre_grid
from isoconv.symmetry import symmetry_group

POOLS = {
    (1, "avg"): iso.SymmetricAvgPool1d,
    (2, "avg"): iso.SymmetricAvgPool2d,
    (3, "avg"): iso.SymmetricAvgPool3d,
    (1, "max"): iso.SymmetricMaxPool1d,
    (2, "max"): iso.SymmetricMaxPool2d,
    (3, "max"): iso.SymmetricMaxPool3d,
}
SHAPES = st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.integers(1, 9)] * n))


@given(SHAPES, st.sampled_from(["avg", "max"]), st.integers(1, 3))
@settings(max_examples=60)
def test_pooling_commutes_with_the_group_and_rounds_up(shape: tuple[int, ...], mode: str, channels: int) -> None:
    pool = POOLS[len(shape), mode]()
    x = torch.randn(2, channels, *shape, dtype=torch.float64, requires_grad=True)
    y = pool(x)
    assert y.shape == (2, channels, *((n + 1) // 2 for n in shape))
    for g in symmetry_group(len(shape)):
        torch.testing.assert_close(pool(g(x)), g(y))
    assert torch.autograd.gradcheck(pool, x, fast_mode=True)
    torch.testing.assert_close(pool(x[0]), y[0])


def test_even_sizes_are_the_plain_mean_and_odd_ones_are_1_2_1() -> None:
    x = torch.randn(1, 2, 8, 6)
    assert torch.equal(functional.symmetric_avg_pool(x, 2), nn.functional.avg_pool2d(x, 2))
    line = torch.tensor([[[1.0, 2, 4, 8, 16]]])
    assert functional.symmetric_avg_pool(line, 1).tolist() == [[[1.25, (2 + 8 + 8) / 4, 14]]]
    assert functional.symmetric_max_pool(line, 1).tolist() == [[[2, 8, 16]]]


@given(SHAPES, st.data())
@settings(max_examples=40)
def test_upsampling_commutes_with_the_group(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = [2 * n - data.draw(st.integers(0, 1)) for n in shape]
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    y = functional.symmetric_upsample(x, size)
    assert list(y.shape[2:]) == size
    for g in symmetry_group(len(shape)):
        torch.testing.assert_close(functional.symmetric_upsample(g(x), [size[p] for p in g.perm]), g(y))


def test_upsampling_keeps_constants_and_undoes_the_shape_of_pooling() -> None:
    x = torch.full((1, 1, 9, 4, 7), 3.0)
    small = iso.SymmetricAvgPool3d()(x)
    assert torch.equal(iso.SymmetricUpsample3d()(small, size=x.shape[2:]), x)
    assert iso.SymmetricUpsample3d()(small).shape[2:] == (10, 4, 8)
    assert torch.equal(iso.SymmetricUpsample3d()(small[0], size=x.shape[2:]), x[0])


@pytest.mark.parametrize("shape", [(8,), (5,), (1,), (7, 2), (1, 9), (4, 3, 9), (1, 6, 1)])
def test_the_form_without_windows_that_depend_on_the_size_is_the_same(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dims = torch.randn(2, 3, *shape, dtype=torch.float64), len(shape)
    calls = [lambda: functional.symmetric_avg_pool(x, dims), lambda: functional.symmetric_max_pool(x, dims)]
    for odd in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        size = [2 * n - o for n, o in zip(shape, odd, strict=False)]
        calls.append(lambda size=size: functional.symmetric_upsample(x, size))
    for window in [(3, 2, 1, 1), (1, 2, 0, 1), (5, 4, 2, 1), (3, 3, 0, 2), (2, 5, 0, 1)]:
        k, s, p, d = window
        if all(n + 2 * p - d * (k - 1) > 0 and (n + 2 * p - d * (k - 1) - 1) % s < n for n in shape):
            calls += [lambda a=[(v,) * dims for v in window], m=m: centre_grid(x, *a, m) for m in ("avg", "max")]
    expected = [call() for call in calls]
    monkeypatch.setattr(resampling, "is_exported", lambda: True)
    for call, y in zip(calls, expected, strict=True):
        torch.testing.assert_close(call(), y)


@given(
    st.integers(1, 15),
    st.integers(1, 15),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 1),
    st.integers(1, 2),
    st.sampled_from(["avg", "max"]),
)
@settings(max_examples=60)
def test_a_centred_grid_makes_a_strided_convolution_symmetric(
    h: int, w: int, k: int, s: int, p: int, d: int, mode: str
) -> None:
    window = d * (k - 1) + 1
    if any(n + 2 * p < window or n <= (n + 2 * p - window) % s for n in (h, w)):
        return
    x = torch.randn(1, 2, h, w, dtype=torch.float64)
    conv = isoconv.SREConv2d(2, 3, k, s, p, d, dtype=torch.float64)
    module = nn.Sequential(iso.CentreGrid((k, k), (s, s), (p, p), (d, d), mode=mode), conv)
    y = module(x)
    assert y.shape == conv(x).shape
    for g in symmetry_group(2):
        torch.testing.assert_close(module(g(x)), g(y))


def test_a_strided_convolution_alone_is_not_symmetric_on_even_sizes() -> None:
    x, conv = torch.randn(1, 2, 16, 16), isoconv.SREConv2d(2, 3, 3, 2, 1)
    assert isoconv.equivariance_error(conv, x)["rot90"] > 0.1
    assert isoconv.equivariance_error(conv, x[..., 1:, 1:])["rot90"] < 1e-6


def test_a_grid_that_is_centred_already_is_left_alone() -> None:
    x = torch.randn(1, 1, 9, 9)
    assert centre_grid(x, (3, 3), (2, 2), (1, 1), (1, 1), "avg") is x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iso.SymmetricAvgPool2d()(torch.zeros(4, 4)), r"SymmetricAvgPool2d expects .* got shape \(4, 4\)"),
        (lambda: iso.SymmetricMaxPool2d()(torch.zeros(1, 1, 0, 4)), "non-empty spatial axes"),
        (
            lambda: iso.SymmetricUpsample2d()(torch.zeros(1, 1, 4, 4), size=(9, 8)),
            "each axis n can grow to 2n or 2n - 1",
        ),
        (lambda: functional.symmetric_upsample(torch.zeros(1, 4, 4), (8, 8)), "expected an input"),
        (
            lambda: iso.SymmetricUpsample2d()(torch.zeros(1, 1, 4, 4), size=(8,)),
            "one number per axis, 2",
        ),
        (lambda: iso.CentreGrid((3, 3), (0, 2), (1, 1), (1, 1)), "stride must be a number of at least 1 for each axis"),
        (lambda: iso.CentreGrid(3, 2, 1, 1), "stride must be a number of at least 1 for each axis, got 2"),
        (lambda: iso.CentreGrid((3, 3), (2, 2), (1, 1), (1, 1))(torch.zeros(4)), "expected an input"),
        (lambda: iso.CentreGrid((3, 3), (2, 2), (1, 1), (1, 1), mode="sum"), "mode must be 'avg' or 'max', got 'sum'"),
        (lambda: iso.CentreGrid((4,), (2,), (2,), (1,))(torch.zeros(1, 1, 1)), r"cannot be centred on .* \(1,\)"),
        (lambda: iso.CentreGrid((4,), (3,), (2,), (1,))(torch.zeros(1, 1, 2)), r"cannot be centred on .* \(2,\)"),
        (lambda: iso.CentreGrid((3,), (2,), (0,), (1,))(torch.zeros(1, 1, 2)), r"cannot be centred on .* \(2,\)"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
