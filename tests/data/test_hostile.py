"""A thousand files that nobody meant well with: each is read or refused in a line, soon, and in bounded memory."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited and measured as Linux does"),
]

for package in ("PIL", "tifffile", "pydicom", "nibabel"):
    pytest.importorskip(package, reason="every kind of file is written here")

SCRIPT = Path(__file__).with_name("hostile.py")
SECONDS = 20
MEMORY = 10**9
ABOVE = 3 * 10**9


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What became of each input: its name, the seconds, the growth of memory, the kind and text of the error."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(ABOVE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    finally:  # pytest removes old folders by recursion, which ends in an error on one that is 1,500 deep
        subprocess.run(["rm", "-rf", folder], check=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_thousand_inputs_were_tried(told: list[dict]) -> None:
    assert len(told) >= 1000
    kinds = {each["name"].rpartition("/")[2].partition(".")[2] for each in told}
    assert {"png", "jpg", "bmp", "gif", "webp", "tif", "npy", "npz", "dcm", "nii", "nii.gz"} <= kinds
    assert sum(each["error"] is not None for each in told) > 500


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("ended otherwise than by a refusal", lambda t: t["error"] not in (None, "ValueError", "FileNotFoundError")),
        ("did not name the file", lambda t: t["error"] is not None and t["name"] not in t["text"]),
        ("took more than a line", lambda t: "\n" in t["text"]),
        (f"took over {SECONDS} s", lambda t: t["seconds"] > SECONDS),
    ],
)
def test_no_input(told: list[dict], what: str, wrong: Callable[[dict], bool]) -> None:
    assert not (bad := [each for each in told if wrong(each)]), f"{len(bad)} of {len(told)} {what}: {bad[:5]}"


def test_memory_is_bounded(told: list[dict]) -> None:
    assert max(each["growth"] for each in told) < MEMORY
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0  # it was measured at all
