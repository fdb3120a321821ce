"""The page in a browser: an image is dropped, the slider moves, and with it what should move."""

import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="isoconv serve needs pip install 'isoconv[serve]'")

from fastapi import FastAPI, Request, Response
from PIL import Image

from isoconv.data import load
from isoconv.evaluation.prediction import Predictor
from isoconv.runs import RunDir
from isoconv.serve import create_app

Evaluated = Callable[[str], RunDir]
Acted = Callable[[list[RunDir], str, bytes, int], dict[str, Any]]

# The page loads a picture that the server holds back until the outcome has been sent: so long the browser waits.
ACT = """
const say = (outcome) => fetch("/outcome", {method: "POST", body: JSON.stringify(outcome)});
const until = async (met) => {
  while (!met()) await new Promise((go) => setTimeout(go, 20));
};
const put = async (address, name) => {
  const data = new DataTransfer();
  data.items.add(new File([await (await fetch(address)).blob()], name));
  dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
};
const texts = (selector) => [...document.querySelectorAll(selector)].map((it) => it.textContent);
const sources = (selector) => [...document.querySelectorAll(selector)].map((it) => it.src);
const widths = () => [...document.querySelectorAll(".bar i")].map((it) => it.style.width);
const state = () => ({where: $("where").textContent, said: $("angle").getAttribute("aria-valuetext"),
  src: $("frame").src, why: sources(".saliency:not([hidden]) img"),
  maps: sources(".maps img"), seen: sources(".seen .image"), masks: sources(".seen .mask"),
  labels: texts(".label"), kept: texts(".kept"), widths: widths(),
  curves: [...document.querySelectorAll("#curve polyline")].map((it) => it.getAttribute("points"))});
(async () => {
  const outcome = {hidden: [$("result").hidden]};
  await put("/broken", "broken.png");
  await until(() => $("error").textContent);
  outcome.error = $("error").textContent;
  await put("/image", NAME);
  await until(() => rows.length === 72);
  outcome.hidden.push($("result").hidden);
  outcome.cleared = $("error").textContent;
  outcome.unasked = state().why;
  $("why").click();
  outcome.first = state();
  $("angle").value = 90;
  $("angle").dispatchEvent(new Event("input", {bubbles: true}));
  outcome.quarter = state();
  $("angle").value = 360;
  $("angle").dispatchEvent(new Event("input", {bubbles: true}));
  outcome.full = state();
  $("spin").click();
  await until(() => $("where").textContent === "10°");
  $("spin").click();
  outcome.spun = $("spin").getAttribute("aria-pressed");
  outcome.kept = texts(".kept");
  outcome.curve = $("curve").getAttribute("aria-label");
  outcome.points = [...document.querySelectorAll("#curve polyline")].map((it) => it.points.length);
  outcome.quantities = [...$("quantity").options].map((it) => it.textContent);
  outcome.drawn = !$("drawn").hidden;
  outcome.others = outcome.quantities.slice(1).map((_, i) => {
    $("quantity").value = i + 1;
    $("quantity").dispatchEvent(new Event("change", {bubbles: true}));
    return state();
  });
  if ($("axis")) {
    $("axis").value = "height";
    $("axis").dispatchEvent(new Event("change", {bubbles: true}));
    await until(() => rows.length === 72 && $("frame").src !== outcome.first.src && $("where").textContent === "0°");
    outcome.height = state();
  }
  await put("/image", NAME);
  await until(() => rows.length > 3 && rows.length < 60);
  await put("/broken", "broken.png");
  await until(() => $("error").textContent);
  outcome.half = {hidden: $("result").hidden, rows: rows.length, shown: document.body.className};
  $("spin").click();
  await new Promise((go) => setTimeout(go, 300));
  $("spin").click();
  await put("/image", NAME);
  await until(() => rows.length === 72);
  await put("/broken", "broken.png");
  await until(() => $("error").textContent);
  outcome.whole = {hidden: $("result").hidden, rows: rows.length};
  outcome.wide = document.documentElement.scrollWidth > innerWidth;
  await say(outcome);
})().catch((problem) => say({problem: String(problem)}));
"""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on this machine: the page is tested by its structure only")
    return found


@pytest.fixture
def acted(chromium: str, serving: Callable[[FastAPI], AbstractContextManager[str]], tmp_path: Path) -> Acted:
    """Runs, name and content of a file, and the window's width to what the browser tells once the file was dropped."""
    return partial(act, chromium, serving, tmp_path / "profile")


