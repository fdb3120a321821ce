"""Names that are imported when they are asked for."""

import subprocess
import sys

import pytest

import isoconv
from isoconv import runs


def run_apart(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_alone_does_not_load_torch() -> None:
    assert run_apart("import isoconv, sys; print(isoconv.__version__, 'torch' in sys.modules)") == "0.1.0 False"


@pytest.mark.parametrize(
    "code",
    [
        "import isoconv; print(isoconv.convert.__qualname__)",
        "import isoconv.convert; print(isoconv.convert.__qualname__)",
        "from isoconv.convert import convert; import isoconv; print(isoconv.convert.__qualname__)",
        "from isoconv import convert; print(convert.__qualname__)",
        "import isoconv.convert.rules; print(isoconv.convert.__qualname__)",
    ],
)
def test_convert_is_the_function_however_it_is_imported(code: str) -> None:
    """The package of that name is bound to `isoconv.convert` by Python itself."""
    assert run_apart(code) == "convert"


@pytest.mark.parametrize("package", [isoconv, runs])
def test_every_public_name_is_there(package: object) -> None:
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'isoconv' has no attribute 'convrt'"):
        isoconv.convrt  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Convrt'"):
        from isoconv.runs import Convrt  # noqa: F401
