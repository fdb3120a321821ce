"""What may stand in the JSON files of run directories and saved networks.

Each schema is a type for :func:`isoconv.runs.reading.read_json`, which checks numbers strictly: ``1.0`` is no whole
number, ``"1"`` no number, and NaN and infinity are nothing. Measures are not named here: what is measured depends on
the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, NotRequired, TypeGuard, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from isoconv.data import Kind
from isoconv.runs.config import KERNEL_SIZE, LEVELS, RANGES, Protocol, TrainConfig

__all__ = ["CONFIG", "ENVIRONMENT", "HUB_VERSION", "METRICS_LINE", "MODEL_INFO", "RESULTS", "SAVED_NETWORK"]

HUB_VERSION = 1
"""Version of the format of saved networks that this version of isoconv writes and reads."""

_ours = with_config(ConfigDict(extra="forbid"))  # the whole format is known
_open = with_config(ConfigDict(extra="allow"))  # other entries are measures or options

_WIDTH = RANGES["width"][1]
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Name = Annotated[str, Field(min_length=1)]
_Outputs = Annotated[int, Field(ge=1, le=2**16)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


# Values


def _is_number(value: object) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, int | float) and -1e300 <= value <= 1e300


def _number(value: Any) -> Any:
    if not _is_number(value):
        raise ValueError("must be a finite number")
    return value


def _measure(value: Any) -> Any:
    """A number, None where it is undefined, or lists and tables of these."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not (name.endswith("_at") and isinstance(each, str)):  # where something was measured
                _measure(each)
    elif isinstance(value, list):
        for each in value:
            _measure(each)
    elif not (value is None or isinstance(value, bool) or _is_number(value)):
        raise ValueError(f"must hold finite numbers or null, got {value!r:.60}")
    return value


def _score(name: str, value: Any) -> None:
    """An entry of a summary: names that end in ``_ci`` are intervals, in ``_at`` names of positions."""
    if value is None:
        return
    if name.endswith("_ci"):
        right, expected = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)), "[low, high]"
    elif name.endswith("_at"):
        right, expected = isinstance(value, str), "a name"
    else:
        right, expected = _is_number(value), "a finite number"
    if not right:
        raise ValueError(f"must have {expected} or null as {name!r:.60}, got {value!r:.60}")


def _kernel_sizes(value: Any) -> Any:
    sizes = value if isinstance(value, list) else [value]
    if len(sizes) > LEVELS or not all(type(size) is int and 1 <= size <= KERNEL_SIZE for size in sizes):
        raise ValueError(f"must be a whole number from 1 to {KERNEL_SIZE}, or a list of up to {LEVELS} of them")
    return value


def _options(network: dict[str, Any]) -> dict[str, Any]:
    for name, value in network.items():
        values = value if isinstance(value, list) else [value]
        if len(values) > LEVELS or not all(map(_is_option, values)):
            expected = f"text, a number up to {_WIDTH:,} or a list of up to {LEVELS} of these"
            raise ValueError(f"must have {expected} as {name!r:.60}, got {value!r:.60}")
    return network


def _is_option(value: object) -> bool:
    return value is None or isinstance(value, str | bool) or (_is_number(value) and abs(value) <= _WIDTH)


_Number = Annotated[Any, AfterValidator(_number)]
_Size = Annotated[int, Field(ge=1, le=RANGES["size"][1])]


# config.json


_FIELDS = get_type_hints(TrainConfig)
_OPTIONAL = {f.name for f in fields(TrainConfig) if f.default is not MISSING}
_Config: Any = TypedDict(  # type: ignore[misc] # made of the fields of TrainConfig, not to write them twice
    "_Config", {name: NotRequired[hint] if name in _OPTIONAL else hint for name, hint in _FIELDS.items()}
)
CONFIG: Any = Annotated[_ours(_Config), AfterValidator(TrainConfig.from_json)]
"""What :meth:`isoconv.runs.TrainConfig.to_json` gives, its values checked by TrainConfig itself."""


# environment.json


@_ours
class _Environment(TypedDict):
    isoconv: str
    commit: str | None
    torch: str
    numpy: str
    python: str
    platform: str
    device: str
    threads: _Count
    processes: _Count
    seed: _Count


@_ours
class ENVIRONMENT(_Environment):
    """What a training ran on; of users' own data the fingerprint of each split."""

    data: dict[str, str]
    resumed: NotRequired[list[_Environment]]


# model.json, and config.json of a saved network


@_open
class _Network(TypedDict):
    """Arguments of :func:`isoconv.models.create_model`; options that are not named here are the model's own."""

    name: _Name
    in_channels: _Outputs
    num_classes: _Outputs
    width: NotRequired[Annotated[int, Field(ge=1, le=_WIDTH)]]
    kernel_sizes: NotRequired[Annotated[Any, AfterValidator(_kernel_sizes)] | None]
    stem_kernel: NotRequired[Annotated[int, Field(ge=1, le=KERNEL_SIZE)] | None]


_Model = Annotated[_Network, AfterValidator(_options)]


def _distinct(labels: list[str]) -> list[str]:
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise ValueError(f"must differ from each other, got {twice[0]!r:.60} more than once")
    return labels


@_ours
class _Task(TypedDict):
    name: _Name
    title: str
    kind: Kind
    dims: Literal[2, 3]
    channels: _Outputs
    labels: Annotated[list[str], Field(min_length=1, max_length=2**16), AfterValidator(_distinct)]


@_ours
class _SizedTask(_Task):
    size: _Size


