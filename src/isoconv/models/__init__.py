"""Networks by name: isotropic and steerable ResNets and U-Nets, and their plain twins."""

from isoconv.models import resnet as resnet
from isoconv.models import steerable as steerable
from isoconv.models import unet as unet
from isoconv.models.pretrained import list_pretrained as list_pretrained
from isoconv.models.registry import ModelInfo as ModelInfo
from isoconv.models.registry import create_model as create_model
from isoconv.models.registry import list_models as list_models
from isoconv.models.registry import model_config as model_config
from isoconv.models.registry import model_info as model_info
from isoconv.models.registry import register_model as register_model

__all__ = [
    "ModelInfo",
    "create_model",
    "list_models",
    "list_pretrained",
    "model_config",
    "model_info",
    "register_model",
]
