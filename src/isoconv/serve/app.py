"""The web application: the page, what it asks for, and the endpoint for programs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, create_model

from isoconv._extras import require
from isoconv._text import without_objects
from isoconv._version import __version__
from isoconv.evaluation.comparison import labels_of
from isoconv.evaluation.prediction import Predictor
from isoconv.evaluation.saliency import has_default_layer
from isoconv.figures.maps import shows_stages
from isoconv.report.images import label_colours, png
from isoconv.serve.turning import ANGLES, AXES, turn
from isoconv.serve.uploads import SUFFIXES, BodyLimit, Limits, read_upload
from isoconv.tasks import Task

__all__ = ["create_app"]

log = logging.getLogger(__name__)

T = TypeVar("T")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Refusal(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


class Health(BaseModel):
    status: Literal["ok"]
    version: str
    task: str
    networks: list[str]


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Not a form that can be read"},
    408: {"model": Refusal, "description": "The request comes too slowly"},
    413: {"model": Refusal, "description": "Too many bytes, files or pixels"},
    415: {"model": Refusal, "description": "Not a kind of file that is read"},
    422: {"model": Refusal, "description": "A file that cannot be read, or that the network cannot take"},
    500: {"model": Refusal, "description": "The network gives outputs that are not finite"},
}


def create_app(
    predictors: Sequence[Predictor], limits: Limits | None = None, hosts: Sequence[str] = ("localhost", "127.0.0.1")
) -> FastAPI:
    """The application that shows one network, or two side by side.

    Files are read and networks run in one thread, whatever the number of clients.

    Args:
        predictors: the network that predicts, and if there is a second one, what the page compares it with.
        limits: of uploads.
        hosts: names that requests may call the server by, so that no page of another site can have its name point
            here; ``"*"`` for any.

    Raises:
        ValueError: the networks are for different tasks.
        FloatingPointError: one gives outputs that are not finite.
    """
    limits = limits or Limits()
    task, titles = _check(predictors), labels_of([p.run.config for p in predictors])
    worker = ThreadPoolExecutor(1, "isoconv")

    async def work(call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(worker, call)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    app = FastAPI(
        title=f"isoconv serve: {task.info.title}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its pages take their scripts from elsewhere
        redoc_url=None,
        exception_handlers={RequestValidationError: _invalid, FloatingPointError: _not_finite},
    )
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.get("/health")
    async def health() -> Health:
        """Whether the server is there, and what it serves."""
        return Health(status="ok", version=__version__, task=task.info.title, networks=titles)

    @app.post("/predict", responses=_REFUSALS, response_model=list[_prediction(task)])  # type: ignore[misc]
    async def predict(
        files: Annotated[list[UploadFile], File(min_length=1)],
        rotations: Annotated[bool, Query(description="also turn each image and measure the agreement: slower")] = False,
    ) -> list[dict[str, Any]]:
        """Answer on image files, those of `isoconv predict` without npz, a row per image."""
        if len(files) > limits.files:
            raise HTTPException(413, f"{len(files)} files in a request, the limit is {limits.files}; send fewer")
        read = [(await work(lambda f=f: read_upload(f, predictors[:1], limits)))[0] for f in files]  # type: ignore[misc]
        names, images = [name for names, _ in read for name in names], torch.cat([images for _, images in read])
        notes: list[str] = []
        rows = await work(lambda: predictors[0].predict(names, images, rotations=rotations, onnote=notes.append))
        note = "; ".join(notes) or None
        masks = [{"mask": _mask_png(row["mask"])} if "mask" in row else {} for row in rows]
        return [{**row, "file": row["source"], "note": note, **mask} for row, mask in zip(rows, masks, strict=True)]

    @app.post(
        "/turn",
        responses={**_REFUSALS, 200: {"content": {"application/x-ndjson": {}}, "description": "JSON, a line per row"}},
        response_class=StreamingResponse,
    )
    async def turn_file(
        file: UploadFile,
        axis: Annotated[str, Form(description=f"about which a volume turns: {', '.join(AXES)}")] = AXES[0],
    ) -> StreamingResponse:
        """Turn an image in steps of 5 degrees. The first line names `networks`, `angles` and `readings`, which are the
        numbers of an answer; then for each angle a line tells what the networks make of it; a last line `detail` tells
        why there are not all of them."""
        known = AXES if task.info.dims == 3 else AXES[:1]
        if axis not in known:
            raise HTTPException(422, f"axis must be {' or '.join(known)}, got {axis!r}")
        read = await work(lambda: read_upload(file, predictors, limits))
        if (count := len(read[0][0])) != 1:
            raise HTTPException(422, f"{file.filename} holds {count} images, one can be turned; send it to /predict")
        batches = turn(predictors, [images for _, images in read], axis)
        readings = [{"title": reading.title, "unit": reading.unit} for reading in task.readings]
        head = {"file": file.filename, "networks": titles, "readings": readings, "angles": ANGLES}

        async def lines() -> AsyncIterator[str]:
            yield _line(head)
            try:
                while rows := await work(lambda: next(batches, None)):
                    yield "".join(map(_line, rows))
            except FloatingPointError as error:  # the status has been sent
                log.error("%s: %s", file.filename, error)
                yield _line({"detail": str(error)})

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    for path, kind, content in _page(predictors, titles, limits):
        app.add_api_route(path, _constant(content, kind), include_in_schema=False)
    return app


def _check(predictors: Sequence[Predictor]) -> Task:
    """What all networks are for. Each is run once: what they compile is compiled before the first request."""
    first, *others = predictors
    for other in others:
        for name in ("labels", "dims", "channels", "kind"):
            if (a := getattr(first.task.info, name)) != (b := getattr(other.task.info, name)):
                raise ValueError(
                    f"{first.run.path} and {other.run.path} cannot be compared: their {name} are {a} and {b}; "
                    "take runs of one data set"
                )
    for predictor in predictors:
        info = predictor.task.info
        shape = (1, info.channels, *(predictor.size,) * info.dims)
        predictor.predict(["grey"], torch.full(shape, 128, dtype=torch.uint8), rotations=False)
    return first.task


def _prediction(task: Task) -> type[BaseModel]:
    """What the network makes of an image: a row of `isoconv predict --json`, its file under the name it was sent by."""
    fields: dict[str, Any] = {
        "file": (str, ...),
        "index": (int | None, Field(description="place in a stack; null for a single image")),
        **{name: (kind, Field(description=text)) for name, (kind, text) in task.answer_fields.items()},
    }
    if task.answers_with_masks:
        labels = ", ".join(f"{number} {label}" for number, label in enumerate(task.info.labels))
        slices = "" if task.info.dims == 2 else "; the slices along the first axis, one below the other"
        fields["mask"] = str, Field(description=f"PNG as a data URI, of {labels} at the network's input size{slices}")
    agreement = Field(None, description=f"{task.agreement.title}, mean over rotations; null unless they are asked for")
    fields[task.agreement.key] = float | None, agreement
    fields["note"] = str | None, Field(None, description="why that agreement says nothing; null where nothing is known")
    return create_model("Prediction", __doc__=_prediction.__doc__, **fields)


def _mask_png(mask: np.ndarray) -> str:
    return png(mask.reshape(-1, mask.shape[-1]))


def _page(predictors: Sequence[Predictor], titles: Sequence[str], limits: Limits) -> list[tuple[str, str, str]]:
    """Paths, types and contents."""
    jinja2 = require("jinja2", extra="study")
    room, report = files("isoconv.serve"), files("isoconv.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(room.joinpath("page.html.jinja").read_text("utf-8")).render(
        task=predictors[0].task,
        colours=label_colours(len(predictors[0].task.readings)) if predictors[0].task.answers_with_masks else None,
        size=predictors[0].size,
        has_maps=any(shows_stages(predictor.model) for predictor in predictors),
        has_saliency=any(has_default_layer(predictor.model) for predictor in predictors),
        titles=titles,
        limits=limits,
        suffixes=SUFFIXES,
        angles=ANGLES,
        axes=AXES,
    )
    css = "\n".join(p.read_text("utf-8") for p in (report.joinpath("report.css"), room.joinpath("page.css")))
    return [
        ("/", "text/html", html),
        ("/page.css", "text/css", css),
        ("/page.js", "text/javascript", room.joinpath("page.js").read_text("utf-8")),
    ]


def _constant(content: str, kind: str) -> Callable[[], Any]:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

    async def endpoint() -> Response:
        return Response(content, media_type=kind, headers=headers)

    return endpoint


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


async def _invalid(_: Request, error: Any) -> JSONResponse:
    wrong = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
    return JSONResponse({"detail": f"the request is not as /openapi.json describes it ({without_objects(wrong)})"}, 422)


async def _not_finite(_: Request, error: Exception) -> JSONResponse:
    log.error("%s", error)
    return JSONResponse({"detail": str(error)}, 500)
