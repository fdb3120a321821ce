"""Norms, gates, sampled nonlinearities, dropout and pooling commute with the symmetries of the grid, fields turning."""

import copy

import pytest
import torch
from torch import nn

import isoconv
from isoconv.nn import FieldDropout, FieldGate, FieldMagnitudes, FieldNorm, FieldReLU, Fields, InvariantPool
from isoconv.nn.field_layers import magnitudes
from isoconv.symmetry import plane_rotation, random_rotations, symmetry_group

LAYERS = {
    "norm": FieldNorm,
    "instance norm": lambda fields: FieldNorm(fields, "instance"),
    "gate": FieldGate,
    "instance gate": lambda fields: FieldGate(fields, "instance"),
    "magnitudes": FieldMagnitudes,
    "relu": FieldReLU,
    "dropout": FieldDropout,
    "pool": InvariantPool,
    "pool of scalars": lambda fields: InvariantPool(fields, magnitudes=False),
}


def features(fields: Fields, size: int = 5, batch: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(batch, fields.channels, *[size] * fields.dims, dtype=dtype)


def layer_of(name: str, dims: int) -> nn.Module:
    """With parameters that are not those of the initialisation."""
    layer = LAYERS[name](Fields("3x0 + 3x1 + 3x2", dims)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_what_comes_out_turns_with_what_goes_in(name: str, dims: int) -> None:
    layer = layer_of(name, dims)
    x = features(layer.in_fields)
    for training in (True, False):
        if name == "dropout" and training:
            continue
        y = layer.train(training)(x)
        assert y.shape[1] == layer.out_fields.channels
        for g in symmetry_group(dims):
            torch.testing.assert_close(layer(layer.in_fields.act(g, x)), layer.out_fields.act(g, y))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["norm", "gate", "magnitudes"])
def test_components_may_turn_by_any_angle(name: str, dims: int) -> None:
    layer = layer_of(name, dims).eval()
    x = features(layer.in_fields, size=1)
    turn = plane_rotation(2, 20) if dims == 2 else random_rotations(1)[0]

    def turned(fields: Fields, x: torch.Tensor) -> torch.Tensor:
        return fields.act(turn, x.flatten(1)).unflatten(1, (-1, *[1] * dims))

    torch.testing.assert_close(layer(turned(layer.in_fields, x)), turned(layer.out_fields, layer(x)))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.BatchNorm2d(8)])
def test_layers_for_scalars_do_not_commute(layer: nn.Module) -> None:
    fields = Fields("2x0 + 1x1 + 2x2", 2)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.bias)
    g, x = symmetry_group(2)[-1], features(fields, dtype=torch.float32)
    assert (layer(fields.act(g, x)) - fields.act(g, layer(x))).abs().max() > 0.1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["norm", "instance norm", "gate", "magnitudes", "relu", "pool"])
def test_gradients(name: str, dims: int) -> None:
    layer = layer_of(name, dims)
    x = features(layer.in_fields, size=2).requires_grad_()
    assert torch.autograd.gradcheck(copy.deepcopy(layer), x, fast_mode=True)
    zeros = torch.zeros_like(x, requires_grad=True)
    layer(zeros).sum().backward()
    assert zeros.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_stays_finite_where_squares_overflow(name: str, dims: int) -> None:
    layer = layer_of(name, dims).half()
    for scale in (0, 300):
        x = (scale * features(layer.in_fields, dtype=torch.float32)).half().requires_grad_()
        for training in (True, False):
            y = layer.train(training)(x)
            assert y.dtype == torch.float16
            assert y.isfinite().all()
            (y / len(y[0].flatten())).sum().backward()
            assert x.grad.isfinite().all()
    assert all(b.isfinite().all() for b in layer.buffers())


@pytest.mark.parametrize("name", LAYERS)
def test_batches_of_none_and_one(name: str) -> None:
    layer = layer_of(name, 2)
    for training in (True, False):
        for batch in (0, 1):
            y = layer.train(training)(features(layer.in_fields, batch=batch))
            assert y.shape[:2] == (batch, layer.out_fields.channels)
            assert y.isfinite().all()
    assert all(b.isfinite().all() for b in layer.buffers())


@pytest.mark.parametrize("name", LAYERS)
def test_compile_and_export(name: str) -> None:
    layer = layer_of(name, 2).eval()
    x = features(layer.in_fields)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_fused_layer_needs_no_isoconv(name: str, dtype: torch.dtype) -> None:
    layer = layer_of(name, 3).eval().to(dtype)
    fused = isoconv.fuse(layer)
    assert not any(type(m).__module__.startswith("isoconv") for m in fused.modules())
    for size in (3, 4):
        x = features(layer.in_fields, size).to(dtype)
        tolerance = 1e-2 if dtype == torch.float16 else 1e-12
        torch.testing.assert_close(fused(x), layer(x), atol=tolerance, rtol=tolerance)


def test_scalars_are_normalised_as_in_torch_and_fields_by_their_root_mean_square() -> None:
    fields = Fields("2x0 + 3x1 + 1x2", 2)
    x = features(fields) * torch.arange(1, 11, dtype=torch.float64).view(1, -1, 1, 1)
    for kind, norm in (("batch", nn.BatchNorm2d(2)), ("instance", nn.InstanceNorm2d(2))):
        layer = FieldNorm(fields, kind).double()
        parts = fields.split(layer(x))
        torch.testing.assert_close(parts[0].squeeze(2), norm.double()(x[:, :2]))
        axes = (0, 2, 3, 4) if kind == "batch" else (2, 3, 4)
        for order in (1, 2):
            rms = parts[order].square().mean(axes).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-4, rtol=0)