@_ours
class _Scale(TypedDict):
    """From what a network gives to the unit of its targets: times ``scale``, plus ``shift``."""

    shift: list[_Number]
    scale: list[_Number]


@_ours
class _ModelInfo(TypedDict):
    model: _Model
    task: _Task
    input_size: _Size
    masked: bool
    outputs: _Scale | None
    epoch: _Count
    sha256: _Sha256


def _fits(model: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    for name, wanted in (("in_channels", task["channels"]), ("num_classes", len(task["labels"]))):
        if model[name] != wanted:
            raise ValueError(f"must have a network with {name} {wanted}, as its task has, got {model[name]}")


def _scales(outputs: Mapping[str, list[float]] | None, wanted: int) -> None:
    for name, values in (outputs or {}).items():
        if len(values) != wanted:
            raise ValueError(f"must have {wanted} numbers as outputs.{name}, one for each output, got {len(values)}")


def _whole_model(info: dict[str, Any]) -> dict[str, Any]:
    _fits(info["model"], info["task"])
    _scales(info["outputs"], info["model"]["num_classes"])
    return info


MODEL_INFO = Annotated[_ModelInfo, AfterValidator(_whole_model)]
"""How to rebuild the best network of a run, and the checksum of its weights."""


@_ours
class _Images(TypedDict):
    masked: bool
    outputs: _Scale | None


@_ours
class _SavedNetwork(TypedDict):
    version: int
    isoconv: str
    model: _Model
    images: _Images | None
    task: _SizedTask | None
    sha256: _Sha256


def _of_this_version(config: Any) -> Any:
    version = config.get("version") if isinstance(config, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("has no version of the format")
    if version > HUB_VERSION:
        written = f"{config.get('isoconv')!s:.20}"
        raise ValueError(f"has format version {version}, this isoconv reads {HUB_VERSION}; install isoconv {written}")
    return config


def _whole_network(config: dict[str, Any]) -> dict[str, Any]:
    if config["task"] is not None:
        _fits(config["model"], config["task"])
    if config["images"] is not None:
        _scales(config["images"]["outputs"], config["model"]["num_classes"])
    return config


SAVED_NETWORK = Annotated[_SavedNetwork, AfterValidator(_whole_network), BeforeValidator(_of_this_version)]
"""What :func:`isoconv.save_pretrained` writes beside the weights, and their checksum."""


# metrics.jsonl


@_open
class _MetricsLine(TypedDict):
    epoch: _Count
    lr: _Number
    train_loss: _Number
    val_loss: _Number
    seconds: _Number
    images_per_second: _Number


METRICS_LINE = Annotated[_MetricsLine, AfterValidator(_measure)]
"""A finished epoch; what else is measured on the validation split depends on the task."""


# results.json


@_open
class _Data(TypedDict):
    name: str
    size: _Size
    test_images: Annotated[int, Field(ge=1, le=2**32)]


@_open
class _Training(TypedDict):
    seed: _Count
    epochs: _Count
    best_epoch: _Count


@_open
class _Cost(TypedDict):
    parameters: _Count
    multiply_adds_dense: _Count
    multiply_adds_banded: _Count
    training_seconds: _Number


@_open
class _Position(TypedDict):
    """A position of the protocol, and what was measured in it."""

    name: _Name
    group: _Name
    angle: Annotated[Any, AfterValidator(_number)] | None


def _positions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    _distinct([row["name"] for row in rows])
    for row in rows:
        if row.keys() != rows[0].keys():
            odd = sorted(row.keys() ^ rows[0].keys())[0]
            raise ValueError(f"must have the same entries in all positions, got {odd!r:.60} in some of them only")
        if row["group"] == "rotation" and row["angle"] is None:
            raise ValueError(f"must have an angle for every rotation, got none for {row['name']!r:.60}")
        _measure({name: value for name, value in row.items() if name not in _Position.__annotations__})
    return rows


def _summary(table: dict[str, Any]) -> dict[str, Any]:
    for name, value in table.items():
        _score(name, value)
    return table


_Curve = dict[str, list[_Number] | _Number | None]


@_ours
class _OneClass(TypedDict):
    """A class against the rest; thresholds are log-odds."""

    threshold: _Number | None
    upright: Annotated[dict[str, Any], AfterValidator(_measure)]
    rotated: Annotated[dict[str, Any], AfterValidator(_measure)]
    curves: dict[Literal["upright", "rotated"], dict[str, _Curve] | None]


@_ours
class _Clinical(TypedDict):
    """What was chosen on validation images, and what it does on test images."""

    rule: _Name
    validation_images: _Count
    temperature: _Number
    classes: dict[str, _OneClass]


@_open
class _Entry(TypedDict):
    """What else there is, the task tells of its own accord: tables of measures."""

    protocol: Protocol
    masked: bool
    data: _Data
    model: _Model
    training: _Training
    cost: _Cost
    summary: Annotated[dict[str, Any], AfterValidator(_summary)]
    conditions: Annotated[list[_Position], Field(min_length=1), AfterValidator(_positions)]
    notes: list[str]
    clinical: NotRequired[_Clinical]


def _by_protocol(results: dict[str, Any]) -> dict[str, Any]:
    for name, entry in results.items():
        if entry["protocol"] != name:
            raise ValueError(f"must hold the results of protocol {name!r} under that name, got {entry['protocol']!r}")
        _measure({key: value for key, value in entry.items() if key not in _Entry.__annotations__})
    return results


RESULTS = Annotated[dict[Protocol, _Entry], AfterValidator(_by_protocol)]
"""What evaluations found, by protocol."""
