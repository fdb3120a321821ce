"""The options of one training; apart from `runs` so that the command line can show its help without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

Recipe = Literal["standard", "official", "modern"]
Protocol = Literal["standard", "official", "disturbed"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Device = Literal["auto", "cpu", "cuda"]
Balance = Literal["none", "weights", "sampling"]
Logger = Literal["tensorboard", "mlflow", "wandb"]
MIN_LR = 1e-6  # where the learning rate ends
NETWORK_OPTIONS = (
    "kernel_sizes",
    "stem_kernel",
    "stem_stride",
    "bands",
    "profile",
    "circular",
    "spacing",
    "norm",
    "init",
    "downsample",
    "orders",
    "reflections",
    "fields",
    "form",
    "engine",
)
"""Fields of :class:`TrainConfig` that are options of the network; None stands for the network's own."""
KERNEL_SIZE = 31  # pixels a side: the geometry of a kernel is computed before any weight is
LEVELS = 16  # kernel sizes in one network
ORDER = 8  # of a field
RANGES = {
    "width": (1, 2**14),
    "stem_kernel": (1, KERNEL_SIZE),
    "stem_stride": (1, KERNEL_SIZE),
    "bands": (1, KERNEL_SIZE),
    "orders": (0, ORDER),
    "epochs": (1, 10**6),
    "batch_size": (1, 2**20),
    "size": (1, 2**12),
    "threads": (1, 2**12),
    "seed": (0, 2**32 - 1),
    "folds": (2, 1000),
    "fold": (1, 1000),
}
"""Least and largest value of whole numbers. They are far from what anyone trains: files are read back, and a damaged
one must not ask for more memory than there is."""
LISTS = {"kernel_sizes": (LEVELS, 1, KERNEL_SIZE), "fields": (ORDER + 1, 0, RANGES["width"][1])}
"""The same of lists of them, after how many there may be."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is learned from."""

    data: str = field(kw_only=False)
    """Data set: a MedMNIST task or an embedded synthetic set, `isoconv data list` names them; or the path of your own,
    a folder with a folder per class or with images/ and masks/, a .csv manifest or an .npz, see `isoconv data
    check`."""
    task: str | None = None
    """Kind of work, such as classification or segmentation; None stands for what the data decide."""
    size: int | None = None
    """Image size of the MedMNIST file: 28, 64, 128 or 224 (3D: 28 or 64); your own images are resized to any. None
    stands for 28, in segmentation 64."""
    folds: int | None = None
    """Cross-validation of your own images: parts into which they are cut, stratified by class, no patient in two of
    them; needs --fold. None stands for the splits of the data."""
    fold: int | None = None
    """The part, 1 to --folds, that is the test split; of the others a tenth is for validation. None stands for no
    cross-validation."""
    data_root: Path | None = None
    """Folder of the MedMNIST files; None stands for $ISOCONV_DATA, else ~/.medmnist."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network; options that it does not have are refused."""

    model: str = field(kw_only=False)
    """Network; `isoconv models` names them."""
    pretrained: str | None = None
    """Trained network to start from, whose options are taken over: the name of one that comes with isoconv, such as pbc
    (`isoconv models --pretrained` names them), or a run directory; None stands for new weights."""
    width: int | None = None
    """Channels of the first stage, narrower networks train faster; None stands for 64, in segmentation 32."""
    kernel_sizes: tuple[int, ...] | None = None
    """Kernel size of each stage (of a U-Net each level, finest first), such as 9 9 5 5; None stands for the network's
    own."""
    stem_kernel: int | None = None
    """Kernel size of the first layer; None stands for the network's own."""
    stem_stride: int | None = None
    """Stride of the first layer; None stands for the network's own."""
    bands: int | None = None
    """Number of bands in a kernel; None stands for as many as its size has."""
    profile: str | None = None
    """Shape of the rings: hard (the paper), linear, gaussian or area; None stands for the network's own."""
    circular: bool | None = None
    """Whether the corners of a kernel are zero; None stands for True, as in the paper's code."""
    spacing: tuple[float, ...] | None = None
    """Size of a voxel along each axis, such as 2.5 1 1, so that kernels are round in space; None stands for cubes."""
    norm: str | None = None
    """Scale of the rows of isotropic kernels' bases: none (a weight is the value of its taps, the paper) or unit (each
    row of norm 1); None stands for unit in recipe modern, else none."""
    init: str | None = None
    """Initial weights of the isotropic layers: default, or official (as the paper's code); None stands for default."""
    downsample: str | None = None
    """How isotropic networks halve the resolution: symmetric, or strided, as plain networks do; None stands for
    symmetric."""
    orders: int | None = None
    """Highest angular order of the fields that a network carries, 0 for scalars alone; None stands for the network's
    own."""
    reflections: bool | None = None
    """Whether an image and its mirror image are the same to a network with orders; None stands for True."""
    fields: tuple[int, ...] | None = None
    """Shares of the orders among the fields of a steerable network, such as 2 1 1; None stands for half scalars."""
    form: str | None = None
    """What steerable networks hand on from layer to layer: carried (fields), or dropped (their magnitudes); None stands
    for carried."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How it is trained."""

    epochs: int = 100
    """Passes over the training split; the learning rate falls to 1e-6 along half a cosine over all of them."""
    batch_size: int | None = None
    """Images per step, over all processes together; None stands for 128 in 2D, 4 in 3D, in segmentation 8."""
    lr: float | None = None
    """Highest learning rate; None stands for 2e-2 in 2D, 1e-2 in 3D, in recipe modern what suits the network."""
    loss: str | None = None
    """What is minimised, such as focal; a wrong name lists them all. None stands for the usual loss of the task."""
    balance: Balance | None = None
    """What is done for rare classes: none; weights (each class weighs the same in the loss); sampling (each is drawn as
    often); None stands for weights in recipe modern if the largest class has 3 times the images of the smallest, else
    none."""
    recipe: Recipe = "standard"
    """Training recipe: standard (native size, inscribed disc, small shifts; SGD), modern (the same images; AdamW, one
    cycle) or official (the paper's: 32 pixels, crops, colour; SGD)."""
    rotate: bool = False
    """Also turn the training images at random: the rival that learns rotation from examples."""
    precondition: bool | None = None
    """Equal gradient steps for all bands of a kernel; None stands for True in recipe standard, else False."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where and how it is computed."""

    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    threads: int | None = None
    """CPU threads; None stands for torch's choice."""
    precision: Precision = "32-true"
    """Number format of the training; the mixed ones are faster on a GPU."""
    engine: str | None = None
    """How the convolution is computed; the result is the same to rounding. None stands for the fastest that can run."""


