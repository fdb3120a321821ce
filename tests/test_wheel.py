"""The wheel and the source archive hold what users need, and nothing of the checkout is needed beside them."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def pip(*args: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, args)], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_alone_runs_the_first_example_of_the_readme(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    example = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    *setup, last = example.strip().splitlines()
    code = "\n".join([*setup, f"print(isoconv.__file__, {last.partition('#')[0].strip()})"])
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout.split() == [str(site / "isoconv" / "__init__.py"), "True"]


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"isoconv"}
    kept = {f"isoconv/{p.relative_to(ROOT / 'src/isoconv').as_posix()}" for p in (ROOT / "src/isoconv").rglob("*.py")}
    assert kept <= names
    for line in ("Requires-Python: >=3.11", "License-Expression: MIT", "Provides-Extra: study"):
        assert line in metadata.splitlines()


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("build", reason="the package build is not installed")
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    pip("wheel", "--no-deps", "--wheel-dir", tmp_path / "again", source)
    (again,) = (tmp_path / "again").glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert set(one.namelist()) == set(other.namelist())
