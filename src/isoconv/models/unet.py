"""One U-Net for images and volumes, isotropic, steerable or plain.

The network is that of the SRE U-Net (arXiv 2501.14592): MONAI's BasicUNet with three halvings, channels w, w, 2w, 4w,
linear up-sampling behind a 1x1 convolution. Unlike there, pooling and up-sampling are symmetric at every input size, so
that the logits of the isotropic network turn and flip exactly with the image; pooling takes the mean, and normalisation
is by batch, which also works where the coarsest level is a single pixel (trained, of two images or more). The plain
twin differs in nothing but the convolutions.

Parameters for RGB and 2 classes at width 32, kernels 9: 273,538; the paper's 274,306 count 768 biases more, each before
a normalisation, which removes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from isoconv import nn as iso
from isoconv._checks import check_counts, ntuple, spells_out
from isoconv.models.layers import Channels, IsotropicLayers, PlainLayers
from isoconv.models.registry import register_family
from isoconv.nn.conv import SREOptions
from isoconv.nn.steerable import kept_symmetry
from isoconv.ops.resampling import is_traced
from isoconv.symmetry import GridGroup

__all__ = ["UNet", "plain_unet", "sre_unet"]

_LEVELS = (1, 1, 2, 4)  # channels over the width, finest level first
_POOL = {2: iso.SymmetricAvgPool2d, 3: iso.SymmetricAvgPool3d}
_UPSAMPLE = {2: iso.SymmetricUpsample2d, 3: iso.SymmetricUpsample3d}


class UNet(nn.Module):
    """Encoder and decoder joined by skips: images (N, C, *spatial) to logits (N, num_classes, *spatial).

    Built by :func:`sre_unet` and :func:`plain_unet`. Any size of at least one pixel a side; a level halves n to
    ceil(n / 2)."""

    def __init__(
        self,
        layers: PlainLayers,
        in_channels: int,
        num_classes: int,
        width: int,
        kernel_sizes: int | Sequence[int],
    ) -> None:
        super().__init__()
        kernels = ntuple(kernel_sizes, len(_LEVELS), "kernel_sizes", per="level")
        if any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernel_sizes must be odd, got {kernels}")
        check_counts(in_channels=in_channels, num_classes=num_classes, width=width)
        self.dims, self.in_channels = layers.dims, in_channels

        def two_convs(inputs: Channels, outputs: int, kernel: int) -> nn.Module:
            parts: list[nn.Module] = []
            for channels in (inputs, outputs):
                parts += [layers.conv(channels, outputs, kernel), layers.norm(outputs), layers.activation(outputs)]
            return nn.Sequential(*parts)

        channels = [width * level for level in _LEVELS]
        self.encoder = nn.ModuleList(map(two_convs, [layers.image(in_channels), *channels], channels, kernels))
        self.pool, self.upsample = _POOL[self.dims](), _UPSAMPLE[self.dims]()
        # coarsest first, as they run
        skips, below, fine_kernels = channels[-2::-1], channels[:0:-1], kernels[-2::-1]
        self.project = nn.ModuleList(
            nn.Identity() if low == skip else layers.pointwise(low, skip)
            for low, skip in zip(below, skips, strict=True)
        )
        self.joins = [layers.join(c) for c in skips]
        self.decoder = nn.ModuleList(
            two_convs(layers.joined(c), c, k) for c, k in zip(skips, fine_kernels, strict=True)
        )
        self.head = layers.pointwise(width, layers.image(num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if not is_traced(x) and (x.dim() != self.dims + 2 or x.shape[1] != self.in_channels or 0 in x.shape[2:]):
            raise ValueError(
                f"expected an input (N, {self.in_channels}, {self.dims} non-empty spatial axes), got shape "
                f"{tuple(x.shape)}"
            )
        skips: list[Tensor] = []
        for i, encode in enumerate(self.encoder):
            x = encode(self.pool(x) if i else x)
            skips.append(x)
        for skip, project, join, decode in zip(skips[-2::-1], self.project, self.joins, self.decoder, strict=True):
            size = [skip.shape[axis] for axis in range(-self.dims, 0)]  # torch.fx cannot tell how long a slice is
            x = decode(join(skip, self.upsample(project(x), size)))
        return self.head(x)


@spells_out(iso.SREConv2d)
def sre_unet(
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 32,
    kernel_sizes: int | Sequence[int] | None = None,
    **layer: Unpack[SREOptions],
) -> UNet:
    """SRE U-Net: logits that turn with the image, exactly for the square's (cube's) whole symmetry group at every
    input size, nearly so for any rotation.

    Args:
        dims: 2 or 3.
        width: channels of the two finest levels; the next two have twice and four times as many.
        kernel_sizes: odd kernel size of each of the four levels, finest first, or one for all; by default 9 in 2D, the
            paper's, and 5 in 3D.
        **layer: keyword-only arguments of the isotropic layers, see :class:`isoconv.nn.SREConv2d`.
    """
    kernels = kernel_sizes if kernel_sizes is not None else 9 if dims == 2 else 5
    layers = IsotropicLayers(dims, "symmetric", layer)
    return UNet(layers, in_channels, num_classes, width, kernels)


def plain_unet(
    dims: int, in_channels: int, num_classes: int, *, width: int = 32, kernel_sizes: int | Sequence[int] | None = None
) -> UNet:
    """The plain twin of :func:`sre_unet`: ordinary convolutions, by default 3 wide, everything else the same."""
    kernels = 3 if kernel_sizes is None else kernel_sizes
    return UNet(PlainLayers(dims), in_channels, num_classes, width, kernels)


register_family("sre_unet", sre_unet, task="segmentation", symmetry=kept_symmetry)
register_family("unet", plain_unet, task="segmentation", symmetry=GridGroup.NONE)
