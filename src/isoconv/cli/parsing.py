"""From dataclasses to a command line: what tyro shows of an option, and what is said of one that does not exist."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import pairwise
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from isoconv._checks import did_you_mean
from isoconv._extras import require

if TYPE_CHECKING:
    import tyro
    from tyro import constructors
else:
    tyro = require("tyro", extra="study")
    constructors = tyro.constructors

_CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
_DEFAULT = re.compile(r"(.*?)[;.] None stands for (.*)\.", re.DOTALL)
_PROG = "isoconv"

_registry = constructors.ConstructorRegistry()


def parse(commands: Any, description: str, args: Sequence[str]) -> Any:
    """The command that ``args`` make of ``commands``, a union of dataclasses.

    Raises:
        SystemExit: with status 2 where ``args`` are wrong, once stderr says why, or with 0 after ``--help``.
        ValueError, TypeError: of the dataclass itself, which checks its values.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands, prog=_PROG, description=description, args=args, config=_CONFIG, registry=_registry
            )
    except SystemExit as stop:
        if stop.code == 2 and (mistake := _mistake(_PROG, commands, args)):
            sys.stderr.write(f"error: {mistake}\n")
        else:
            sys.stderr.write(said.getvalue())
        raise


def _mistake(prog: str, kind: Any, args: Sequence[str]) -> str:
    """What is said of the first command or option that does not exist, empty if all do.

    Args:
        kind: a union of commands, or the dataclass of one.
    """
    if not is_dataclass(kind):
        commands = {conf.name: command for command, conf in map(get_args, get_args(kind))}
        if not args or args[0].startswith("-"):
            return ""
        name, *rest = args
        return _unknown(prog, "command", [name], commands) or _mistake(f"{prog} {name}", commands[name], rest)
    types = get_type_hints(kind, include_extras=True)
    if "command" in types:
        return _mistake(prog, types["command"], args)
    given = [word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--") and word != "--"]
    return _unknown(prog, "option", given, ["--help", *_options(types)])


def _unknown(prog: str, what: str, given: Sequence[str], known: Collection[str]) -> str:
    return next(
        (f"{prog} has no {what} {n}, see {prog} --help{did_you_mean(n, known)}" for n in given if n not in known), ""
    )


def _options(types: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in types.items():
        confs = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
        if is_dataclass(kind):
            yield from _options(get_type_hints(kind, include_extras=True))
        elif tyro.conf.Positional not in confs:
            given = next((conf.name for conf in confs if getattr(conf, "name", None)), name)
            yield f"--{given.replace('_', '-')}"
            yield from (alias for conf in confs for alias in getattr(conf, "aliases", None) or ())


@_registry.primitive_rule
def _optional(info: constructors.PrimitiveTypeInfo) -> Any:
    """``int | None`` is an INT that may be left out; None itself is nothing to type."""
    some = [each for each in get_args(info.type) if each is not NoneType]
    if len(some) != 1 or NoneType not in get_args(info.type):
        return None
    spec = constructors.ConstructorRegistry.get_primitive_spec(
        constructors.PrimitiveTypeInfo.make(some[0], info.markers)
    )
    if not isinstance(spec, constructors.PrimitiveConstructorSpec):
        return spec
    return replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else spec.str_from_instance(value),
    )


@_registry.struct_rule
def _explained(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
    """Fields with the text below them as help. What it says that None stands for is shown as the default."""
    if not (is_dataclass(info.type) and info.type.__module__.startswith("isoconv.")):  # tyro has some of its own
        return None
    types, texts = get_type_hints(info.type, include_extras=True), dict(_texts(info.type))
    specs = []
    for field in fields(info.type):
        kind, text = types[field.name], texts.get(field.name)
        if text and (found := _DEFAULT.fullmatch(text)):
            text = f"{found[1]}."
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint=f"(default: {found[2]})")]
        default = tyro.MISSING_NONPROP if field.default is MISSING else field.default
        specs.append(constructors.StructFieldSpec(field.name, kind, default, text))
    return constructors.StructConstructorSpec(info.type, tuple(specs))


def _texts(cls: type) -> Iterator[tuple[str, str]]:
    """The texts below the fields of a dataclass and of those that it inherits from."""
    for each in reversed(cls.__mro__):
        if is_dataclass(each):
            (definition,) = ast.parse(inspect.getsource(each)).body
            for field, text in pairwise(getattr(definition, "body", [])):
                match field, text:
                    case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(said))):
                        yield name, " ".join(said.split())
