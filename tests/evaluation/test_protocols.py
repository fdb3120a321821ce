"""The positions in which networks are tested: as many as documented, exact where they can be, seen through one mask."""

import re
from collections import Counter

import pytest
import torch
from torch import Tensor

from isoconv.data import augmentation
from isoconv.evaluation.protocols import AS_IS, DISTURBANCES, PROTOCOLS, Condition, conditions, is_masked
from isoconv.symmetry import circular_mask, symmetry_group

EVERY = pytest.mark.parametrize(
    ("protocol", "dims", "masked"),
    [*((p, d, True) for p in PROTOCOLS for d in (2, 3)), ("disturbed", 2, False), ("disturbed", 3, False)],
)


def images(dims: int, side: int = 12) -> Tensor:
    return torch.rand(2, 3, *[side] * dims)


def by_name(protocol: str, dims: int, masked: bool = True) -> dict[str, Condition]:
    return {position.name: position for position in conditions(protocol, dims, masked)}


@pytest.mark.parametrize(
    ("protocol", "dims", "count"),
    [
        ("standard", 2, {"rotation": 36, "flip": 2, "unmasked": 1}),
        ("standard", 3, {"cube": 24, "rotation": 32, "flip": 3, "unmasked": 1}),
        ("disturbed", 2, {"rotation": 12, "flip": 2, **dict.fromkeys(DISTURBANCES, 12)}),
        ("disturbed", 3, {"cube": 24, "rotation": 8, "flip": 3, **dict.fromkeys(DISTURBANCES, 8)}),
        ("official", 2, {"rotation": 37, "flip": 2}),
        ("official", 3, {"rotation": 39, "flip": 3}),
    ],
)
def test_positions_are_those_documented(protocol: str, dims: int, count: dict[str, int]) -> None:
    positions = conditions(protocol, dims)
    assert Counter(position.group for position in positions) == count
    assert len({position.name for position in positions}) == len(positions)


@EVERY
def test_upright_comes_first(protocol: str, dims: int, masked: bool) -> None:
    x = images(dims)
    first = conditions(protocol, dims, masked)[0]
    expected = x * circular_mask(x.shape[2:]) if is_masked(protocol, masked) else x
    assert torch.equal(first.apply(x), expected)
    assert (first.angle, first.right_angle) == (0, False)


@EVERY
@pytest.mark.parametrize("side", [11, 12])
def test_right_angles_and_flips_move_pixels_and_change_none(protocol: str, dims: int, masked: bool, side: int) -> None:
    x = images(dims, side)
    upright, *others = conditions(protocol, dims, masked)
    exact = [position for position in others if position.right_angle or position.group == "flip"]
    moved = [g(upright.apply(x)) for g in symmetry_group(dims)]
    for position in exact:
        assert any(torch.equal(position.apply(x), each) for each in moved), position.name
        assert not torch.equal(position.apply(x), upright.apply(x))
    assert sum(p.right_angle for p in exact) == {2: 3, 3: 9 if protocol == "official" else 23}[dims]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("protocol", ["standard", "disturbed"])
def test_positions_are_all_seen_through_the_same_mask(protocol: str, dims: int) -> None:
    outside = ~circular_mask((12,) * dims)
    for position in conditions(protocol, dims):
        shown = position.apply(torch.ones(1, 1, *[12] * dims))
        if position.group == "unmasked":
            assert shown.min() == 1
        else:
            assert not shown[..., outside].any(), position.name


def test_only_the_disturbed_protocol_asks_whether_a_network_was_trained_with_the_mask() -> None:
    assert [[is_masked(p, network) for p in ("standard", "official", "disturbed")] for network in (True, False)] == [
        [True, False, True],
        [True, False, False],
    ]
    x = images(2)
    for protocol in ("standard", "official"):
        for one, other in zip(conditions(protocol, 2, True), conditions(protocol, 2, False), strict=True):
            assert torch.equal(one.apply(x), other.apply(x)), one.name