def act(
    chromium: str,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    profile: Path,
    runs: list[RunDir],
    name: str,
    content: bytes,
    width: int,
) -> dict[str, Any]:
    app = create_app([Predictor(run, "cpu") for run in runs])
    (page,) = (route for route in app.routes if getattr(route, "path", None) == "/")
    outcome: dict[str, Any] = {}
    told = threading.Event()

    @app.get("/acted")
    async def acted() -> Response:
        answer = await page.endpoint()
        html = answer.body.decode().replace("</head>", '<script src="act.js" defer></script></head>')
        html = html.replace("</body>", '<img src="held.png" alt=""></body>')
        policy = answer.headers["content-security-policy"].replace("img-src", "img-src 'self'")
        return Response(html, media_type="text/html", headers={"content-security-policy": policy})

    @app.get("/act.js")
    async def script() -> Response:
        return Response(ACT.replace("NAME", json.dumps(name)), media_type="text/javascript")

    @app.get("/image")
    async def image() -> Response:
        return Response(content)

    @app.get("/broken")
    async def broken() -> Response:
        return Response(b"broken")

    @app.get("/held.png")
    def held() -> Response:
        told.wait(60)
        return Response(png(np.zeros((1, 1), np.uint8)), media_type="image/png")

    @app.post("/outcome")
    async def tell(request: Request) -> None:
        outcome.update(await request.json())
        told.set()

    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
    with serving(app) as address:
        browser = [chromium, *flags.split(), *more, f"--user-data-dir={profile}", f"--window-size={width},900"]
        result = subprocess.run([*browser, f"{address}/acted"], capture_output=True, text=True, timeout=120, check=True)
    messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in messages if "422" not in line] == []  # the browser notes the refused file itself
    assert "problem" not in outcome, outcome
    return outcome


@pytest.mark.parametrize("width", [390, 1200])
def test_an_image_is_dropped_and_turned(evaluated: Evaluated, acted: Acted, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    seen = acted([evaluated("sre"), evaluated("plain")], "cell.png", png(pixels), width)
    assert seen["hidden"] == [True, False]
    assert seen["error"].startswith("cannot read broken.png")
    assert seen["cleared"] == ""
    assert [seen[name]["where"] for name in ("first", "quarter", "full")] == ["0°", "90°", "0°"]
    assert seen["quarter"]["said"].startswith("90 degrees. sre_resnet18")
    assert seen["quarter"]["src"] != seen["first"]["src"]
    assert seen["full"] == seen["first"]
    for i, moves in enumerate((False, True)):
        before, after = (
            np.reshape([float(w[:-1]) for w in seen[n]["widths"]], (2, -1))[i] for n in ("first", "quarter")
        )
        assert (before == pytest.approx(after, abs=0.01)) is not moves
        assert before.sum() == pytest.approx(100, abs=0.01)
    assert len(seen["first"]["maps"]) == 6
    assert seen["unasked"] == []
    assert len(seen["first"]["why"]) == 2
    assert seen["first"]["why"][1] != seen["quarter"]["why"][1]  # that of the plain network moves
    assert seen["spun"] == "false"
    assert seen["kept"][0].startswith("answers ")
    assert all(" of 72 angles; probability of " in kept for kept in seen["kept"])
    assert seen["curve"].startswith("Against the angle. sre_resnet18")
    assert (len(seen["quantities"]), seen["drawn"], seen["first"]["masks"]) == (1, False, [])
    assert seen["points"] == [73, 73]  # a closed circle
    assert seen["half"] == {"hidden": True, "rows": 0, "shown": ""}
    assert seen["whole"] == {"hidden": False, "rows": 72}
    assert not seen["wide"]


def test_the_mask_turns_with_the_image(evaluated: Evaluated, acted: Acted) -> None:
    pixels = load("vessels", 16).test.images[0, 0].numpy()
    seen = acted([evaluated("masks/sre"), evaluated("masks/plain")], "vessel.png", png(pixels), 390)
    first, quarter = seen["first"], seen["quarter"]
    for state in (first, quarter):
        assert state["seen"] == [state["src"]] * 2  # under each mask lies the image
        assert all(source.startswith("data:image/png") for source in state["masks"])
    assert all(before != after for before, after in zip(first["masks"], quarter["masks"], strict=True))
    assert first["labels"][0].replace("\xa0", " ") == "100.0 % same mask as upright (Dice)"
    assert seen["drawn"]
    assert seen["quantities"] == ["same mask as upright (Dice)", "share of vessel", "share of cell"]
    for title, state in zip(seen["quantities"][1:], seen["others"], strict=True):
        assert all(title in kept for kept in state["kept"])
        assert state["curves"] != first["curves"]
    assert not seen["wide"]


def test_numbers_against_the_angle(evaluated: Evaluated, acted: Acted) -> None:
    runs = [evaluated("sre"), evaluated("plain")]
    for run in runs:
        info = run.model_info
        info["task"]["kind"] = "regression"
        (run.path / "model.json").write_text(json.dumps(info))
    seen = acted(runs, "cell.png", png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)), 390)
    names = runs[0].model_info["task"]["labels"]
    assert seen["quantities"] == names
    assert (seen["first"]["widths"], seen["first"]["masks"]) == ([], [])
    for name, state in zip(names[1:], seen["others"], strict=True):
        assert all(re.fullmatch(rf"{name}: -?[\d.e-]+ to -?[\d.e-]+", kept) for kept in state["kept"])
    for points in seen["first"]["curves"]:
        heights = [float(pair.split(",")[1]) for pair in points.split()]
        assert len(heights) == 73
        assert min(heights) >= 10  # within the frame
        assert max(heights) <= 172
    assert not seen["wide"]


def test_a_volume_is_turned_about_another_axis(evaluated: Evaluated, acted: Acted) -> None:
    volume = io.BytesIO()
    np.save(volume, np.random.default_rng(0).integers(0, 256, (12, 14, 16), np.uint8))
    seen = acted([evaluated("volumes")], "gland.npy", volume.getvalue(), 800)
    assert seen["height"]["src"] != seen["first"]["src"]
    assert len(seen["first"]["maps"]) == 2  # as many as the stage has channels
    assert not seen["wide"]
