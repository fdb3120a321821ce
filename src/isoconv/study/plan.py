"""What a study is: data sets x contestants x seeds, each cell an independent run directory, read from a TOML file.

The file says what is trained and tested; where and with what means is said when it is run
(:mod:`isoconv.study.running`).
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from isoconv._checks import did_you_mean
from isoconv.data import get_task, own_path
from isoconv.evaluation.protocols import check_protocol
from isoconv.models import list_models, model_info
from isoconv.runs.config import TrainConfig
from isoconv.runs.reading import read_bytes
from isoconv.tasks import Task, task_of

__all__ = ["Averaged", "Cell", "Contestant", "Study", "command", "load_study"]

_LIMIT = 2**20  # bytes of a study
_CELL = {"data", "model", "out", "seed"}
_PLACE = {"device", "threads", "data_root"}  # where a study runs is said when it is run
_OPTIONS = [f.name for f in fields(TrainConfig) if f.name not in _CELL | _PLACE]
_TYPES = get_type_hints(TrainConfig)
_NAME = re.compile(r"[a-z0-9][a-z0-9_+.]*(-[a-z0-9_+.]+)*")
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Contestant:
    """A network with its options.

    Attributes:
        name: of the contestant in directories and tables; ``title`` in words.
        model: a registered one; of its family that for images is trained on images, that for volumes on volumes.
        options: of TrainConfig, by dimensions 2 and 3, those of the whole study included.
    """

    name: str
    title: str
    model: str
    options: Mapping[int, Mapping[str, Any]]

    def model_for(self, data: str) -> str | None:
        """The model that is trained on a data set; None if none of the family is for that kind of work or these
        dims."""
        task = _task(data, self.options[2].get("task"))
        info = model_info(self.model)
        return info.twin(task.info.dims) if info.task == task.networks else None


@dataclass(frozen=True)
class Averaged:
    """A contestant ``of`` with outputs averaged over ``turns`` equal turns of each image; computed from its runs."""

    name: str
    title: str
    of: str
    turns: int

    def fits(self, data: str) -> bool:
        """Whether answers to images of a data set can be averaged: turned by angles, and what is kept of them has a
        mean."""
        task = _task(data)
        return task.info.dims == 2 and task.averages


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation."""

    data: str
    contestant: str
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{Path(self.data).stem}-{self.contestant}-s{self.seed}"


@dataclass(frozen=True)
class Study:
    """What :func:`load_study` read.

    Attributes:
        headline: contestants that the report sets against each other first, see :meth:`pair`.
        protocols: of the evaluation, the leading one first.
    """

    name: str
    title: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]
    contestants: tuple[Contestant, ...]
    averaged: tuple[Averaged, ...]
    headline: tuple[str, ...]

    @property
    def cells(self) -> list[Cell]:
        """Every cell, seed by seed: a study that was stopped has the first seed of everything before the second. A
        contestant has no cells with data that its model does not fit."""
        return [
            Cell(data, contestant.name, seed)
            for seed, data, contestant in itertools.product(self.seeds, self.data, self.contestants)
            if contestant.model_for(data)
        ]

    def config(self, cell: Cell, folder: Path, **place: Any) -> TrainConfig:
        """What ``cell`` trains; ``place`` are options that say where."""
        contestant = next(c for c in self.contestants if c.name == cell.contestant)
        model, data = contestant.model_for(cell.data), str(own_path(cell.data) or cell.data)  # as the training notes it
        if model is None:
            raise ValueError(f"{contestant.model} of contestant {contestant.name!r} is not for {cell.data}")
        options = contestant.options[model_info(model).dims]
        return TrainConfig(data, model, folder / cell.name, seed=cell.seed, **options, **place)

    def pair(self, data: str, trained: bool = False) -> tuple[str, ...]:
        """The two contestants that are set against each other on a data set: the first of the headline that are there;
        fewer if there are not two. ``trained``: in the place of averaged ones those of which they are."""
        there = {cell.contestant for cell in self.cells if cell.data == data}
        of = {averaged.name: averaged.of for averaged in self.averaged}
        names = [of.get(name, name) if trained else name for name in self.headline]
        there |= {averaged.name for averaged in self.averaged if averaged.of in there and averaged.fits(data)}
        return tuple(name for name in dict.fromkeys(names) if name in there)[:2]


