"""MONAI's networks: they convert, train, and are symmetric once what breaks the symmetry is remedied."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoconv
from isoconv import conversion_report, convert, fuse

nets = pytest.importorskip("monai.networks.nets", reason="MONAI, whose networks are converted here, is not installed")

EXACT = 1e-10  # relative, in float64
LINEAR = {2: "bilinear", 3: "trilinear"}

Step: TypeAlias = Callable[[nn.Module, Tensor], None]
Error: TypeAlias = Callable[[nn.Module, Tensor], float]


def dense_net(dims: int) -> nn.Module:
    return nets.DenseNet121(dims, 1, 3, init_features=4, growth_rate=2, block_config=(2, 2, 1), bn_size=2)


def basic_unet(dims: int, upsample: str = "deconv") -> nn.Module:
    """Five levels; in 3D with a norm that does not need more than the one voxel at the bottom."""
    norm = {"norm": ("group", {"num_groups": 1})} if dims == 3 else {}
    return nets.BasicUNet(dims, 1, 3, features=(2, 2, 2, 2, 4, 2), upsample=upsample, **norm)


class FittedUpCat(nn.Module):
    """MONAI's UpCat, yet what an odd size lost is interpolated back instead of repeated on one side."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.upsample, self.convs = part.upsample, part.convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y = F.interpolate(self.upsample(x), skip.shape[2:], mode=LINEAR[x.dim() - 2])
        return self.convs(torch.cat([skip, y], 1))


def fitted_unet(dims: int, upsample: str = "deconv") -> nn.Module:
    net = basic_unet(dims, upsample)
    for name in ("upcat_4", "upcat_3", "upcat_2", "upcat_1"):
        setattr(net, name, FittedUpCat(getattr(net, name)))
    return net


def residual_unet(dims: int, units: int) -> nn.Module:
    """Strided convolutions down, transposed ones of 3 with output_padding up; ``units`` convolutions a residual."""
    return nets.UNet(dims, 1, 3, channels=(2, 4, 4), strides=(2, 2), num_res_units=units)


# how it is made, number of spatial axes, sizes that the plain network accepts (UNet: multiples of 4)
NETS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "DenseNet121, 2D": (lambda: dense_net(2), 2, (31, 32, 33, 34)),
    "DenseNet121, 3D": (lambda: dense_net(3), 3, (17, 18)),
    "BasicUNet, 2D": (lambda: basic_unet(2), 2, (32, 48)),
    "BasicUNet, 3D": (lambda: basic_unet(3), 3, (16,)),
    "BasicUNet, nontrainable, 2D": (lambda: basic_unet(2, "nontrainable"), 2, (32, 48)),
    "BasicUNet, fitted, 2D": (lambda: fitted_unet(2), 2, (32, 33, 34, 39)),
    "BasicUNet, fitted, 3D": (lambda: fitted_unet(3), 3, (17, 18)),
    "BasicUNet, fitted, nontrainable, 2D": (lambda: fitted_unet(2, "nontrainable"), 2, (33, 34)),
    "BasicUNet, fitted, nontrainable, 3D": (lambda: fitted_unet(3, "nontrainable"), 3, (16, 17)),
    "UNet, 2D": (lambda: residual_unet(2, 0), 2, (12, 16)),
    "UNet, residual, 2D": (lambda: residual_unet(2, 2), 2, (12, 16)),
    "UNet, 3D": (lambda: residual_unet(3, 0), 3, (8, 12)),
    "UNet, residual, 3D": (lambda: residual_unet(3, 2), 3, (8, 12)),
}


def image(dims: int, size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, *[size] * dims)


@pytest.mark.parametrize(("make", "dims", "sizes"), NETS.values(), ids=NETS)
def test_converted_networks_train_and_are_symmetric(
    make: Callable[[], nn.Module], dims: int, sizes: tuple[int, ...], engine: str, train_one_step: Step, error: Error
) -> None:
    net = make()
    report, converted = conversion_report(net), convert(net, engine=engine)
    assert {row.status for row in report.rows} <= {"convertible", "unaffected", "depends"}
    assert report.parameters_converted == sum(p.numel() for p in converted.parameters())
    train_one_step(converted, image(dims, sizes[0], batch=4))
    for size in sizes:
        assert converted(image(dims, size)).shape == net(image(dims, size)).shape
    after = {row.name: row.status for row in conversion_report(converted).rows}
    head = {name for name, status in after.items() if status == "depends"}
    assert head <= {"class_layers.flatten", "class_layers.out"}  # of pooled features, hence symmetric
    assert set(after.values()) <= {"isotropic", "unaffected", "depends"}
    for size in sizes:
        assert error(converted, image(dims, size)) < EXACT


@pytest.mark.parametrize(("make", "dims", "sizes"), NETS.values(), ids=NETS)
def test_converted_networks_fuse(make: Callable[[], nn.Module], dims: int, sizes: tuple[int, ...]) -> None:
    net = convert(make(), engine="reference").eval()
    plain, x = fuse(net), image(dims, sizes[0])
    assert not any(type(m).__module__.startswith("isoconv") for m in plain.modules())
    torch.testing.assert_close(plain(x), net(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_plain_networks_are_not_symmetric(dims: int, error: Error) -> None:
    for net in (dense_net(dims), basic_unet(dims), residual_unet(dims, 2)):
        assert error(net, image(dims, 16 * (4 - dims))) > 1e-2


@pytest.mark.parametrize(("upsample", "size"), [("deconv", 33), ("deconv", 40), ("nontrainable", 33)])
def test_what_basic_unet_pads_on_one_side_is_found_by_measuring(upsample: str, size: int, error: Error) -> None:
    """Its forward() does so by a function, at sizes that are no multiple of 16."""
    converted = convert(basic_unet(2, upsample))
    report = conversion_report(converted, (2, 1, size, size))
    assert report.verdict == "broken"
    broken = [row for row in report.rows if row.status == "breaks symmetry"]
    assert {row.type for row in broken} == {"pad()"}
    assert all(row.name.startswith("upcat_") for row in broken)
    assert conversion_report(converted).verdict == "not verified"
    assert error(converted, x := image(2, size)) > 1e-3
    (finding,) = (f for f in isoconv.doctor(converted, x.double()).findings if f.symmetry == "rot90")
    assert not finding.holds
    assert finding.where.startswith("after upcat_")
    assert "forward()" in finding.reason


@pytest.mark.parametrize("dims", [2, 3])
def test_pixel_shuffling_is_named(dims: int, error: Error) -> None:
    """The remedy is another of BasicUNet's ways up, among those above."""
    converted = convert(basic_unet(dims, "pixelshuffle"))
    broken = [row for row in conversion_report(converted).rows if row.status == "breaks symmetry"]
    assert [row.name for row in broken] == [f"upcat_{i}.upsample.pixelshuffle.pad_pool.0" for i in (4, 3, 2, 1)]
    assert {row.reason for row in broken} == {"pads one side more than the other"}
    assert error(converted, image(dims, 16 * (4 - dims))) > 1e-3