@pytest.mark.parametrize(("dims", "bared"), [(2, 0.5), (3, 0.0)])
def test_networks_trained_without_the_mask_see_what_their_augmentation_bares(dims: int, bared: float) -> None:
    """What comes from outside is all of one shade: of an image of that shade nothing but the noise changes anything."""
    x, disc = images(dims), circular_mask((12,) * dims)
    same, through = by_name("disturbed", dims, masked=False), by_name("disturbed", dims)
    assert list(same) == list(through)
    for name, position in same.items():
        shown = position.apply(torch.full_like(x, bared))
        if position.group != "noisy":
            torch.testing.assert_close(shown, torch.full_like(x, bared), msg=name)
        if position.group in ("rotation", "cube", "flip"):  # the disc sees nothing of the corners
            inner = circular_mask((10,) * dims)
            torch.testing.assert_close(
                position.apply(x)[(..., *[slice(1, -1)] * dims)][..., inner],
                through[name].apply(x)[(..., *[slice(1, -1)] * dims)][..., inner],
            )
    assert same["flip_w"].apply(x)[..., ~disc].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_augmentation_of_the_official_recipe_bares_the_same(dims: int) -> None:
    bared = {2: 0.5, 3: 0.0}[dims]
    moved = augmentation("official", dims, 12)(torch.ones(16, 1, *[12] * dims))
    edge = moved.flatten(1).amin(1)
    assert edge.min() == pytest.approx(bared, abs=1e-6)


def test_standard_rotations_are_bilinear_and_counter_clockwise() -> None:
    x = torch.zeros(1, 1, 11, 11)
    x[0, 0, 1, 5] = 1  # 4 above the centre
    positions = by_name("standard", 2)
    assert positions["rot90"].apply(x)[0, 0, 5, 1] == 1
    turned = positions["rot30"].apply(x)[0, 0]
    assert 1 < (turned > 0).sum() <= 9
    assert turned.sum().item() == pytest.approx(1, abs=0.2)
    assert (turned[:, :5].sum() > 0.9 * turned.sum()).item()


def test_cube_positions_are_the_rotations_of_the_cube() -> None:
    """24 of them, all different, with the angles of the conjugacy classes."""
    cube = [position for position in conditions("standard", 3) if position.group == "cube"]
    x = images(3) * circular_mask((12,) * 3)
    assert len({tuple(position.apply(x).flatten().tolist()) for position in cube}) == 24
    assert Counter(round(position.angle) for position in cube) == {0: 1, 90: 6, 180: 9, 120: 8}


def test_random_rotations_are_always_the_same_and_spread_over_all_angles() -> None:
    first, again = ([p for p in conditions("standard", 3) if p.name.startswith("random")] for _ in range(2))
    x = images(3)
    assert all(torch.equal(a.apply(x), b.apply(x)) for a, b in zip(first, again, strict=True))
    angles = [position.angle for position in first]
    assert len(set(angles)) == 32
    assert 110 < sum(angles) / 32 < 145  # uniform over SO(3): pi / 2 + 2 / pi, that is 126.5 degrees


def test_official_rotations_repeat_pixels_and_bare_grey() -> None:
    """Nearest neighbour, no mask; 0 after the normalisation is mid-grey before it."""
    x = torch.tensor([0.25, 0.75])[torch.randint(2, (1, 1, 12, 12))]
    shown = by_name("official", 2)["rot40"].apply(x)
    assert set(shown.unique().tolist()) == {*x.unique().tolist(), 0.5}
    assert shown[0, 0, 0, 0] == 0.5


def test_official_counts_upright_twice_in_2d_and_six_times_in_3d() -> None:
    for dims, count in {2: 2, 3: 6}.items():
        x = images(dims)
        same = [p for p in conditions("official", dims) if torch.equal(p.apply(x), x)]
        assert [p.angle % 360 for p in same] == [0] * count