@dataclass(frozen=True)
class TrainConfig(MachineOptions, TrainingOptions, NetworkOptions, DataOptions):
    """One training, completely: the same config and seed give the same weights on the same machine."""

    out: Path
    """Run directory to write; it must not exist yet (except with --resume)."""

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("out", "data_root"):
            if (path := getattr(self, name)) is not None:
                put(name, Path(path))
        for name, (least, most) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                put(name, _whole(name, value, least, most))
        for name, (count, least, most) in LISTS.items():
            if (values := getattr(self, name)) is not None:
                if not isinstance(values, list | tuple) or len(values) > count:
                    raise ValueError(f"{name} must be up to {count} numbers, got {values!r:.60}")
                put(name, tuple(_whole(name, value, least, most) for value in values))
        if self.lr is not None:
            if isinstance(self.lr, bool) or not isinstance(self.lr, Real) or not MIN_LR <= self.lr < float("inf"):
                raise ValueError(f"lr must be finite and at least {MIN_LR:g}, to which it falls, got {self.lr!r}")
            put("lr", float(self.lr))
        choices: dict[str, Any] = {"recipe": Recipe, "precision": Precision, "device": Device}
        if self.balance is not None:
            choices["balance"] = Balance
        for name, choice in choices.items():
            if getattr(self, name) not in (known := get_args(choice)):
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

        if (self.folds is None) != (self.fold is None) or (self.fold or 0) > (self.folds or 0):
            raise ValueError(
                f"a fold is 1 to the number of folds, such as --folds 5 --fold 2, got {self.fold} of {self.folds}"
            )

    @property
    def part(self) -> tuple[int, int] | None:
        """Fold and number of folds, None without cross-validation."""
        return None if self.fold is None or self.folds is None else (self.fold, self.folds)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_json`. Fields that came later may be missing, and stand for what was done before.

        ``isoconv.runs.schema.CONFIG`` checks the types of what a file holds."""
        return cls(**{"balance": "none", "norm": "none", **values})


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r:.60}")
    return int(value)  # JSON has no numbers of numpy
