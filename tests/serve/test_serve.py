"""The served network: the answers of `isoconv predict`, to many at once, and nothing for files that are not as they
should be."""

import base64
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="isoconv serve needs pip install 'isoconv[serve]'")

import httpx2
import uvicorn
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from isoconv.cli.main import main
from isoconv.evaluation.prediction import Predictor, predict
from isoconv.runs import RunDir
from isoconv.serve import Limits, create_app, serve, uploads
from isoconv.serve.turning import ANGLES
from isoconv.serve.uploads import SUFFIXES

Evaluated = Callable[[str], RunDir]
Serving = Callable[[FastAPI], AbstractContextManager[str]]
Files = list[tuple[str, tuple[str, bytes]]]

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 16, 16, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def form(*named: tuple[str, bytes]) -> Files:
    return [("files", each) for each in named]


def turned(response: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert response.status_code == 200, response.text
    head, *rows = (json.loads(line) for line in response.text.splitlines())
    return head, rows


@contextmanager
def client_of(runs: Sequence[RunDir], limits: Limits | None = None) -> Iterator[TestClient]:
    with TestClient(create_app([Predictor(run, "cpu") for run in runs], limits), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def client(evaluated: Evaluated) -> Iterator[TestClient]:
    """Of both networks."""
    with client_of([evaluated("sre"), evaluated("plain")]) as client:
        yield client


# What is answered


def test_the_same_as_predict(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "stack.npy").write_bytes(npy(PIXELS[1:4]))
    run, paths = evaluated("sre"), [tmp_path / "a.png", tmp_path / "stack.npy"]
    expected = predict(run, paths)
    sent = form(*((path.name, path.read_bytes()) for path in paths))
    with client_of([run]) as client:
        rows = client.post("/predict?rotations=true", files=sent).raise_for_status().json()
        upright = client.post("/predict", files=sent).raise_for_status().json()
    assert [(row["file"], row["index"]) for row in rows] == [("a.png", None), *(("stack.npy", i) for i in range(3))]
    for row, without, want in zip(rows, upright, expected, strict=True):
        assert row["label"] == want["label"]
        assert row["probabilities"] == pytest.approx(want["probabilities"])
        assert row["consistency"] == want["consistency"]
        assert without == {**row, "probabilities": pytest.approx(row["probabilities"]), "consistency": None}


def test_a_constant_answer_is_not_called_consistent_without_a_note(evaluated: Evaluated) -> None:
    constant, other = evaluated("volumes"), evaluated("sre")
    assert constant.results()["standard"]["notes"][0].startswith("every image is decided as")
    for run, array, noted in ((constant, PIXELS[0, ..., 0], True), (other, PIXELS[0], False)):
        volume = np.stack([array] * 16) if noted else array
        with client_of([run]) as client:
            sent = form(("x.npy", npy(volume)))
            (turned,) = client.post("/predict?rotations=true", files=sent).raise_for_status().json()
            (upright,) = client.post("/predict", files=sent).raise_for_status().json()
        assert upright["note"] is None
        assert turned["note"] == (constant.results()["standard"]["notes"][0] if noted else None)


@pytest.mark.parametrize("name", ["cell.dcm", "1.2.840.113619", "cell"])
def test_dicom_with_and_without_an_ending(evaluated: Evaluated, tmp_path: Path, name: str) -> None:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pip install 'isoconv[medical]'")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.UltrasoundImageStorage, "1.2"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PlanarConfiguration = 16, 16, 3, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 7, 0, "RGB"
    data.PixelData = PIXELS[0].tobytes()
    data.save_as(tmp_path / name, enforce_file_format=True)
    sent = (tmp_path / name).read_bytes()
    run = evaluated("plain")
    with client_of([run], Limits(side=16)) as client:
        (row,) = client.post("/predict", files=form((name, sent))).raise_for_status().json()
        (twin,) = client.post("/predict", files=form(("x.png", png(PIXELS[0])))).raise_for_status().json()
        assert f'accept="{",".join(SUFFIXES)}"' in client.get("/").text
    assert (row["file"], row["probabilities"]) == (name, twin["probabilities"])
    with client_of([run], Limits(side=15)) as client:
        answer = client.post("/predict", files=form((name, sent)))
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith(f"{name} is 1 x 16 x 16, the limit is 15 a side")


def test_a_kind_of_file_whose_package_is_missing(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with client_of([evaluated("plain")]) as client:
        answer = client.post("/predict", files=form(("x.dcm", bytes(128) + b"DICM")))
    assert (answer.status_code, answer.json()["detail"]) == (415, "this server does not read .dcm; convert x.dcm")


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), np.int64)


def test_an_image_turned(client: TestClient, tmp_path: Path) -> None:
    head, rows = turned(client.post("/turn", files={"file": ("cell.png", png(PIXELS[0]))}))
    assert head["file"] == "cell.png"
    assert head["networks"] == ["sre_resnet18 kernel_sizes=5,5,3,3", "resnet18"]
    labels = RunDir(tmp_path / "sre").model_info["task"]["labels"]
    assert head["readings"] == [{"title": label, "unit": "%"} for label in labels]
    assert [row["angle"] for row in rows] == head["angles"] == list(range(0, 360, 5))
    sre, plain = ([row["networks"][i] for row in rows] for i in (0, 1))
    for quarter in (18, 36, 54):
        assert sre[quarter]["readings"] == pytest.approx(sre[0]["readings"], abs=1e-5)
        assert sre[quarter]["change"] < 1e-5
        assert plain[quarter]["readings"] != pytest.approx(plain[0]["readings"], abs=1e-5)
        assert plain[quarter]["change"] > 0.01
    assert sre[9]["change"] > 0.01  # other angles are approximate
    assert all(len(each["maps"]) == 3 for each in sre + plain)
    assert rows[0]["image"] != rows[9]["image"]
    for network, stands_still in ((sre, True), (plain, False)):
        upright, quarter = (pixels_of(network[step]["saliency"]) for step in (0, 18))
        assert bool(np.abs(upright - quarter).max() <= 2) is stands_still
        assert upright.std() > 10
    followed = int(np.argmax(sre[0]["readings"]))  # the likeliest upright
    for row in sre:
        (curve,) = row["curves"]
        assert (curve["title"], curve["unit"]) == (f"probability of {labels[followed]}", "%")
        assert curve["value"] == row["readings"][followed]
        assert row["mask"] is None

    (tmp_path / "cell.png").write_bytes(png(PIXELS[0]))
    for network, name in ((sre, "sre"), (plain, "plain")):
        (row,) = predict(tmp_path / name, tmp_path / "cell.png")
        tens = [each["said"] for each in network[::2]]
        assert tens[0] == row["label"]
        assert np.mean([said == tens[0] for said in tens]) == pytest.approx(row["consistency"])


def test_a_volume_turned_about_an_axis(evaluated: Evaluated) -> None:
    sent = {"file": ("gland.npy", npy(RNG.integers(0, 256, (12, 14, 16), np.uint8)))}
    with client_of([evaluated("volumes")]) as client:
        answers = {
            axis: turned(client.post("/turn", files=sent, data={"axis": axis}))[1] for axis in ("depth", "width")
        }
        refused = client.post("/turn", files=sent, data={"axis": "time"})
    upright = [rows[0]["networks"][0]["readings"] for rows in answers.values()]
    assert upright[0] == pytest.approx(upright[1])
    depth, width = (rows[6]["networks"][0]["change"] for rows in answers.values())
    assert depth != pytest.approx(width, rel=1e-3)
    assert answers["depth"][0]["image"] != answers["width"][0]["image"]
    assert refused.status_code == 422
    assert refused.json() == {"detail": "axis must be depth or height or width, got 'time'"}


def test_a_network_without_stages_has_no_feature_maps(evaluated: Evaluated) -> None:
    predictor = Predictor(evaluated("plain"), "cpu")
    outputs = predictor.task.info.num_outputs
    predictor.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, outputs))
    with TestClient(create_app([predictor]), base_url="http://localhost") as client:
        _, rows = turned(client.post("/turn", files={"file": ("x.png", png(PIXELS[0]))}))
    assert {(row["networks"][0]["maps"], row["networks"][0]["change"]) for row in rows} == {(None, None)}


