"""Layers: isotropic convolutions and the symmetric resampling that goes with them."""

from isoconv.nn.conv import SREConv1d as SREConv1d
from isoconv.nn.conv import SREConv2d as SREConv2d
from isoconv.nn.conv import SREConv3d as SREConv3d
from isoconv.nn.conv import SREConvTranspose1d as SREConvTranspose1d
from isoconv.nn.conv import SREConvTranspose2d as SREConvTranspose2d
from isoconv.nn.conv import SREConvTranspose3d as SREConvTranspose3d
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

__all__ = [
    "CentreGrid",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "SamePad",
    "SymmetricAvgPool1d",
    "SymmetricAvgPool2d",
    "SymmetricAvgPool3d",
    "SymmetricMaxPool1d",
    "SymmetricMaxPool2d",
    "SymmetricMaxPool3d",
    "SymmetricUpsample1d",
    "SymmetricUpsample2d",
    "SymmetricUpsample3d",
    "precondition_",
]
