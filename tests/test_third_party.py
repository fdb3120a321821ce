"""Networks that isoconv has never seen, from their registration to the page that serves them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from isoconv.evaluation import Predictor, evaluate
from isoconv.models import create_model, register_model, registry
from isoconv.runs import TrainConfig
from isoconv.training import train

pytest.importorskip("fastapi", reason="serving needs the extra 'serve'")


def classifier(in_channels: int, num_classes: int, *, width: int = 4) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), *head)


def segmenter(in_channels: int, num_classes: int, *, width: int = 4) -> nn.Module:
    """Every pixel by itself: exactly equivariant, without a layer of ours."""
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize(
    ("build", "task", "data", "outputs"),
    [(classifier, "classification", "cells", (2, 5)), (segmenter, "segmentation", "vessels", (2, 3, 16, 16))],
)
def test_a_network_of_someone_else(
    build: object,
    task: str,
    data: str,
    outputs: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastapi.testclient import TestClient

    from isoconv.deploy.export import export_run
    from isoconv.serve import create_app

    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("theirs", build, dims=2, task=task, symmetry="full" if task == "segmentation" else "none")  # type: ignore[arg-type]
    assert isinstance(create_model("theirs", 1, 2, width=2), nn.Sequential)

    small = {"width": 3, "epochs": 1, "size": 16, "batch_size": 8, "device": "cpu"}
    run = train(TrainConfig(data, "theirs", tmp_path / "run", **small))  # type: ignore[arg-type]
    result = evaluate(run)
    rows = {row["name"]: row for row in result["conditions"]}
    if task == "segmentation":  # the symmetry that it was registered with is real
        assert rows["rot90"]["dice"] == pytest.approx(rows["rot0"]["dice"], abs=1e-6)

    x = torch.rand(2, run.model_info["task"]["channels"], 16, 16)
    expected = run.load_model()(x)
    assert expected.shape == outputs
    program = torch.export.load(export_run(run, "pt2").path).module()
    torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)

    with TestClient(create_app([Predictor(run, "cpu")], hosts=["testserver"])) as client:
        assert "theirs" in client.get("/").text
        picture = tmp_path / "a.png"
        pytest.importorskip("PIL.Image").fromarray((255 * x[0, 0]).byte().numpy()).save(picture)
        answered = client.post("/predict", files={"files": ("a.png", picture.read_bytes(), "image/png")})
        assert answered.status_code == 200, answered.text
        assert json.loads(answered.text)[0]["file"] == "a.png"