@cache
def _task(data: str, kind: str | None = None) -> Task:
    """Asked for every cell, and of users' own data only the files can tell."""
    return task_of(get_task(data, kind))


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study.

    ```toml
    title = "..."                     # all keys but data and contestant may be left out
    protocols = ["standard"]
    data = ["breastmnist"]
    seeds = [0, 1, 2]
    headline = ["sre", "plain"]       # all contestants; on each data set the first two that are there
    [options]                         # of TrainConfig, for all contestants
    epochs = 100
    2d = { width = 64 }               # only for images; 3d for volumes
    [[contestant]]
    name = "sre"
    model = "sre_resnet18"            # and any options
    [[averaged]]                      # plain at test time, averaged over 4 turns of the image
    name = "plain-4"
    of = "plain"
    turns = 4
    ```

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML; an unknown key, name or value, with near matches; or a name given twice.
    """
    path, remedy = Path(path), "give a TOML file such as studies/quick.toml"
    content = read_bytes(path, remedy, remedy, limit=_LIMIT)
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, numbers of too many digits
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        return _study(path.stem, table)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _study(name: str, table: dict[str, Any]) -> Study:
    _known("key", table, ("title", "protocols", "data", "seeds", "headline", "options", "contestant", "averaged"))
    data = _list(table, "data", str)
    for each in data:
        get_task(each)
    if min(seeds := _list(table, "seeds", int, default=[0])) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(seeds)}")
    protocols = _list(table, "protocols", str, default=["standard"])
    for each in protocols:
        check_protocol(each)
    options = _typed("options", table.get("options", {}), dict)
    contestants = tuple(_contestant(c, options) for c in _tables(table, "contestant"))
    if not contestants:
        raise ValueError("a study needs at least one [[contestant]] with name and model")
    averaged = tuple(map(_averaged, _tables(table, "averaged")))
    names = [c.name for c in contestants]
    for one in averaged:
        _one_of("of", one.of, names)
    everyone = [*names, *(a.name for a in averaged)]
    _no_double("contestant", everyone)
    headline = _list(table, "headline", str, default=everyone)
    for each in headline:
        _one_of("headline", each, everyone)
    if len(headline) < 2 <= len(everyone):
        raise ValueError(f"headline must name at least two contestants, got {len(headline)}")
    _no_double("the name of data", [Path(each).stem for each in data])
    study = Study(
        name=name,
        title=_typed("title", table.get("title", name), str),
        data=data,
        seeds=seeds,
        protocols=protocols,
        contestants=contestants,
        averaged=averaged,
        headline=headline,
    )
    cells = study.cells
    for cell in cells:
        try:
            study.config(cell, Path())  # checks the values
        except ValueError as error:
            raise ValueError(f"contestant {cell.contestant!r}: {error}") from None
    _no_double("cell", [cell.name for cell in cells])
    busy = {cell.contestant for cell in cells}
    if idle := [contestant for contestant in contestants if contestant.name not in busy]:
        info = model_info(idle[0].model)
        raise ValueError(
            f"contestant {idle[0].name!r}: {info.name} ({info.task}, {info.dims}D) fits none of the data, "
            f"which are {_described(data)}"
        )
    used = {cell.data for cell in cells}
    if alone := [each for each in data if each not in used]:
        raise ValueError(f"no contestant has a model for {_described(alone)}; `isoconv models` lists models")
    return study


def _described(data: Sequence[str]) -> str:
    tasks = {each: _task(each) for each in data}
    return ", ".join(f"{each} ({task.name}, {task.info.dims}D)" for each, task in tasks.items())


def _contestant(table: dict[str, Any], common: dict[str, Any]) -> Contestant:
    name = _name(table)
    own = {key: value for key, value in table.items() if key not in ("name", "title", "model")}
    if "model" not in table:
        raise ValueError(f"contestant {name!r} has no model; `isoconv models` lists them")
    model = _typed("model", table["model"], str)
    _one_of("model", model, list_models())
    shared, mine = _options("options", common), _options(f"contestant {name!r}", own)
    title = _typed("title", table.get("title", name), str)
    return Contestant(name, title, model, {dims: shared[dims] | mine[dims] for dims in (2, 3)})


def _options(where: str, table: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Options by dimensions from a table that has some for both and others in subtables ``2d`` and ``3d``."""
    _known(f"{where}: option", table, (*_OPTIONS, "2d", "3d"))
    both = {key: _option(where, key, value) for key, value in table.items() if key in _OPTIONS}
    result = {}
    for dims in (2, 3):
        only = _typed(f"{dims}d", table.get(f"{dims}d", {}), dict)
        _known(f"{where}: option", only, _OPTIONS)
        result[dims] = both | {key: _option(where, key, value) for key, value in only.items()}
    return result


