"""What a feature map holds, and how it turns."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoconv.nn import Fields, arrows
from isoconv.nn.fields import as_fields
from isoconv.symmetry import plane_rotation, random_rotations, symmetry_group


def test_orders_ascend_along_the_channels() -> None:
    fields = Fields("4x1 + 8x0+3 x 2 + 0x5", dims=3)
    assert str(fields) == "8x0 + 4x1 + 3x2"
    assert repr(fields) == "Fields('8x0 + 4x1 + 3x2', dims=3)"
    assert fields.counts == {0: 8, 1: 4, 2: 3}
    assert fields.slices == {0: slice(0, 8), 1: slice(8, 20), 2: slice(20, 35)}
    assert (fields.channels, fields.scalars, fields.directed) == (35, 8, 7)
    assert Fields("8x0 + 4x1 + 3x2", dims=2).channels == 8 + 2 * 4 + 2 * 3


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1), st.sampled_from([2, 3]))
def test_equal_fields_are_equal_however_they_came(counts: dict[int, int], dims: int) -> None:
    fields = Fields.of(counts, dims)
    assert fields == Fields(str(fields), dims) == Fields(**json.loads(json.dumps(fields.to_json())))
    assert hash(fields) == hash(copy.deepcopy(fields)) == hash(pickle.loads(pickle.dumps(fields)))
    assert fields != Fields(str(fields), 5 - dims)
    x = torch.arange(2 * fields.channels).view(2, -1)
    assert torch.equal(torch.cat([v.flatten(1) for v in fields.split(x).values()], dim=1), x)


@pytest.mark.parametrize(
    ("text", "dims", "message"),
    [
        ("8x0 + 4y1", 2, "expected terms 'count x order' joined by '\\+', such as '8x0 \\+ 4x1', got '4y1'"),
        ("", 2, "expected terms"),
        ("-1x0", 2, "got '-1x0'"),
        ("0x0", 2, "expected at least one field"),
        ("8x0", 1, "2 or 3 dimensions, got dims=1"),
    ],
)
def test_other_texts_are_refused_with_a_reason(text: str, dims: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fields(text, dims)


def test_fields_of_a_layer() -> None:
    assert as_fields(3, 2) == as_fields("3x0", 2) == Fields("3x0", 2)
    with pytest.raises(ValueError, match="fields of 2 dimensions, got Fields\\('3x0', dims=3\\)"):
        as_fields(Fields("3x0", 3), 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_symmetries_act_as_a_group(dims: int) -> None:
    fields = Fields("2x0 + 1x1 + 2x2", dims)
    x = torch.randn(2, fields.channels, *[4] * dims, dtype=torch.float64)
    group = symmetry_group(dims)
    for g in group[1::5]:
        for h in group[::7]:
            (both,) = [k for k in group if torch.equal(k(x), g(h(x)))]
            torch.testing.assert_close(fields.act(g, fields.act(h, x)), fields.act(both, x))


def powers(v: torch.Tensor) -> torch.Tensor:
    """What of the products of a vector's (N, dims) components is of order 2, and of order 3 in 2D."""
    if v.shape[1] == 2:
        z = torch.complex(v[:, 0], v[:, 1])
        return torch.stack([(z**2).real, (z**2).imag, (z**3).real, (z**3).imag], dim=1)
    y, z, x = v.T
    squares = (z**2 - (x**2 + y**2) / 2) / 3**0.5, (x**2 - y**2) / 2
    return torch.stack([x * y, y * z, squares[0], x * z, squares[1]], dim=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_order_1_turns_as_a_vector_and_higher_orders_as_products_of_it(dims: int) -> None:
    turns = [plane_rotation(2, 37.0), plane_rotation(2, 90.0)] if dims == 2 else random_rotations(3)
    fields = Fields("1x1 + 1x2 + 1x3" if dims == 2 else "1x1 + 1x2", dims)
    v = torch.randn(5, dims, dtype=torch.float64)  # at no place: components only
    for turn in turns:
        w = v @ turn.T
        torch.testing.assert_close(fields.act(turn, torch.cat([v, powers(v)], 1)), torch.cat([w, powers(w)], 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_of_an_image_is_a_field_of_order_1(dims: int) -> None:
    image = torch.randn(1, 1, *[5] * dims, dtype=torch.float64)
    fields = Fields("1x1", dims)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.roll(-1, 2 + axis) - x.roll(1, 2 + axis) for axis in range(dims)], dim=1)

    for g in symmetry_group(dims):
        torch.testing.assert_close(fields.act(g, gradient(image)), gradient(g(image)))
    a_turn = symmetry_group(dims)[-1]
    assert not torch.allclose(Fields(f"{dims}x0", dims).act(a_turn, gradient(image)), gradient(a_turn(image)))


def test_arrows_are_the_vectors() -> None:
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(arrows(x, Fields("2x0 + 2x1 + 1x2", 2)), x[:, 2:6].unflatten(1, (2, 2)))
    with pytest.raises(ValueError, match="order 1 among 8x0"):
        arrows(x, Fields("8x0", 2))


def test_other_shapes_and_symmetries_are_refused() -> None:
    fields = Fields("2x0 + 1x1", 2)
    with pytest.raises(
        ValueError, match=r"expected \(N, 4, 2 spatial axes\) for the fields 2x0 \+ 1x1, got shape \(1, 3"
    ):
        fields.act(symmetry_group(2)[1], torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match=r"expected \(N, 4\) for"):
        fields.act(symmetry_group(2)[1], torch.zeros(1, 3))
    with pytest.raises(ValueError, match="symmetry of 2 dimensions, got one of 3"):
        fields.act(symmetry_group(3)[1], torch.zeros(1, 4, 5, 5))
