"""One place where optional packages are imported and missed."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``; where it is missing, say which extra of isoconv brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise ModuleNotFoundError(
            f"this needs the package {module!r}; install it with: pip install 'isoconv[{extra}]'", name=module
        ) from None
