"""Each part of the page on other libraries runs on its own, in an empty folder, and so does the notebook."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "how-to" / "integrations.md").read_text()
PARTS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))
NEEDS = {"MONAI": "monai", "A MONAI bundle": "monai", "timm": "timm", "A LightningModule of your own": "lightning"}


def run(source: str, where: str, names: dict | None = None) -> None:
    exec(compile(source, where, "exec"), {"__name__": "part"} if names is None else names)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # on numbers of workers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the other libraries' own
@pytest.mark.parametrize("part", PARTS)
def test_part(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_cells: None) -> None:
    if module := NEEDS.get(part):
        pytest.importorskip(module, reason=f"{module}, which this part of the page is about, is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PARTS[part], re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        run(block, part)


def test_a_part_that_is_wrong_fails() -> None:
    wrong = "import torch\nimport isoconv\nnet = torch.nn.Conv2d(1, 1, 3, padding=1)\n"
    with pytest.raises(AssertionError):
        run(wrong + "assert max(isoconv.equivariance_error(net, torch.rand(1, 1, 8, 8)).values()) < 1e-4", "wrong")


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run in order; what they draw goes nowhere. It is kept without outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((DOCS / "notebooks" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        run("".join(cell["source"]), f"cell {number}", names)
    summary = names["results"]["sre"]["summary"]
    assert summary["right_angles"] == pytest.approx(summary["upright"], abs=0.005)
    assert names["results"]["plain"]["summary"]["consistency"] < summary["consistency"]
