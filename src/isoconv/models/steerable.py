"""Steerable networks: the resolutions of the plain ones, with scalars, vectors and fields of higher order inside.

As exactly invariant as the isotropic networks, at every input size, yet not blind to directions. What their layers are
says :mod:`isoconv.nn.steerable`; that a number of channels stands for fields, :class:`SteerableLayers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from isoconv import nn as iso
from isoconv._checks import spells_out
from isoconv.models.layers import SteerableLayers
from isoconv.models.registry import register_family
from isoconv.models.resnet import VARIANTS, ResNet
from isoconv.models.unet import UNet
from isoconv.nn.steerable import kept_symmetry

__all__ = ["steerable_resnet", "steerable_unet"]

_KERNELS = {2: (5, 5, 5, 3), 3: (3, 3, 3, 3)}


@spells_out(iso.SteerableConv2d)
def steerable_resnet(
    variant: str,
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 64,
    kernel_sizes: int | Sequence[int] | None = None,
    stem_kernel: int = 5,
    stem_stride: int = 1,
    orders: int = 2,
    fields: Sequence[int] | None = None,
    form: str = "carried",
    **layer: Any,
) -> ResNet:
    """Steerable ResNet: logits invariant to the square's (cube's) whole symmetry group at every input size, or to its
    rotations if ``reflections=False``; nearly so to any rotation.

    Args:
        variant: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.
        dims: 2 or 3.
        width: channels of the first stage, doubled by each following one; see :class:`SteerableLayers`.
        kernel_sizes: odd kernel size of each of the four stages, or one for all; by default (5, 5, 5, 3) in 2D and 3 in
            3D.
        stem_kernel, stem_stride: of the first convolution.
        orders: highest order of the fields. 0: scalars alone, an isotropic network in the units of the steerable ones.
        fields: shares of the orders 0 to ``orders`` among the fields that convolutions give, as whole numbers; by
            default half are scalars and the others of all orders alike: (2, 1, 1) for ``orders=2``.
        form: ``"carried"``: fields go on from layer to layer; ``"dropped"``: their magnitudes do, as scalars.
        **layer: keyword-only arguments of :class:`isoconv.nn.SteerableConv2d`.
    """
    layers = SteerableLayers(dims, _shares(orders, fields), form, layer)
    kernels = _KERNELS[dims] if kernel_sizes is None else kernel_sizes
    return ResNet(variant, layers, in_channels, num_classes, width, kernels, stem_kernel, stem_stride)


@spells_out(iso.SteerableConv2d)
def steerable_unet(
    dims: int,
    in_channels: int,
    num_classes: int,
    *,
    width: int = 32,
    kernel_sizes: int | Sequence[int] | None = None,
    orders: int = 2,
    fields: Sequence[int] | None = None,
    form: str = "carried",
    **layer: Any,
) -> UNet:
    """Steerable U-Net: logits that turn with the image, exactly for the square's (cube's) whole symmetry group (its
    rotations if ``reflections=False``) at every input size, nearly so for any rotation.

    Args:
        dims: 2 or 3.
        width: channels of the two finest levels; the next two have twice and four times as many.
        kernel_sizes: odd kernel size of each of the four levels, finest first, or one for all; by default (5, 5, 5, 3)
            in 2D and 3 in 3D.
        orders, fields, form, layer: as in :func:`steerable_resnet`.
    """
    layers = SteerableLayers(dims, _shares(orders, fields), form, layer)
    kernels = _KERNELS[dims] if kernel_sizes is None else kernel_sizes
    return UNet(layers, in_channels, num_classes, width, kernels)


def _shares(orders: int, fields: Sequence[int] | None) -> list[int]:
    shares = [max(orders, 1), *[1] * orders] if fields is None else list(fields)
    if len(shares) != orders + 1 or any(not isinstance(s, int) or s < 0 for s in shares) or not shares[0]:
        raise ValueError(
            f"fields must have a share for each order from 0 to orders={orders}, whole numbers of which the first is "
            f"not 0, got {fields!r}"
        )
    return shares


for _variant in VARIANTS:
    register_family(
        f"steerable_{_variant}",
        partial(steerable_resnet, _variant),
        task="classification",
        symmetry=kept_symmetry,
        lr=1e-2,
    )
register_family("steerable_unet", steerable_unet, task="segmentation", symmetry=kept_symmetry)