def test_fused_a_norm_over_the_batch_is_that_of_torch() -> None:
    for text in ("2x0 + 3x1 + 1x2", "2x1", "3x0"):
        layer = FieldNorm(Fields(text, 2))
        layer(features(layer.in_fields, dtype=torch.float32))
        fused = isoconv.fuse(layer)
        assert type(fused) is nn.BatchNorm2d
        assert not fused.training
        x = features(layer.in_fields, dtype=torch.float32)
        torch.testing.assert_close(fused(x), layer.eval()(x))


def test_running_means_take_over_in_eval_mode() -> None:
    layer = FieldNorm(Fields("2x0 + 2x1", 2), momentum=0.5)
    for _ in range(60):
        trained = layer(x := 5 * torch.randn(8, 6, 16, 16))
    torch.testing.assert_close(layer.eval()(x), trained, atol=0.2, rtol=0.1)
    assert layer.rms.tolist() == pytest.approx([5, 5], rel=0.1)
    before = layer.rms.clone()
    layer(1000 * x)
    assert torch.equal(layer.rms, before)


def test_the_gate_scales_fields_and_adds_their_magnitudes_to_the_scalars() -> None:
    fields = Fields("1x0 + 2x1", 2)
    layer = FieldGate(fields).eval()
    assert layer.out_fields == Fields("3x0 + 2x1", 2)
    x = torch.tensor([-1.0, 3, 4, 0.6, 0.8]).view(1, 5, 1, 1)
    with torch.no_grad():
        layer.norm.bias.copy_(torch.tensor([-7.0, 1.0]))  # the norm of an untrained layer adds its bias, no more
    y = layer(x).flatten().tolist()
    assert y == pytest.approx([0, 0, 2, 0, 0, 1.2, 1.6], abs=2e-3)


def test_magnitudes_are_lengths() -> None:
    fields = Fields("1x0 + 1x1 + 1x2", 2)
    x = torch.tensor([7.0, 3, 4, 0, 0]).view(1, 5, 1, 1)
    assert magnitudes(x, fields).flatten().tolist() == pytest.approx([5, 1e-3**0.5], abs=1e-3)
    assert FieldMagnitudes(fields)(x).flatten().tolist() == pytest.approx([7, 5, 1e-3**0.5], abs=1e-3)
    assert InvariantPool(fields)(x.expand(1, 5, 2, 2)).shape == (1, 3)


@pytest.mark.parametrize(("dims", "directions"), [(2, 8), (2, 12), (3, 14), (3, 26)])
def test_sampling_and_projecting_back_is_the_identity_where_nothing_is_cut_off(dims: int, directions: int) -> None:
    layer = FieldReLU(Fields("2x0 + 2x1 + 2x2", dims), directions).double()
    x = features(layer.in_fields)
    x[:, :2] += 100  # the function is positive in every direction
    torch.testing.assert_close(layer(x), x)
    assert layer.sample.shape[0] == directions


def test_more_directions_come_closer_to_every_rotation() -> None:
    fields, turn = Fields("8x0 + 8x1 + 8x2", 2), plane_rotation(2, 10)
    x = torch.randn(4, fields.channels, dtype=torch.float64)

    def error(directions: int) -> float:
        layer = FieldReLU(fields, directions).double()
        y, turned = (layer(v[..., None, None]).flatten(1) for v in (x, fields.act(turn, x)))
        return ((turned - fields.act(turn, y)).norm() / y.norm()).item()

    errors = [error(n) for n in (8, 16, 32)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_dropout_takes_whole_fields_of_an_image() -> None:
    fields = Fields("40x0 + 40x1", 2)
    x = torch.ones(20, fields.channels, 3, 3)
    y = FieldDropout(fields, 0.25)(x)
    for v in fields.split(y).values():
        per_field = v.flatten(2)
        assert torch.equal(per_field.amax(2), per_field.amin(2))
        assert per_field.unique().tolist() == pytest.approx([0, 4 / 3])
        assert (per_field[..., 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(FieldDropout(fields).eval()(x), x)


def test_layers_of_scalars_alone_are_those_of_torch() -> None:
    fields = Fields("3x0", 2)
    x = features(fields)
    torch.testing.assert_close(FieldNorm(fields).double()(x), nn.BatchNorm2d(3).double()(x))
    assert torch.equal(FieldGate(fields)(x), x.relu())
    assert torch.equal(FieldMagnitudes(fields)(x), x)
    torch.testing.assert_close(InvariantPool(fields)(x), x.mean((2, 3)))
    assert not list(FieldGate(fields).parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: FieldNorm(f, "layer"), "kind must be 'batch' or 'instance', got 'layer'"),
        (lambda f: FieldReLU(Fields("2x0 + 1x1", 2)), "as many of each, got 2x0 \\+ 1x1"),
        (lambda f: FieldReLU(f, 6), "order 2 takes a multiple of 4 directions, at least 5, got 6"),
        (lambda f: FieldReLU(f, 4), "at least 5, got 4"),
        (lambda f: FieldReLU(Fields("1x3", 3), 14), "order 3 on the sphere takes 26 directions, got 14"),
        (lambda f: FieldReLU(Fields("1x4", 3)), "order 4 on the sphere takes more than 26 directions, got 26"),
        (lambda f: FieldDropout(f, 1.5), "p must be a probability, got 1.5"),
        (lambda f: FieldGate(f)(torch.zeros(1, 4, 5, 5)), r"expected \(N, 5, 2 spatial axes\) for the fields"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Fields("1x0 + 1x1 + 1x2", 2))
