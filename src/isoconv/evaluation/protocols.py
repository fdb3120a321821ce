"""The evaluation protocols: in which positions a network is shown the test images.

- ``"standard"``: bilinear rotation with black outside, and everything outside of the inscribed disc (ball) black in
  every position, the upright one too, so that positions differ in nothing but orientation. Images: 0, 10, ..., 350
  degrees, each once. Volumes: 32 random rotations, uniform over SO(3) and always the same ones, and the 24 rotations of
  the cube. Flips along each axis. The upright image without the mask is measured beside.
- ``"official"``: as the released code of SRE-Conv (arXiv 2501.09753): nearest neighbour, no mask, mid-grey outside
  (there, 0 after the normalisation, which gives the same images). Images: 0, 10, ..., 360 degrees, so that the upright
  position counts twice. Volumes: 0, 30, ..., 360 degrees about each axis, upright counting six times. Flips along each
  axis.
- ``"disturbed"``: what else happens to images. The standard rotations by 0, 30, ..., 330 degrees, or the first 8 random
  ones and those of the cube, alone and together with each of: a zoom of 0.8 to 1.2, a shift of up to 10 % of the side
  along each axis, Gaussian noise of standard deviation 0.1, Gaussian blur of standard deviation 1/28 of the side (a
  pixel of MedMNIST). Zoom, shift and noise are drawn once per position, the same for all images and all networks.
  Flips. What is outside of the inscribed disc follows the training. A network trained with the mask sees everything
  through it, as in the standard protocol. One trained without sees whole images, and from outside of them comes what
  the augmentation of the recipe official bares (:func:`isoconv.data.augmentation`): mid-grey in images, as in the
  official protocol, black in volumes.

Images are rotated in the range [0, 1], at the size at which the network was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from isoconv._checks import did_you_mean
from isoconv.runs.config import Protocol
from isoconv.symmetry import (
    Symmetry,
    circular_mask,
    plane_rotation,
    random_rotations,
    resample,
    rotate,
    symmetry_group,
)

__all__ = ["AS_IS", "DISTURBANCES", "PROTOCOLS", "Condition", "check_protocol", "conditions", "is_masked"]

PROTOCOLS: tuple[str, ...] = get_args(Protocol)
"""Names of the protocols; what each does is told above."""
DISTURBANCES = ("zoomed", "shifted", "noisy", "blurred")
"""Groups of positions of the protocol ``"disturbed"``, all of them rotations too."""

_RANDOM_ROTATIONS = 32
_FEW_ROTATIONS = 8
_ZOOM, _SHIFT, _NOISE, _BLUR = 0.2, 0.1, 0.1, 1 / 28
_AXES = {2: "hw", 3: "dhw"}
_BARED = {2: 0.5, 3: 0.0}  # by the augmentation of the recipe official, which trains without the mask


@dataclass(frozen=True)
class Condition:
    """A position in which images are shown.

    Attributes:
        name: unique in its protocol.
        group: ``"rotation"``: counts in the mean over rotations; ``"cube"``: a rotation that only counts as a right
            angle; ``"flip"``; ``"unmasked"``; or one of :data:`DISTURBANCES`.
        apply: images (N, C, *spatial) in [0, 1] to the same, on any device.
        angle: degrees of a rotation, in 3D about whatever axis.
        right_angle: whether it moves pixels to pixels and is not the identity.
        inside: whether the images are black outside of the inscribed disc (ball).
        moved: what ``apply`` does to the place of pixels, bared ones becoming 0; None if that is all it does.
    """

    name: str
    group: str
    apply: Callable[[Tensor], Tensor]
    angle: float | None = None
    right_angle: bool = False
    inside: bool = False
    moved: Callable[[Tensor], Tensor] | None = None

    def move(self, shares: Tensor) -> Tensor:
        """Shares of labels (N, K, *spatial) moved as the images are; what comes from outside is 0."""
        return (self.moved or self.apply)(shares)


AS_IS = Condition("upright_unmasked", "unmasked", lambda images: images)
"""Images as they are, for the standard protocol, whose upright position is masked."""


def check_protocol(protocol: str) -> None:
    """Raises ValueError, with near matches, for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}, there are {', '.join(PROTOCOLS)}{did_you_mean(protocol, PROTOCOLS)}"
        )


def is_masked(protocol: str, network: bool) -> bool:
    """Whether a protocol shows black outside of the inscribed disc (ball) to a network that was, or was not, trained
    with that mask."""
    return {"standard": True, "official": False}.get(protocol, network)


def conditions(protocol: str, dims: int, masked: bool = True) -> tuple[Condition, ...]:
    """The positions of a protocol, the upright one first.

    Args:
        masked: whether the network knows masked images from its training; matters in the protocol ``"disturbed"`` only.

    Raises:
        ValueError: unknown protocol.
    """
    check_protocol(protocol)
    flips = _flips(dims)
    if protocol == "official":
        return (*_official_rotations(dims), *flips)
    see, fill = (_through_disc, 0.0) if is_masked(protocol, masked) else (_whole, _BARED[dims])
    rotations = [see(each) for each in (_rotations_2d(fill) if dims == 2 else _rotations_3d(fill))]
    if protocol == "standard":
        return (*rotations, *map(see, flips), AS_IS)
    few = rotations[::3] if dims == 2 else rotations[: _FEW_ROTATIONS - _RANDOM_ROTATIONS]
    return (*few, *map(see, _disturbed(few, dims, fill)), *map(see, flips))


