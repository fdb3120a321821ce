"""A served steerable network answers as `isoconv predict` does, and shows its first stage as the image turns."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="isoconv serve needs pip install 'isoconv[serve]'")

from fastapi.testclient import TestClient

from isoconv.evaluation.prediction import Predictor, predict
from isoconv.models import create_model, model_config
from isoconv.runs import RunDir
from isoconv.serve import create_app

Evaluated = Callable[[str], RunDir]


@pytest.mark.parametrize(
    ("run", "name", "options"),
    [
        ("sre", "steerable_resnet18", {"reflections": False}),
        ("sre", "steerable_resnet18", {"form": "dropped", "orders": 1}),
        ("masks/sre", "steerable_unet", {}),
    ],
)
def test_predict_and_turn(evaluated: Evaluated, tmp_path: Path, run: str, name: str, options: dict) -> None:
    directory = evaluated(run)
    net = create_model(name, directory.task.info.channels, directory.task.info.num_outputs, width=4, **options)
    net(torch.randn(8, net.in_channels, 16, 16))  # so that running means are not the initial ones
    directory.save_model(net, {**directory.model_info, "model": model_config(net)})
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, net.in_channels), np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (expected,) = predict(directory, [tmp_path / "a.png"])
    with TestClient(create_app([Predictor(directory, "cpu")]), base_url="http://localhost") as client:
        sent = [("files", ("a.png", buffer.getvalue()))]
        (row,) = client.post("/predict?rotations=true", files=sent).raise_for_status().json()
        turned = client.post("/turn", files={"file": ("a.png", buffer.getvalue())}).raise_for_status().text
    head, *rows = (json.loads(line) for line in turned.splitlines())
    seen = [rows[i]["networks"][0] for i in (0, 18, 9)]  # upright, by 90 and by 45 degrees
    if run == "sre":
        assert row["label"] == expected["label"]
        assert row["probabilities"] == pytest.approx(expected["probabilities"])
        assert seen[1]["readings"] == pytest.approx(seen[0]["readings"], abs=1e-4)
        assert seen[1]["change"] < 1e-4 < 1e-2 < seen[2]["change"]  # vectors are turned back as such
        assert len(seen[0]["maps"]) == 3
    else:
        assert row["consistency"] == expected["consistency"]
        assert seen[0]["maps"] is None