def test_several_labels(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    info = run.model_info
    info["task"]["kind"] = "multilabel"
    (run.path / "model.json").write_text(json.dumps(info))
    with client_of([run]) as client:
        (row,) = client.post("/predict", files=form(("x.png", png(PIXELS[0])))).raise_for_status().json()
        head, rows = turned(client.post("/turn", files={"file": ("x.png", png(PIXELS[0]))}))
    assert row["label"] == [name for name, p in row["probabilities"].items() if p > 0.5]
    titles = [reading["title"] for reading in head["readings"]]
    for (network,) in (each["networks"] for each in rows):
        likely = [title for title, p in zip(titles, network["readings"], strict=True) if p > 0.5]
        assert network["said"] == (", ".join(likely) or "none")


def test_numbers(evaluated: Evaluated) -> None:
    run = evaluated("plain")
    info = run.model_info
    info["task"]["kind"] = "regression"
    (run.path / "model.json").write_text(json.dumps(info))
    with client_of([run]) as client:
        sent = form(("x.png", png(PIXELS[0])))
        (row,) = client.post("/predict?rotations=true", files=sent).raise_for_status().json()
        head, rows = turned(client.post("/turn", files={"file": ("x.png", png(PIXELS[0]))}))
    names = list(row["values"])
    assert row.keys() == {"file", "index", "values", "change", "note"}
    assert head["readings"] == [{"title": name, "unit": ""} for name in names]
    for (network,) in (each["networks"] for each in rows):
        assert (network["said"], network["mask"]) == ("", None)
        assert [curve["title"] for curve in network["curves"]] == names
        assert [curve["value"] for curve in network["curves"]] == network["readings"]
    turns = np.array([each["networks"][0]["readings"] for each in rows[::2]])
    assert row["change"] == pytest.approx(np.abs(turns - turns[0]).mean(), rel=1e-5)


def test_health_and_description(client: TestClient) -> None:
    health = client.get("/health").json()
    assert (health["status"], len(health["networks"])) == ("ok", 2)
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/predict", "/turn"}
    for path in ("/predict", "/turn"):
        told = set(described["paths"][path]["post"]["responses"])
        assert told == {"200", "400", "408", "413", "415", "422", "500"}
    assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_the_page_takes_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert {"frame-ancestors 'none'", "form-action 'none'"} <= set(policy.split("; "))
    for text in (page.text, client.get("/page.css").text, client.get("/page.js").text):
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text) == []
    assert re.findall(r'(?:src|href)="(.+?)"', page.text) == ["data:,", "page.css", "page.js", "openapi.json"]


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "status", "detail"),
    [
        ("notes.txt", b"mine", 415, r"notes.txt is none of \.png, .*\.npy, .*; convert it to one of them"),
        ("set.npz", b"PK", 415, "set.npz is none of"),
        ("cut.png", png(PIXELS[0])[:200], 422, "cannot read cut.png .*; save it anew or leave it out"),
        ("none.png", b"", 422, "cannot read none.png"),
        ("none.npy", b"", 422, "cannot read none.npy"),
        ("none.tif", b"", 422, "cannot read none.tif"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "cannot read script.png"),
        ("object.npy", npy(np.array([{}], dtype=object)), 422, "cannot read object.npy"),
        ("flat.npy", npy(np.full((16, 16, 3), 7, np.uint8)), 422, "flat.npy is constant, all its pixels are equal"),
        ("deep.npy", npy(np.zeros((2, 2, 2, 16, 16))), 422, r"deep.npy has shape \(2, 2, 2, 16, 16\); the network"),
        ("wide.png", png(np.zeros((2, 300), np.uint8)), 413, "wide.png is 300 x 2, the limit is 256 a side; send a sm"),
        ("many.npy", npy(np.zeros((90, 60, 60), np.uint8)), 413, "many.npy is 90 x 60 x 60, the limit is 256 a side"),
        ("huge.npy", bytes(2 * 10**6), 413, "the request is too large, the limit is 1 MB; send less at once"),
    ],
)
def test_unsuitable_file(evaluated: Evaluated, name: str, content: bytes, status: int, detail: str) -> None:
    with client_of([evaluated("plain")], Limits(megabytes=1, side=256)) as client:
        for answer in (
            client.post("/predict", files=form((name, content))),
            client.post("/turn", files={"file": (name, content)}),
        ):
            assert answer.status_code == status, answer.text
            assert re.match(detail, answer.json()["detail"])
            assert tempfile.gettempdir() not in answer.text


