"""isoconv: isotropic convolutions for PyTorch, for networks invariant to quarter turns and flips, and nearly to all
rotations."""

from typing import TYPE_CHECKING

from isoconv._late import import_late
from isoconv._version import __version__ as __version__

if TYPE_CHECKING:
    from isoconv import functional as functional
    from isoconv import models as models
    from isoconv import nn as nn
    from isoconv.convert import conversion_report as conversion_report
    from isoconv.convert import convert as convert
    from isoconv.convert import fuse as fuse
    from isoconv.convert import load_official_checkpoint as load_official_checkpoint
    from isoconv.deploy import from_pretrained as from_pretrained
    from isoconv.deploy import push_to_hub as push_to_hub
    from isoconv.deploy import save_pretrained as save_pretrained
    from isoconv.diagnosis import doctor as doctor
    from isoconv.models import create_model as create_model
    from isoconv.models import list_models as list_models
    from isoconv.nn import SREConv1d as SREConv1d
    from isoconv.nn import SREConv2d as SREConv2d
    from isoconv.nn import SREConv3d as SREConv3d
    from isoconv.nn import SREConvTranspose1d as SREConvTranspose1d
    from isoconv.nn import SREConvTranspose2d as SREConvTranspose2d
    from isoconv.nn import SREConvTranspose3d as SREConvTranspose3d
    from isoconv.symmetry import equivariance_error as equivariance_error

__all__ = [
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "conversion_report",
    "convert",
    "create_model",
    "doctor",
    "equivariance_error",
    "from_pretrained",
    "functional",
    "fuse",
    "list_models",
    "load_official_checkpoint",
    "models",
    "nn",
    "push_to_hub",
    "save_pretrained",
]

import_late(
    __name__,
    {
        "functional": (),
        "models": (),
        "nn": (),
        "convert": ("conversion_report", "convert", "fuse", "load_official_checkpoint"),
        "deploy": ("from_pretrained", "push_to_hub", "save_pretrained"),
        "diagnosis": ("doctor",),
        "models.registry": ("create_model", "list_models"),
        "nn.conv": (
            "SREConv1d",
            "SREConv2d",
            "SREConv3d",
            "SREConvTranspose1d",
            "SREConvTranspose2d",
            "SREConvTranspose3d",
        ),
        "symmetry": ("equivariance_error",),
    },
)