def _official_rotations(dims: int) -> list[Condition]:
    planes = {"": (-2, -1)} if dims == 2 else {"d": (-2, -1), "h": (-3, -1), "w": (-3, -2)}
    return [
        Condition(
            f"rot{axis}{angle}",
            "rotation",
            partial(rotate, degrees=angle, plane=plane, mode="nearest", fill=0.5),
            angle,
            _is_right(angle),
            moved=partial(rotate, degrees=angle, plane=plane, mode="nearest"),
        )
        for axis, plane in planes.items()
        for angle in range(0, 361, 10 if dims == 2 else 30)
    ]


def _rotations_2d(fill: float) -> list[Condition]:
    return [
        Condition(
            f"rot{angle}",
            "rotation",
            partial(rotate, degrees=angle, fill=fill),
            angle,
            _is_right(angle),
            moved=partial(rotate, degrees=angle),
        )
        for angle in range(0, 360, 10)
    ]


def _rotations_3d(fill: float) -> list[Condition]:
    cube = [g for g in symmetry_group(3) if g.proper]
    return [
        *(Condition(f"cube{i}", "cube", g, _angle(_cube_matrix(g)), i > 0) for i, g in enumerate(cube)),
        *(
            Condition(
                f"random{i}",
                "rotation",
                partial(resample, matrix=m, fill=fill),
                _angle(m),
                moved=partial(resample, matrix=m),
            )
            for i, m in enumerate(_random_rotations())
        ),
    ]


def _random_rotations() -> list[Tensor]:
    return list(random_rotations(_RANDOM_ROTATIONS, torch.Generator().manual_seed(0)))


def _disturbed(rotations: Sequence[Condition], dims: int, fill: float) -> Iterator[Condition]:
    generator = torch.Generator().manual_seed(0)
    few = [rotation for rotation in rotations if rotation.group == "rotation"]
    matrices = [plane_rotation(2, rotation.angle or 0) for rotation in few] if dims == 2 else _random_rotations()
    for seed, (rotation, matrix) in enumerate(zip(few, matrices, strict=False)):
        zoom, *shift = (2 * torch.rand(1 + dims, generator=generator) - 1).tolist()
        zoomed = partial(resample, matrix=matrix, zoom=1 + _ZOOM * zoom)
        shifted = partial(_shifted, matrix=matrix, shift=[_SHIFT * s for s in shift])
        applied: tuple[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
            (partial(zoomed, fill=fill), zoomed),
            (partial(shifted, fill=fill), shifted),
            (partial(_noisy, rotation=rotation, seed=seed), rotation.move),
            (partial(_blurred, rotation=rotation, fill=fill), rotation.move),
        )
        for name, (apply, moved) in zip(DISTURBANCES, applied, strict=True):
            yield Condition(f"{rotation.name}_{name}", name, apply, rotation.angle, moved=moved)


def _shifted(x: Tensor, matrix: Tensor, shift: Sequence[float], fill: float = 0.0) -> Tensor:
    return resample(x, matrix, shift=[share * n for share, n in zip(shift, x.shape[2:], strict=True)], fill=fill)


def _noisy(x: Tensor, rotation: Condition, seed: int) -> Tensor:
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (rotation.apply(x) + _NOISE * noise.to(x)).clamp(0, 1)


def _blurred(x: Tensor, rotation: Condition, fill: float) -> Tensor:
    x = rotation.apply(x) - fill
    for axis in range(2, x.dim()):
        sigma = _BLUR * x.shape[axis]
        reach = math.ceil(3 * sigma)
        bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(x) / sigma) ** 2)
        lines = x.movedim(axis, -1)
        smooth = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), (bell / bell.sum())[None, None], padding=reach)
        x = smooth.view(lines.shape).movedim(-1, axis)
    return x + fill


def _flips(dims: int) -> list[Condition]:
    flips = {f"flip_{axis}": Symmetry(tuple(range(dims)), _at(i, dims)) for i, axis in enumerate(_AXES[dims])}
    return [Condition(name, "flip", flip) for name, flip in flips.items()]


def _whole(position: Condition) -> Condition:
    return position


def _through_disc(position: Condition) -> Condition:
    return replace(position, apply=partial(_masked, position.apply), inside=True, moved=position.move)


def _masked(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return transform(x) * circular_mask(x.shape[2:], device=x.device)


def _is_right(angle: int) -> bool:
    return angle % 360 in (90, 180, 270)


def _at(index: int, length: int) -> tuple[bool, ...]:
    return tuple(i == index for i in range(length))


def _cube_matrix(g: Symmetry) -> Tensor:
    signs = torch.tensor([-1.0 if flipped else 1.0 for flipped in g.flips], dtype=torch.float64)
    return signs[:, None] * torch.eye(3, dtype=torch.float64)[list(g.perm)]


def _angle(matrix: Tensor) -> float:
    """Degrees by which a rotation matrix of SO(3) turns."""
    return math.degrees(math.acos(max(-1.0, min(1.0, (matrix.trace().item() - 1) / 2))))
