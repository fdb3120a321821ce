"""What an output rests on: maps by HiResCAM, which turn with the image where the network is symmetric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoconv._checks import did_you_mean
from isoconv.evaluation.measuring import in_eval_mode
from isoconv.models.resnet import ResNet
from isoconv.models.unet import UNet
from isoconv.symmetry import circular_mask, equivariance_error
from isoconv.tasks import Task

__all__ = ["FREE_ANGLES", "HiResCAM", "has_default_layer", "output_number", "saliency_errors"]

FREE_ANGLES = (15, 30, 45, 60, 75)
"""Degrees at which the error of maps is measured besides quarter turns."""
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class HiResCAM(nn.Module):
    """Images (N, C, *spatial) to maps (N, 1, *spatial) of how much each place counts for (positive) or against
    (negative) an output, or the mean of an output that is itself a map: HiResCAM (Draelos and Carin, arXiv 2011.08891).

    A map is the sum over channels of activation times gradient. Grad-CAM averages the gradient over the image first,
    and can light places up that the output does not use; here a map adds up to the output, but for the bias, where a
    mean and a linear map follow the layer. The sum over channels is an inner product: vectors and tensors of steerable
    networks turn, and it stays the same. Negative values are kept, so a map is not empty where all evidence is against.

    Args:
        model: run in eval mode, its mode restored.
        output: number of the output.
        layer: name of the module whose activations are taken; by default ``layer4`` of a ResNet, the coarsest level of
            a U-Net.

    Raises:
        ValueError: no such module; or none is named, and the network is neither.
    """

    def __init__(self, model: nn.Module, output: int, layer: str | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.layer = _default_layer(model) if layer is None else _named(model, layer)

    def forward(self, images: Tensor) -> Tensor:
        """Raises ValueError if the layer does not run, or the output does not depend on it."""
        kept: list[Tensor] = []

        def leaf(_: nn.Module, __: Any, activations: Tensor) -> Tensor:
            kept.append(activations.detach().requires_grad_())
            return kept[-1].clone()  # what follows may work in place

        hook = self.layer.register_forward_hook(leaf)
        try:
            with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(self.model):
                outputs = self.model(images.detach().clone())
                if len(kept) != 1 or not outputs.requires_grad:
                    raise ValueError(f"the layer must run once and lead to the outputs, it ran {len(kept)} times")
                scores = outputs[:, self.output].flatten(1).mean(1) if outputs.dim() > 2 else outputs[:, self.output]
                (gradient,) = torch.autograd.grad(scores.sum(), kept)
        finally:
            hook.remove()
        maps = (kept[0].detach() * gradient).sum(1, keepdim=True)
        return F.interpolate(maps, images.shape[2:], mode=_MODES[images.dim() - 2])


def saliency_errors(model: nn.Module, images: Tensor, output: int, layer: str | None = None) -> dict[str, float | None]:
    """How far maps of images (N, C, *spatial) are from turning with them, ``|f(g x) - g f(x)| / |f(x)|`` within the
    inscribed disc (ball): ``quarter_turns``, the worst, and ``free_angles``, the mean over :data:`FREE_ANGLES`. None
    where the output depends on no place at all."""
    maps = HiResCAM(model, output, layer)
    inside = images * circular_mask(images.shape[2:], device=images.device)
    if not maps(inside).any():
        return {"quarter_turns": None, "free_angles": None}
    quarters = equivariance_error(maps, inside, angles=(90, 180, 270), flips=False)
    free = equivariance_error(maps, inside, angles=FREE_ANGLES, flips=False)
    return {"quarter_turns": max(quarters.values()), "free_angles": math.fsum(free.values()) / len(free)}


def output_number(task: Task, label: str | None, outputs: Tensor) -> int:
    """The number of the output called ``label``, by default of the one that :meth:`isoconv.tasks.base.Task.explained`
    chooses from outputs (1, ...) for an image. Raises ValueError for another label."""
    labels = task.info.labels
    if label is None:
        return task.explained(outputs)
    if label not in labels:
        raise ValueError(f"label must be one of {', '.join(labels)}, got {label!r:.60}{did_you_mean(label, labels)}")
    return labels.index(label)


def has_default_layer(model: nn.Module) -> bool:
    """Whether :class:`HiResCAM` needs no name of a layer."""
    return next(_default_layers(model), None) is not None


def _default_layer(model: nn.Module) -> nn.Module:
    for layer in _default_layers(model):
        return layer
    raise ValueError(f"{type(model).__name__} is neither a ResNet nor a U-Net of isoconv; name the layer to look at")


def _default_layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, ResNet):
            yield module.layer4
        elif isinstance(module, UNet):
            yield module.encoder[-1]


def _named(model: nn.Module, name: str) -> nn.Module:
    known: Mapping[str, nn.Module] = dict(model.named_modules())
    if name not in known:
        names: Sequence[str] = [each for each in known if each]
        raise ValueError(f"{type(model).__name__} has no layer {name!r:.60}{did_you_mean(name, names)}")
    return known[name]
