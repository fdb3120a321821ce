"""A served network that segments: the masks of `isoconv predict`, and masks that turn with the image."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="isoconv serve needs pip install 'isoconv[serve]'")

from fastapi.testclient import TestClient

from isoconv.data import load
from isoconv.evaluation.prediction import Predictor, predict
from isoconv.report.images import label_colours
from isoconv.runs import RunDir
from isoconv.serve import create_app
from isoconv.symmetry import circular_mask

Evaluated = Callable[[str], RunDir]

PIXELS = load("vessels", 16).test.images[0, 0].numpy()
VOLUME = load("vessels3d", 16).test.images[0, 0].numpy()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def opened(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def numbers(uri: str) -> np.ndarray:
    """Labels of a mask drawn in colour."""
    pixels = opened(uri)
    found = np.zeros(pixels.shape[:2], np.uint8)
    for label, colour in list(enumerate(label_colours(3)))[1:]:
        found[(pixels[..., :3] == list(bytes.fromhex(colour[1:]))).all(-1)] = label
    assert np.array_equal(pixels[..., 3] > 0, found > 0)
    return found


def client_of(*runs: RunDir) -> TestClient:
    return TestClient(create_app([Predictor(run, "cpu") for run in runs]), base_url="http://localhost")


def turned(runs: list[RunDir], name: str, content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of the answer, and those that follow."""
    with client_of(*runs) as client:
        answer = client.post("/turn", files={"file": (name, content)}).raise_for_status()
    head, *rows = map(json.loads, answer.text.splitlines())
    return head, rows


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the labels that are in either."""
    labels = [label for label in (1, 2) if (a == label).any() or (b == label).any()]
    shared = [2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum()) for label in labels]
    return float(np.mean(shared)) if labels else 1.0


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [("masks/sre", "vessel.png", png(PIXELS)), ("masks/volumes", "vessels.npy", npy(VOLUME))],
)
def test_the_same_as_predict(evaluated: Evaluated, tmp_path: Path, name: str, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    run = evaluated(name)
    (expected,) = predict(run, tmp_path / file)
    with client_of(run) as client:
        sent = [("files", (file, content))]
        (row,) = client.post("/predict?rotations=true", files=sent).raise_for_status().json()
        (upright,) = client.post("/predict", files=sent).raise_for_status().json()
    mask = opened(row.pop("mask")).reshape(expected["mask"].shape)  # of a volume the slices, one below the other
    assert np.array_equal(mask, expected["mask"])
    known = {key: expected[key] for key in ("shares", "consistency")}
    assert row == {"file": file, "index": None, "note": row["note"], **known}
    assert upright["consistency"] is None
    assert list(row["shares"].values()) == [pytest.approx((mask == label).mean()) for label in range(3)]


def test_answers_are_described(evaluated: Evaluated) -> None:
    for name, answer in (("masks/sre", {"shares", "mask"}), ("sre", {"label", "probabilities"})):
        with client_of(evaluated(name)) as client:
            described = client.get("/openapi.json").json()["components"]["schemas"]["Prediction"]
        assert set(described["properties"]) == {"file", "index", "consistency", "note", *answer}
        assert set(described["required"]) == {"file", "index", *answer}
        assert all(described["properties"][field]["description"] for field in answer)


def test_a_mask_turns_with_its_image(evaluated: Evaluated, tmp_path: Path) -> None:
    runs = [evaluated("masks/sre"), evaluated("masks/plain")]
    head, lines = turned(runs, "vessel.png", png(PIXELS))
    assert [reading["title"] for reading in head["readings"]] == ["background", "vessel", "cell"]
    inside = circular_mask((16, 16)).numpy()
    (tmp_path / "vessel.png").write_bytes(png(PIXELS))
    for i, (run, exact) in enumerate(zip(runs, (True, False), strict=True)):
        rows = [line["networks"][i] for line in lines]
        masks = [numbers(row["mask"]) for row in rows]
        assert {(row["said"], row["maps"], row["change"]) for row in rows} == {("", None, None)}
        assert not any(mask[~inside].any() for mask in masks)
        assert 0 < (masks[0] > 0).sum() < inside.sum()
        agreements = [row["curves"][0]["value"] for row in rows]
        for quarter in (1, 2, 3):
            expected = np.rot90(masks[0], quarter)
            assert agreements[18 * quarter] == pytest.approx(dice(masks[18 * quarter], expected))
            assert (agreements[18 * quarter] == 1) is exact
            assert np.array_equal(masks[18 * quarter], expected) is exact
        (row,) = predict(run, tmp_path / "vessel.png")
        assert np.mean(agreements[::2]) == pytest.approx(row["consistency"])
        for row in rows:
            assert [(curve["title"], curve["unit"]) for curve in row["curves"]] == [
                ("same mask as upright (Dice)", "%"),
                ("share of vessel", "%"),
                ("share of cell", "%"),
            ]
            assert [curve["value"] for curve in row["curves"][1:]] == row["readings"][1:]


def test_a_volume_shows_the_slice_of_its_mask(evaluated: Evaluated) -> None:
    _, rows = turned([evaluated("masks/volumes")], "vessels.npy", npy(VOLUME))
    shown = [opened(row["image"]) for row in rows]
    masks = [numbers(row["networks"][0]["mask"]) for row in rows]
    assert masks[0].shape == shown[0].shape == (16, 16)
    assert 0 < (masks[0] > 0).sum() < 16 * 16
    for quarter in (1, 2, 3):
        for frames in (shown, masks):
            assert np.array_equal(frames[18 * quarter], np.rot90(frames[0], quarter))
        assert rows[18 * quarter]["networks"][0]["curves"][0]["value"] == pytest.approx(1)