def test_requests_that_are_not_as_described(client: TestClient) -> None:
    for answer, status, detail in (
        (client.post("/predict"), 422, "the request is not as /openapi.json describes it (files: Field required)"),
        (
            client.post("/predict", data={"files": "text"}),
            422,
            "the request is not as /openapi.json describes it (files.0: Value error, Expected UploadFile, received: s",
        ),
        (client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "Missing bound"),
        (client.post("/predict", files=form(*[("x.png", b"")] * 65)), 413, "65 files in a request, the limit is 64"),
        (client.post("/turn", files={"file": ("s.npy", npy(PIXELS))}), 422, "s.npy holds 8 images, one can be turned"),
        (
            client.post("/turn", files={"file": ("x.png", png(PIXELS[0]))}, data={"axis": "width"}),
            422,
            "axis must be d",
        ),
        (client.get("/nowhere"), 404, "Not Found"),
        (client.get("/../../etc/passwd"), 404, "Not Found"),
    ):
        assert answer.status_code == status
        assert answer.json()["detail"].startswith(detail)
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


@pytest.mark.parametrize("name", ["../../escaped.png", "/escaped.png", "..\\escaped.png", "a/../../escaped.png"])
def test_a_clients_path_is_only_a_name(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(below))
    monkeypatch.chdir(below)
    run = evaluated("plain")
    before = set(tmp_path.rglob("*"))
    with client_of([run]) as client:
        (row,) = client.post("/predict", files=form((name, png(PIXELS[0])))).raise_for_status().json()
    assert row["file"] == name
    assert set(tmp_path.rglob("*")) == before


