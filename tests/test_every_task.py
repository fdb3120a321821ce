"""From a folder or a table of users' own to a served and exported network, by the same commands for every task."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import isoconv
from isoconv.cli.main import main
from isoconv.runs import RunDir

pil = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra 'study'")
pytest.importorskip("fastapi", reason="serving needs the extra 'serve'")

Json = Callable[..., object]
SIDE = 16


def disc(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of a disc, and which pixels the disc has."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    inside = y**2 + x**2 < rng.uniform(2, 6) ** 2
    return (150 * inside + rng.uniform(0, 60, (SIDE, SIDE))).astype(np.uint8), inside


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.fromarray(pixels).save(path)


def class_folders(folder: Path) -> Path:
    for i in range(30):
        image, inside = disc(i)
        save(folder / ("large" if inside.sum() > 50 else "small") / f"{i}.png", image)
    return folder


def masks(folder: Path) -> Path:
    for i in range(12):
        image, inside = disc(i)
        save(folder / "images" / f"{i}.png", image)
        save(folder / "masks" / f"{i}.png", inside.astype(np.uint8))
    return folder


def numbers(folder: Path) -> Path:
    rows = ["path,area"]
    for i in range(30):
        image, inside = disc(i)
        save(folder / f"{i}.png", image)
        rows.append(f"{i}.png,{inside.sum() / 2}")
    (folder / "areas.csv").write_text("\n".join(rows))
    return folder / "areas.csv"


@pytest.mark.parametrize(
    ("make", "task", "networks", "answer"),
    [
        (class_folders, "classification", ("sre_resnet18", "resnet18"), "label"),
        (masks, "segmentation", ("sre_unet", "unet"), "shares"),
        (numbers, "regression", ("sre_resnet18", "resnet18"), "values"),
    ],
)
def test_one_set_of_commands(
    make: Callable[[Path], Path],
    task: str,
    networks: tuple[str, str],
    answer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make(tmp_path / "data")
    monkeypatch.setattr("isoconv.figures.save_all", lambda *_: [])  # their own tests draw them

    def call(*words: object) -> str:
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert json.loads(call("data", "check", data, "--size", SIDE, "--json"))["facts"]["task"] == task
    runs = [tmp_path / network for network in networks]
    for run in runs:
        kernels = ("--kernel-sizes", 3, 3, 3, 3) if run.name.startswith("sre") else ()
        small = ("--width", 2, "--epochs", 2, "--size", SIDE, "--batch-size", 8, "--device", "cpu", *kernels)
        assert main([str(w) for w in ("train", "--data", data, "--model", run.name, "--out", run, *small)]) == 0
        assert f"looks like {task}" in capsys.readouterr().err
        result = json.loads(call("evaluate", run, "--json"))
        scores = [score.key for score in RunDir(run).task.scores]
        assert set(scores) <= set(result["summary"])
    sre = json.loads((runs[0] / "results.json").read_text())["standard"]
    exact = [row for row in sre["conditions"] if row["group"] == "flip"]
    main_score = RunDir(runs[0]).task.main.key
    assert [row[main_score] for row in exact] == pytest.approx([sre["summary"]["upright"]] * 2, rel=1e-4)
    assert call("evaluate", runs[0])  # the table for people

    comparison = json.loads(call("compare", *runs, "--json"))
    assert comparison["task"] == task
    (pair,) = comparison["pairs"]
    assert 0 <= pair["upright_p_holm"] <= 1
    assert "p upright" in " ".join(call("compare", *runs, "--plot", tmp_path / "x.png").split())

    image = next((tmp_path / "data").rglob("3.png"))
    (row,) = json.loads(call("predict", runs[0], image, "--json"))
    assert answer in row
    out = tmp_path / ("found" if task == "segmentation" else "found.csv")
    call("predict", runs[0], image, "--out", out, "--upright-only")
    assert out.exists()

    written = Path(json.loads(call("export", runs[0], "--json"))["path"])
    program, network = torch.export.load(written).module(), RunDir(runs[0]).load_model()
    x = torch.rand(2, 1, SIDE, SIDE)
    torch.testing.assert_close(program(x), network(x), rtol=1e-3, atol=1e-3)
    folder = isoconv.save_pretrained(RunDir(runs[0]), tmp_path / "saved")
    torch.testing.assert_close(isoconv.from_pretrained(folder)(x), network(x))
    assert f"image-{task}" in (folder / "README.md").read_text()

    shutil.rmtree(tmp_path / "data")
    assert main(["evaluate", str(runs[0])]) == 1
    assert "is gone; restore it" in capsys.readouterr().err
    serve(runs, image.name, disc(3)[0], answer)


def serve(runs: list[Path], name: str, pixels: np.ndarray, answer: str) -> None:
    import io

    from fastapi.testclient import TestClient

    from isoconv.evaluation import Predictor
    from isoconv.serve import create_app

    file = io.BytesIO()
    pil.fromarray(pixels).save(file, format="PNG")
    with TestClient(create_app([Predictor(run, "cpu") for run in runs], hosts=["testserver"])) as client:
        assert client.get("/").status_code == 200
        answered = client.post("/predict", files={"files": (name, file.getvalue(), "image/png")})
        assert answered.status_code == 200, answered.text
        assert answered.json()[0]["file"] == name
        assert answer in answered.json()[0]
        turned = client.post("/turn", files={"file": (name, file.getvalue(), "image/png")})
        lines = [json.loads(line) for line in turned.text.splitlines()]
        assert len(lines) == 73  # what follows, and an angle in each line
        assert len(lines[1]["networks"]) == 2