def test_official_volumes_turn_about_each_axis() -> None:
    x = images(3)
    positions = by_name("official", 3)
    for name, plane in {"d": (-2, -1), "h": (-3, -1), "w": (-3, -2)}.items():
        assert torch.equal(positions[f"rot{name}90"].apply(x), torch.rot90(x, 1, plane))
        axis = "dhw".index(name) + 2
        blocks = torch.arange(12.0).view([1, 1, *(-1 if i == axis else 1 for i in (2, 3, 4))]).expand(1, 1, 12, 12, 12)
        assert set((positions[f"rot{name}30"].apply(blocks + 1) - blocks - 1).unique().tolist()) <= {
            0.0,
            *(0.5 - v for v in range(1, 13)),
        }


def test_flips() -> None:
    x = images(3)
    positions = by_name("official", 3)
    for axis, name in enumerate("dhw", start=2):
        assert torch.equal(positions[f"flip_{name}"].apply(x), x.flip(axis))


def test_as_is_changes_nothing() -> None:
    x = images(2)
    assert AS_IS.apply(x) is x


@EVERY
def test_images_of_another_kind_of_number_and_memory_layout(protocol: str, dims: int, masked: bool) -> None:
    """Whatever arrives stays in shape and type."""
    x = images(dims).double().transpose(-1, -2)
    for position in conditions(protocol, dims, masked):
        shown = position.apply(x)
        assert shown.shape == x.shape
        assert shown.dtype == x.dtype


def test_unknown_protocol_suggests_a_near_one() -> None:
    expected = "unknown protocol 'standart', there are standard, official, disturbed; did you mean 'standard'?"
    with pytest.raises(ValueError, match=re.escape(expected)):
        conditions("standart", 2)


def blob(dims: int, side: int = 28) -> Tensor:
    """A round spot a quarter of the side above the centre."""
    axes = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * dims, indexing="ij")
    squared = sum((axis + (side / 4 if i == 0 else 0)) ** 2 for i, axis in enumerate(axes))
    return torch.exp(-squared / 8)[None, None]


def place(x: Tensor) -> tuple[Tensor, float]:
    """Centre of mass, from the centre of the image, and the root of the mean square distance from it."""
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in x.shape[2:]], indexing="ij")
    where = torch.stack(axes).flatten(1)
    weight = x[0, 0].flatten() / x.sum()
    centre = (where * weight).sum(1)
    return centre, (((where - centre[:, None]) ** 2).sum(0) * weight).sum().sqrt().item()


@pytest.mark.parametrize("dims", [2, 3])
def test_what_disturbances_do(dims: int) -> None:
    x, seen = blob(dims), dict.fromkeys(DISTURBANCES, 0)
    positions = by_name("disturbed", dims)
    zooms, moves = [], []
    for name, position in positions.items():
        if position.group not in DISTURBANCES:
            continue
        rotated, disturbed = (positions[n].apply(x) for n in (name.removesuffix(f"_{position.group}"), name))
        (centre, spread), (new_centre, new_spread) = place(rotated), place(disturbed)
        seen[position.group] += 1
        if position.group == "zoomed":
            zooms.append(new_spread / spread)
            torch.testing.assert_close(new_centre, zooms[-1] * centre, rtol=0, atol=0.5)
        elif position.group == "shifted":
            moves.append((new_centre - centre).abs().max().item() / 28)
        elif position.group == "noisy":
            assert 0.02 < (disturbed - rotated).std() < 0.1  # half of it is cut off below 0
        else:
            assert new_spread == pytest.approx((spread**2 + dims) ** 0.5, rel=0.02)  # one pixel in each direction
            torch.testing.assert_close(new_centre, centre, rtol=0, atol=0.05)
    assert min(zooms) < 0.95 < 1.05 < max(zooms)
    assert 0.75 < min(zooms) < max(zooms) < 1.25
    assert 0.02 < max(moves) < 0.11
    assert len(set(seen.values())) == 1


def test_disturbances_are_the_same_for_every_batch_and_every_time() -> None:
    x = images(2)
    for one, again in zip(conditions("disturbed", 2), conditions("disturbed", 2), strict=True):
        assert torch.equal(one.apply(x)[:1], again.apply(x[:1])), one.name