def test_networks_that_cannot_be_compared(evaluated: Evaluated) -> None:
    with pytest.raises(ValueError, match="cannot be compared: their labels are .*; take runs of one data set"):
        create_app([Predictor(evaluated(name), "cpu") for name in ("sre", "volumes")])


def test_a_network_that_answers_nan_is_not_served(evaluated: Evaluated) -> None:
    predictor = Predictor(evaluated("plain"), "cpu")
    for parameter in predictor.model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(FloatingPointError, match="outputs that are not finite"):
        create_app([predictor])


def test_a_network_that_answers_nan_to_an_image_says_so(evaluated: Evaluated) -> None:
    predictor = Predictor(evaluated("plain"), "cpu")
    told = f"the network of {predictor.run.path.name} gives outputs that are not finite; train again with a lower --lr"
    with TestClient(create_app([predictor]), base_url="http://localhost") as client:
        predictor.model.register_forward_hook(lambda *_: torch.full((1, 5), torch.nan))
        answer = client.post("/predict", files=form(("x.png", png(PIXELS[0]))))
        _, (last,) = turned(client.post("/turn", files={"file": ("x.png", png(PIXELS[0]))}))
    assert (answer.status_code, answer.json(), last) == (500, {"detail": told}, {"detail": told})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], r"a port lies in 0\.\.65535, got 70000"),
        (["--host", "no such host"], "cannot listen at no such host, port 8000"),
        (["--max-side", "0"], "the limit of side must be at least 1, got 0"),
        (["--plain", "nowhere"], "no run at nowhere"),
    ],
)
def test_command_line_refuses(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["serve", str(evaluated("plain").path), *options]) == 1
    assert re.match(f"error: {message}", capsys.readouterr().err)


def test_a_port_in_use(evaluated: Evaluated) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"cannot listen at 127.0.0.1, port {port} \(.*in use\); choose another --port"
        ):
            serve(evaluated("plain"), port=port)


def test_other_machines_are_let_in_with_a_warning(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isoconv")
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    run = evaluated("plain")
    for host in ("127.0.0.1", "0.0.0.0"):
        serve(run, host=host, port=0)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["warning: 0.0.0.0 can be reached from other machines, without password or encryption"]


# A server of its own


def test_fifty_clients_at_once(evaluated: Evaluated, serving: Serving) -> None:
    app = create_app([Predictor(evaluated(name), "cpu") for name in ("sre", "plain")])
    pictures = [png(pixels) for pixels in PIXELS]
    with serving(app) as address, httpx2.Client(base_url=address, timeout=60) as client:

        def ask(i: int) -> Any:
            name = f"{i}.png"
            if i % 10 == 9:  # a page among them
                return turned(client.post("/turn", files={"file": (name, pictures[0])}))
            return client.post("/predict", files=form((name, pictures[i % 8]))).raise_for_status().json()

        alone = [ask(i)[0]["probabilities"] for i in range(8)]
        _, page = ask(9)
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(ask, range(50)))
        for i, answer in enumerate(answers):
            if i % 10 == 9:
                head, rows = answer
                assert (head["file"], len(rows), rows) == (f"{i}.png", len(ANGLES), page)
            else:
                assert [(row["file"], row["probabilities"]) for row in answer] == [(f"{i}.png", alone[i % 8])]


