"""Packages that import their public names when they are asked for: `isoconv --help` need not load torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def import_late(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Let ``package`` find its public names where they are, when they are first asked for.

    A function keeps its name even if a submodule has the same, such as ``isoconv.convert``: Python puts each submodule
    into its package once it is imported, and here the function takes its place.

    Args:
        names: of each module of ``package`` the names it gives; none for a module that is public itself.
    """
    homes = {name: module for module, given in names.items() for name in given}
    modules = [module for module, given in names.items() if not given]

    class Late(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name in homes:
                setattr(self, name, getattr(import_module(f"{package}.{homes[name]}"), name))
                return getattr(self, name)
            if name in modules:
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __setattr__(self, name: str, value: Any) -> None:
            if name in homes and isinstance(value, ModuleType):
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes, *modules})

    sys.modules[package].__class__ = Late
