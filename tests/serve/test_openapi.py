"""Requests as the OpenAPI description allows and forbids them, by schemathesis: each is answered as it is described."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi", reason="isoconv serve needs pip install 'isoconv[serve]'")
pytest.importorskip("schemathesis", reason="not installed: pip install 'isoconv[dev]'")

import requests
import schemathesis
from fastapi import FastAPI
from schemathesis.specs.openapi.checks import positive_data_acceptance

from isoconv.evaluation.prediction import Predictor
from isoconv.runs import RunDir
from isoconv.serve import Limits, create_app

pytestmark = pytest.mark.slow

Serving = Callable[[FastAPI], AbstractContextManager[str]]
EXAMPLES = 150


def picture(side: int) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)).save(memory, "PNG")
    return memory.getvalue()


NAMES = st.sampled_from(["a.png", "a.npy", "a.tif", "a.dcm", "a.nii", "a.txt", "a", ""])
FILES = st.tuples(NAMES, st.binary()) | st.sampled_from([("a.png", picture(side)) for side in (16, 80)])


@pytest.mark.parametrize("name", ["sre", "masks/sre"])
def test_every_answer_is_described(evaluated: Callable[[str], RunDir], serving: Serving, name: str) -> None:
    statuses: dict[str, set[int]] = {}

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def ask(operation: schemathesis.APIOperation, data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(schemathesis.GenerationMode))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        field = {"/predict": "files", "/turn": "file"}.get(case.path)
        named = data.draw(st.none() | FILES) if field and mode.is_positive else None
        answer = case.call(files={field: named}) if named else case.call()
        statuses.setdefault(case.path, set()).add(answer.status_code)
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])  # not any bytes are an image

    with serving(create_app([Predictor(evaluated(name), "cpu")], Limits(side=64))) as address:
        for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
            ask(found.ok())
        for path in ("/predict", "/turn"):  # a form without end is not always drawn
            broken = requests.post(address + path, b"x", headers={"content-type": "multipart/form-data"}, timeout=60)
            statuses[path].add(broken.status_code)
    assert statuses == {"/health": {200}, **dict.fromkeys(("/predict", "/turn"), {200, 400, 413, 415, 422})}