def test_a_large_request_gets_its_answer(evaluated: Evaluated, serving: Serving) -> None:
    app = create_app([Predictor(evaluated("plain"), "cpu")], Limits(megabytes=1))
    with serving(app) as address, httpx2.Client(base_url=address) as client:
        answer = client.post("/predict", files=form(("x.npy", bytes(30 * 10**6))))
        assert (answer.status_code, answer.json()["detail"].split(",")[0]) == (413, "the request is too large")
        head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="x.npy"\r\n\r\n'
        endless = (head if i == 0 else bytes(10**6) for i in range(30))  # its length is not told beforehand
        answer = client.post("/predict", content=endless, headers={"content-type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 413
        assert client.get("/health").status_code == 200


class TestSlowClients:
    """None holds a connection for ever; who is only slow gets an answer."""

    HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"

    @pytest.fixture
    def address(
        self, evaluated: Evaluated, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[str, int]]:
        monkeypatch.setattr(uploads, "GRACE", 0.5)
        app = create_app([Predictor(evaluated("plain"), "cpu")], Limits(megabytes=1))

        @app.get("/long")
        async def long() -> Response:
            return Response(bytes(10**8))

        with serving(app) as url:
            yield ("127.0.0.1", int(url.rpartition(":")[2]))

    @staticmethod
    def dripping(address: tuple[str, int], head: bytes, drop: bytes = b"") -> tuple[bytes, float]:
        """What comes back before the end of the connection, and the seconds until then."""
        began = time.monotonic()
        with socket.create_connection(address) as client:
            client.settimeout(0.05)
            client.sendall(head)
            answer = b""
            while time.monotonic() - began < 20:
                with suppress(TimeoutError):
                    try:
                        if not (part := client.recv(1 << 16)):
                            break
                        answer += part
                    except ConnectionResetError:
                        break
                with suppress(OSError):
                    client.sendall(drop)
            return answer, time.monotonic() - began

    @pytest.mark.parametrize(
        "length", [b"Content-Length: 900000", b"Content-Length: 9000000", b"Transfer-Encoding: chunked"]
    )
    def test_a_body_that_drips_gets_408(self, address: tuple[str, int], length: bytes) -> None:
        part = b'--x\r\ncontent-disposition: form-data; name="files"; filename="x.npy"\r\n\r\n'
        chunked = b"chunked" in length
        head = self.HEAD + length + b"\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        answer, seconds = self.dripping(address, head, b"1\r\n-\r\n" if chunked else b"-")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the request comes too slowly, the limit is 10 kB a second" in answer
        assert seconds < 5

    @pytest.mark.parametrize(
        ("head", "drop"),
        [
            (b"", b""),
            (b"GET / HTTP/1.1\r\n", b"x"),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"x"),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n", b"x"),
        ],
        ids=["silence", "a head", "a second head", "a body that nobody wants"],
    )
    def test_a_head_that_drips_is_cut_off(self, address: tuple[str, int], head: bytes, drop: bytes) -> None:
        assert self.dripping(address, head, drop)[1] < 10

    def test_an_answer_that_is_not_taken_is_cut_off(self, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as client:
            client.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(3)
            client.settimeout(5)
            taken = 0
            with suppress(ConnectionResetError):
                while part := client.recv(1 << 20):
                    taken += len(part)
        assert taken < 10**8

    def test_a_body_that_comes_slowly_but_steadily_is_read(self, address: tuple[str, int]) -> None:
        body = (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="x.npy"\r\n\r\n'
            + npy(PIXELS)
            + b"\r\n--x--\r\n"
        )
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        with socket.create_connection(address) as client:
            client.sendall(self.HEAD + length + body[:-3])
            time.sleep(0.8)  # longer than the grace, shorter than it and what the bytes sent allow
            client.sendall(body[-3:])
            client.settimeout(20)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_from_the_command_line_until_interrupted(evaluated: Evaluated) -> None:
    command = [sys.executable, "-m", "isoconv", "serve", str(evaluated("plain").path), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line)
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert match is not None
        assert httpx2.get(f"{match[0]}/health").json()["status"] == "ok"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
