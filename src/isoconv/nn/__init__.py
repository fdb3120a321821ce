"""Layers: isotropic convolutions, steerable ones with what goes between them, and symmetric resampling."""

from isoconv.nn.conv import SREConv1d as SREConv1d
from isoconv.nn.conv import SREConv2d as SREConv2d
from isoconv.nn.conv import SREConv3d as SREConv3d
from isoconv.nn.conv import SREConvTranspose1d as SREConvTranspose1d
from isoconv.nn.conv import SREConvTranspose2d as SREConvTranspose2d
from isoconv.nn.conv import SREConvTranspose3d as SREConvTranspose3d
from isoconv.nn.field_layers import FieldDropout as FieldDropout
from isoconv.nn.field_layers import FieldGate as FieldGate
from isoconv.nn.field_layers import FieldMagnitudes as FieldMagnitudes
from isoconv.nn.field_layers import FieldNorm as FieldNorm
from isoconv.nn.field_layers import FieldReLU as FieldReLU
from isoconv.nn.field_layers import InvariantPool as InvariantPool
from isoconv.nn.fields import Fields as Fields
from isoconv.nn.fields import arrows as arrows
from isoconv.nn.preconditioning import precondition_ as precondition_
from isoconv.nn.resampling import CentreGrid as CentreGrid
from isoconv.nn.resampling import SamePad as SamePad
from isoconv.nn.resampling import SymmetricAvgPool1d as SymmetricAvgPool1d
from isoconv.nn.resampling import SymmetricAvgPool2d as SymmetricAvgPool2d
from isoconv.nn.resampling import SymmetricAvgPool3d as SymmetricAvgPool3d
from isoconv.nn.resampling import SymmetricMaxPool1d as SymmetricMaxPool1d
from isoconv.nn.resampling import SymmetricMaxPool2d as SymmetricMaxPool2d
from isoconv.nn.resampling import SymmetricMaxPool3d as SymmetricMaxPool3d
from isoconv.nn.resampling import SymmetricUpsample1d as SymmetricUpsample1d
from isoconv.nn.resampling import SymmetricUpsample2d as SymmetricUpsample2d
from isoconv.nn.resampling import SymmetricUpsample3d as SymmetricUpsample3d
from isoconv.nn.steerable import SteerableConv2d as SteerableConv2d
from isoconv.nn.steerable import SteerableConv3d as SteerableConv3d

__all__ = [
    "CentreGrid",
    "FieldDropout",
    "FieldGate",
    "FieldMagnitudes",
    "FieldNorm",
    "FieldReLU",
    "Fields",
    "InvariantPool",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "SamePad",
    "SteerableConv2d",
    "SteerableConv3d",
    "SymmetricAvgPool1d",
    "SymmetricAvgPool2d",
    "SymmetricAvgPool3d",
    "SymmetricMaxPool1d",
    "SymmetricMaxPool2d",
    "SymmetricMaxPool3d",
    "SymmetricUpsample1d",
    "SymmetricUpsample2d",
    "SymmetricUpsample3d",
    "arrows",
    "precondition_",
]