def _option(where: str, key: str, value: Any) -> Any:
    allowed = get_args(_TYPES[key]) or (_TYPES[key],)
    if tuple[int, ...] in allowed:
        return tuple(_typed(f"{where}: {key}", each, int) for each in _typed(f"{where}: {key}", value, list))
    if any(isinstance(each, str) or get_origin(each) is Literal for each in allowed):  # TrainConfig checks these
        return value
    kind = next(each for each in allowed if each in _KINDS)
    return _typed(f"{where}: {key}", float(value) if kind is float and type(value) is int else value, kind)


def _averaged(table: dict[str, Any]) -> Averaged:
    name = _name(table)
    _known("averaged: key", table, ("name", "title", "of", "turns"))
    if missing := [key for key in ("of", "turns") if key not in table]:
        raise ValueError(f"averaged {name!r} has no {' and no '.join(missing)}")
    turns = _typed("turns", table["turns"], int)
    if turns not in (allowed := (2, 3, 4, 6, 9, 12, 18, 36)):
        raise ValueError(f"turns must be one of {', '.join(map(str, allowed))}, multiples of 10 degrees, got {turns}")
    return Averaged(name, _typed("title", table.get("title", name), str), _typed("of", table["of"], str), turns)


def _name(table: dict[str, Any]) -> str:
    if not isinstance(name := table.get("name"), str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name must be of small letters, digits, '-', '_', '+' and '.', such as sre-k3, got {name!r}"
        )
    return name


def _tables(table: dict[str, Any], key: str) -> list[dict[str, Any]]:
    tables = table.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ValueError(f"{key} must be tables, each under a line [[{key}]]")
    return tables


def _list(table: dict[str, Any], key: str, kind: type, default: list[Any] | None = None) -> tuple[Any, ...]:
    if not (values := _typed(key, table.get(key, default or []), list)):
        raise ValueError(f"{key} must be a list of at least one entry")
    for each in values:
        _typed(key, each, kind)
    _no_double(key, values)
    return tuple(values)


def _typed(key: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        wanted = _KINDS.get(kind) or ("a list" if kind is list else "a table")
        raise ValueError(f"{key} must be {wanted}, got {value!r}")
    return value


def _known(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key in _PLACE:
            flag = "--" + key.replace("_", "-")
            raise ValueError(f"{what} {key!r} does not belong into a study; give {flag} to `isoconv study run`")
        if key not in known:
            raise ValueError(f"unknown {what} {key!r}{did_you_mean(key, known)}")


def _one_of(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} is unknown, there are {', '.join(known)}{did_you_mean(name, known)}")


def _no_double(what: str, values: Sequence[Any]) -> None:
    if twice := [str(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{what} {', '.join(twice)} is given more than once")


def command(config: TrainConfig) -> str:
    """The command line that trains ``config``."""
    words = ["isoconv", "train"]
    for f in fields(TrainConfig):
        value, flag = getattr(config, f.name), "--" + f.name.replace("_", "-")
        if f.default is MISSING or value != f.default:
            words += (
                [flag, *map(str, value)] if isinstance(value, tuple) else [flag] if value is True else [flag, value]
            )
    return shlex.join(map(str, words))
