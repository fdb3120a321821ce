"""Steerable convolutions commute with every symmetry of the grid, fields turning; from scalars to scalars they are
SRE-Conv."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import isoconv
from isoconv.nn import FieldReLU, Fields, SteerableConv2d, SteerableConv3d
from isoconv.nn.steerable import suits_channels_last
from isoconv.symmetry import GridGroup, symmetry_group

CONVS = {2: SteerableConv2d, 3: SteerableConv3d}
FIELDS = "2x0 + 1x1 + 1x2"


def field_error(layer: nn.Module, x: torch.Tensor, proper: bool = True) -> float:
    """Of a layer of fields against its own action: the worst over the rotations, or over the reflections."""
    with torch.no_grad():
        y = layer(x)
        group = [g for g in symmetry_group(layer.in_fields.dims) if g.proper == proper]
        return max(
            ((layer(layer.in_fields.act(g, x)) - layer.out_fields.act(g, y)).norm() / y.norm()).item() for g in group
        )


@st.composite
def layers(draw: st.DrawFn):
    dims = draw(st.sampled_from([2, 3]))
    groups = draw(st.sampled_from([1, 2]))

    def fields() -> str:
        counts = draw(st.dictionaries(st.integers(0, 2), st.integers(1, 2), min_size=1))
        return " + ".join(f"{groups * count}x{order}" for order, count in counts.items())

    size = draw(st.integers(3, 6 if dims == 2 else 4))
    options = {
        "in_fields": fields(),
        "out_fields": fields(),
        "kernel_size": size,
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        "profile": draw(st.sampled_from(["hard", "linear", "area", "gaussian"])),
        "circular": draw(st.booleans()),
        "max_order": 4,
        "reflections": draw(st.booleans()),
        "dtype": torch.float64,
    }
    try:
        layer = CONVS[dims](**options)
    except ValueError as error:  # the rings of some small kernels do not carry some orders
        assume("no kernel of size" not in str(error))
        raise
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@given(layers(), st.integers(11, 12))
@settings(max_examples=25)
def test_fields_turn_with_the_image(layer, size: int) -> None:
    x = torch.randn(2, layer.in_channels, *[size] * layer.dims, dtype=torch.float64)
    assert field_error(layer, x) <= 1e-13
    if layer.reflections:
        assert field_error(layer, x, proper=False) <= 1e-13
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_without_reflections_mirrors_are_seen(dims: int) -> None:
    layer = CONVS[dims](FIELDS, FIELDS, 3, padding=1, reflections=False, dtype=torch.float64)
    x = torch.randn(1, layer.in_channels, *[6] * dims, dtype=torch.float64)
    assert field_error(layer, x) <= 1e-13
    assert field_error(layer, x, proper=False) > 0.1
    paths = [
        sum(w.shape[-1] for w in CONVS[dims](FIELDS, FIELDS, 5, reflections=r).weights.values()) for r in (True, False)
    ]
    assert paths[1] > paths[0]


def test_a_kernel_of_other_weights_is_not_symmetric() -> None:
    """What the checks above measure is there to be found."""
    layer = SteerableConv2d(FIELDS, FIELDS, 3, padding=1, dtype=torch.float64)
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, dtype=torch.float64)
    plain.in_fields = plain.out_fields = layer.in_fields
    assert field_error(plain, torch.randn(1, 6, 6, 6, dtype=torch.float64)) > 0.1


@given(
    st.sampled_from([2, 3]),
    st.integers(1, 6),
    st.sampled_from(["hard", "linear", "area", "gaussian"]),
    st.booleans(),
)
@settings(max_examples=30)
def test_scalars_in_and_out_are_sre_conv(dims: int, size: int, profile: str, circular: bool) -> None:
    sre_class = {2: isoconv.SREConv2d, 3: isoconv.SREConv3d}[dims]
    options = {"padding": size // 2, "profile": profile, "circular": circular, "dtype": torch.float64}
    sre, steerable = sre_class(4, 6, size, **options), CONVS[dims](4, 6, size, **options)
    norms = torch.from_numpy(sre.plan.basis).flatten(1).norm(dim=1)
    with torch.no_grad():
        steerable.weight_0_0.copy_(sre.weight * norms)
        steerable.bias.copy_(sre.bias)
    torch.testing.assert_close(steerable.kernel(), sre.kernel())
    x = torch.randn(2, 4, *[7] * dims, dtype=torch.float64)
    torch.testing.assert_close(steerable(x), sre(x))
    assert [*sre.state_dict()] == ["weight", "bias"]
    assert [*steerable.state_dict()] == ["bias", "weight_0_0"] or [*steerable.state_dict()] == ["weight_0_0", "bias"]


def test_groups_are_layers_side_by_side() -> None:
    whole = SteerableConv2d("4x0 + 2x1", "2x0 + 4x1 + 2x2", 5, groups=2)
    parts = [SteerableConv2d("2x0 + 1x1", "1x0 + 2x1 + 1x2", 5) for _ in range(2)]
    nn.init.normal_(whole.bias)
    for index, part in enumerate(parts):
        part.load_state_dict({name: value.chunk(2)[index] for name, value in whole.state_dict().items()})
    x = torch.randn(3, 8, 9, 9)

    def share(fields: Fields, y: torch.Tensor, index: int) -> torch.Tensor:
        return torch.cat([v.chunk(2, 1)[index].flatten(1, 2) for v in fields.split(y).values()], dim=1)

    for index, part in enumerate(parts):
        torch.testing.assert_close(part(share(whole.in_fields, x, index)), share(whole.out_fields, whole(x), index))


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients(dims: int) -> None:
    layer = CONVS[dims]("1x0 + 1x1", "1x1 + 1x2", 3, reflections=False, dtype=torch.float64)
    x = torch.randn(1, layer.in_channels, *[4] * dims, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_kernel_is_the_same_eager_and_traced(dims: int, groups: int) -> None:
    # from order 0 to 3 no ring of a 3D kernel of 3 taps leads: a block of zeros
    layer = CONVS[dims]("4x0 + 2x1 + 2x2", "2x0 + 4x1 + 2x3", 3, groups=groups, dtype=torch.float64)
    names, weights = zip(*layer.weights.items(), strict=True)

    def weighed(*values: torch.Tensor) -> torch.Tensor:
        named = {f"weight_{j}_{o}": value for (j, o), value in zip(names, values, strict=True)}
        return torch.func.functional_call(Kernel(layer), {f"layer.{name}": value for name, value in named.items()}, ())

    class Kernel(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self) -> torch.Tensor:
            return self.layer.kernel()

    kernel = weighed(*weights)
    expected, pull_back = torch.func.vjp(weighed, *weights)
    torch.testing.assert_close(kernel, expected)
    cotangent = torch.randn(2, *kernel.shape, dtype=torch.float64)[1]  # contiguous, and not from its storage's start
    torch.testing.assert_close(torch.autograd.grad(kernel, weights, cotangent), pull_back(cotangent))
    assert torch.autograd.gradgradcheck(lambda *w: weighed(*w).square(), weights, fast_mode=True)


def test_the_kernel_is_exact_under_autocast() -> None:
    layer = SteerableConv2d(FIELDS, FIELDS, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.kernel(), layer.kernel().float())
        kernel = layer.kernel()
    torch.testing.assert_close(kernel, layer.kernel(), rtol=0, atol=0)


@given(
    st.sampled_from([2, 3]),
    st.sampled_from(["3x0", "5x0 + 2x1", "9x0 + 4x1 + 3x2"]),
    st.sampled_from(["2x0 + 1x1", "7x0 + 3x2", "1x1"]),
    st.sampled_from([1, 3]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.integers(5, 8), min_size=3, max_size=3),
)
def test_both_layouts_give_the_same(
    dims: int,
    source: str,
    target: str,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    reflections: bool,
    size: list[int],
) -> None:
    target = "2x0" if kernel == 1 and source == "3x0" else target if kernel > 1 else source
    options = {"stride": stride, "padding": padding, "dilation": dilation, "reflections": reflections}
    layer = CONVS[dims](source, target, kernel, **options)
    other = CONVS[dims](source, target, kernel, engine="reference", **options)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, layer.in_channels, *size[:dims], requires_grad=True)
    y, expected = layer(x), other(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    cotangent = torch.randn_like(y)
    found, wanted = (
        torch.autograd.grad(out, [x, *net.parameters()], cotangent) for out, net in ((y, layer), (expected, other))
    )
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_which_layers_train_with_channels_side_by_side() -> None:
    def chosen(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> bool:
        kernel = torch.randn(outputs, inputs, 3, 3, dtype=dtype, requires_grad=True)
        return suits_channels_last(torch.randn(2, inputs, 5, 5, dtype=dtype), kernel)

    assert chosen(24, 18)
    assert not chosen(64, 64)
    assert not chosen(24, 18, torch.float64)
    with torch.no_grad():
        assert not chosen(24, 18)


def test_gradients_turn_too() -> None:
    layer = SteerableConv2d(FIELDS, FIELDS, 5, padding=2, dtype=torch.float64)
    x = torch.randn(1, 6, 7, 7, dtype=torch.float64)
    cotangent = torch.randn(1, 6, 7, 7, dtype=torch.float64)

    def gradients(x: torch.Tensor, cotangent: torch.Tensor) -> list[torch.Tensor]:
        x = x.requires_grad_()
        return list(torch.autograd.grad(layer(x), [x, *layer.weights.values()], cotangent))

    base, *weights = gradients(x, cotangent)
    for g in symmetry_group(2):
        turned, *same = gradients(layer.in_fields.act(g, x).detach(), layer.out_fields.act(g, cotangent))
        torch.testing.assert_close(turned, layer.in_fields.act(g, base))
        torch.testing.assert_close(same, weights)


def test_white_noise_keeps_its_variance() -> None:
    for dims, channels in ((2, "32x0 + 16x1 + 16x2"), (3, "16x0 + 8x1 + 8x2")):
        layer = CONVS[dims](channels, channels, 5)
        y = layer(torch.randn(2, layer.in_channels, *[12] * dims))
        for order, fields in layer.out_fields.split(y).items():
            assert fields.var().item() == pytest.approx(1, abs=0.3), order


@pytest.mark.parametrize("dims", [2, 3])
def test_linear_resampling_takes_fields_as_they_are(dims: int) -> None:
    n = {2: "2d", 3: "3d"}[dims]
    for name, size in itertools.product(("SymmetricAvgPool", "SymmetricUpsample"), (5, 6)):
        layer = getattr(isoconv.nn, name + n)()
        layer.in_fields = layer.out_fields = Fields(FIELDS, dims)
        x = torch.randn(1, layer.in_fields.channels, *[size] * dims, dtype=torch.float64)
        assert max(field_error(layer, x, proper) for proper in (True, False)) <= 1e-14
    pool = getattr(isoconv.nn, "SymmetricMaxPool" + n)()
    pool.in_fields = pool.out_fields = Fields(FIELDS, dims)
    assert field_error(pool, x) > 0.1


def test_the_basis_is_exact_in_whatever_dtype_the_layer_is_moved_to() -> None:
    layer = SteerableConv3d(FIELDS, FIELDS, 3, padding=1)
    x = torch.randn(1, layer.in_channels, 5, 5, 5, dtype=torch.float64)
    for moved in (layer.double(), copy.deepcopy(layer).half().double(), pickle.loads(pickle.dumps(layer))):
        assert field_error(moved, x) <= 1e-14
    with torch.device("meta"):
        empty = SteerableConv3d(FIELDS, FIELDS, 3, padding=1)
    assert empty.weight_0_0.is_meta
    assert not any("basis" in name for name in layer.state_dict())
    filled = empty.to_empty(device="cpu").double()
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x), layer(x))
    with torch.device("meta"):
        empty = SteerableConv3d(FIELDS, FIELDS, 3, padding=1)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), layer(x))
    assert torch.equal(empty.to("cpu")(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_was_built_without_values_is_whole_once_its_weights_are_assigned(dtype: torch.dtype) -> None:
    def network() -> nn.Module:
        fields = Fields("2x0 + 2x1 + 2x2", dims=2)
        return nn.Sequential(SteerableConv2d(2, fields, 5, groups=2), FieldReLU(fields)).to(dtype)

    trained = network()
    with torch.device("meta"):
        empty = network()
    empty.load_state_dict(trained.state_dict(), assign=True)
    x = torch.randn(1, 2, 9, 9, dtype=dtype)
    assert torch.equal(empty(x), trained(x))
    assert {buffer.dtype for buffer in empty.buffers() if buffer.is_floating_point()} == {dtype}


def test_half_precision_and_autocast() -> None:
    layer = SteerableConv2d(FIELDS, FIELDS, 5, padding=2)
    x = torch.randn(2, 6, 9, 9)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x).float(), expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(layer.half()(x.half()).float(), expected, atol=0.02, rtol=0.02)


def test_compile_and_export() -> None:
    layer = SteerableConv2d("4x0 + 2x1", "2x0 + 2x1", 3, padding=1, groups=2)
    x = torch.randn(2, 8, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


@given(layers())
@settings(max_examples=15)
def test_the_plain_layer_gives_the_same_without_isoconv(layer) -> None:
    plain = isoconv.fuse(layer)
    assert type(plain) in (nn.Conv2d, nn.Conv3d)
    x = torch.randn(2, layer.in_channels, *[11] * layer.dims, dtype=torch.float64)
    torch.testing.assert_close(plain(x), layer(x))
    if layer.groups == 1:
        assert torch.equal(plain.weight, layer.kernel())


@pytest.mark.parametrize("dims", [2, 3])
def test_layers_say_how_they_transform(dims: int) -> None:
    """To what measures and judges layers."""
    x = torch.randn(1, Fields(FIELDS, dims).channels, *[6] * dims, dtype=torch.float64)
    for reflections, symmetry in ((True, GridGroup.FULL), (False, GridGroup.ROTATIONS)):
        layer = CONVS[dims](FIELDS, FIELDS, 3, padding=1, reflections=reflections, dtype=torch.float64)
        assert layer.symmetry is symmetry
        errors = isoconv.equivariance_error(layer, x, angles=(90,))
        assert errors["rot90"] <= 1e-13
        assert (errors["flip"] <= 1e-13) == reflections
        (row,) = isoconv.conversion_report(layer).rows
        assert (row.status, "mirror" in row.reason) == ("equivariant", not reflections)
    thick = CONVS[dims](FIELDS, FIELDS, 5, spacing=(2, *[1] * (dims - 1)))
    assert thick.symmetry is GridGroup.MIRRORS
    assert isoconv.conversion_report(thick).rows[0].status == "breaks symmetry"


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches_and_zeros(batch: int) -> None:
    layer = SteerableConv2d(FIELDS, FIELDS, 3, padding=1)
    y = layer(torch.zeros(batch, 6, 5, 5, requires_grad=True))
    assert y.shape == (batch, 6, 5, 5)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_only_scalars_have_a_bias() -> None:
    layer = SteerableConv2d(2, FIELDS, 3)
    assert layer.bias.shape == (2,)
    nn.init.ones_(layer.bias)
    y = layer(torch.zeros(1, 2, 5, 5))
    assert torch.equal(y, F.pad(torch.ones(1, 2, 3, 3), (0, 0, 0, 0, 0, 4)))
    assert SteerableConv2d(2, "2x1", 3).bias is None


def test_prints_what_is_not_usual() -> None:
    assert repr(SteerableConv2d(2, "2x1", 3)) == (
        "SteerableConv2d(2x0, 2x1, kernel_size=(3, 3), stride=(1, 1), bands=2, bias=False)"
    )
    assert "max_order=2, reflections=False" in repr(SteerableConv2d(2, "2x1", 3, max_order=2, reflections=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteerableConv2d(2, "1x0 + 1x1", 1), "no kernel of size \\(1, 1\\).*from 2x0 to fields of order 1"),
        (lambda: SteerableConv2d(2, "1x2", 5, max_order=1), "with max_order=1 leads from 2x0 to fields of order 2"),
        (lambda: SteerableConv2d("2x0 + 1x1", "2x0", 3, groups=2), "in_fields must have a multiple of groups=2"),
        (lambda: SteerableConv2d(2, 2, 3, engine="numba"), "engine auto or reference, got 'numba'"),
        (lambda: SteerableConv2d(Fields("2x0", 3), 2, 3), "fields of 2 dimensions"),
        (lambda: SteerableConv2d(2, 2, 3)(torch.zeros(1, 3, 5, 5)), r"expected an input \(N, 2, 2 spatial axes\)"),
        (lambda: SteerableConv2d(2, 2, 3)(torch.zeros(2, 5)), r"got shape \(2, 5\)"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
