"""Model cards: what a trained network is for, how well it does, and how to run it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from isoconv._checks import count_of
from isoconv._text import code_span, markdown
from isoconv._version import __version__
from isoconv.data import TASKS
from isoconv.evaluation.protocols import DISTURBANCES
from isoconv.evaluation.results import results_by
from isoconv.models import model_config, model_info
from isoconv.runs import OnImages, RunDir
from isoconv.symmetry import GridGroup
from isoconv.tasks import Score, Task
from isoconv.tasks.clinical import shown, told

__all__ = ["OUTPUTS", "Usage", "minimal_card", "model_card"]

OUTPUTS = "logits"
"""What exported networks call their outputs."""

_POSITIONS = {
    "rotation": "rotated",
    "cube": "cube rotated onto itself,",
    "flip": "flipped",
    "unmasked": "upright, corners visible",
    **{group: f"rotated and {group}," for group in DISTURBANCES},
}


class Usage(NamedTuple):
    """How a network comes: its file, its format (of :mod:`isoconv.deploy.export`, or ``"pretrained"`` for a folder),
    the smallest image it takes (None: one size only), and the largest difference found between it and the network."""

    file: str
    format: str
    smallest: int | None
    difference: float | None = None


def model_card(run: RunDir, usage: Usage) -> str:
    """The card of the best network of a run, Markdown: task, labels, input, how to run it, protocol and scores in every
    position, limits.

    Scores are those that ``isoconv evaluate`` left in the run; without them the card says that there are none. Raises
    ValueError if they are out of date.
    """
    info, task = run.model_info, run.task
    does = task.wording.does.format(images="volumes" if task.info.dims == 3 else "images")
    sections = [
        f"# {info['model']['name']} for {markdown(task.info.title)}",
        f"{does}. Written by isoconv {__version__}.",
        "## Input and output",
        _table(("", ""), _interface(task, info, usage)),
        "Outputs, in their order:",
        "\n".join(f"{i}. {markdown(label)}" for i, label in enumerate(task.info.labels)),
        "## How to run it",
        f"```python\n{_code(task, usage, info)}```",
        _check(usage),
        "## Training",
        _training(run, info),
        *_all_scores(run),
        "## Limits",
        _limits(info["model"], task),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def minimal_card(net: nn.Module, folder: str) -> str:
    """The card of a network of which only is known how it was built, Markdown: that, and how to load it."""
    inner: Any = net.net if isinstance(net, OnImages) else net
    arguments = model_config(inner)
    kind = model_info(arguments["name"])
    group, axes = kind.symmetry_with(arguments), ", ".join("DHW"[-kind.dims :])
    values = "from 0 to 1" if isinstance(net, OnImages) else "as they were in its training"
    symmetry = "none" if group is GridGroup.NONE else f"{group.words(kind.dims)}, to rounding"
    facts = [
        ("network", ", ".join(f"{key}={value}" for key, value in arguments.items())),
        ("input", f"`images`, (N, {inner.in_channels}, {axes}), values {values}"),
        ("symmetry kept exactly", symmetry),
    ]
    sections = [
        f"# {arguments['name']}",
        f"Written by isoconv {__version__}.",
        _table(("", ""), facts),
        "## How to run it",
        f"```python\nimport isoconv\n\nmodel = isoconv.from_pretrained({folder!r})\n```",
        "## What is not known here",
        "Task, labels, data, scores and limits. Write them here before others use it.",
    ]
    return "\n\n".join(sections) + "\n"


def _interface(task: Task, info: Mapping[str, Any], usage: Usage) -> list[tuple[str, str]]:
    facts = task.info
    axes = ", ".join("DHW"[-facts.dims :])
    size = "x".join([str(info["input_size"])] * facts.dims)
    others = "no other" if usage.smallest is None else f"others run from {usage.smallest} up, untested"
    steps = ["black outside of the inscribed disc (ball)"] * info["masked"] + ["(x - 0.5) / 0.5"]
    steps += ["outputs * scale + shift"] * (info["outputs"] is not None)
    who = "yours to do, see below" if usage.format == "safetensors" else "done inside"
    return [
        ("input", f"`images`, float32 (N, {facts.channels}, {axes}), values from 0 to 1"),
        ("size", f"{size} pixels, as trained and tested; {others}"),
        ("preparation", f"{', then '.join(steps)}: {who}"),
        ("output", f"`{OUTPUTS}`, float32 {task.output_shape}; {task.wording.reading}"),
    ]


def _check(usage: Usage) -> str:
    if usage.difference is None:
        return ""
    sizes = "batch and image sizes" if usage.smallest else "batch sizes"
    return (
        f"Checked against the network in PyTorch at several {sizes}: logits differ by {usage.difference:.1g} at most."
    )


def _training(run: RunDir, info: Mapping[str, Any]) -> str:
    config, task = run.config, info["task"]
    known = TASKS.get(config.data)
    options = ", ".join(f"{key}={value}" for key, value in info["model"].items() if key != "name")
    licence = f", licence {known.licence}" if known else ""
    rotated = "with" if config.rotate else "without"
    done, planned = len(run.metrics()), config.epochs
    epochs = count_of(done, "epoch") + (f" ({planned} planned)" if done != planned else "")
    return (
        f"Data: {markdown(task['title'])}, size {config.size}{licence}. Network: {info['model']['name']} ({options}). "
        f"Recipe {config.recipe}, {rotated} random rotation, seed {config.seed}; of {epochs} the best on the "
        f"validation images, number {info['epoch'] + 1}."
    )


def _code(task: Task, usage: Usage, info: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, (1, task.info.channels, *[info["input_size"]] * task.info.dims)))
    mask = "images *= isoconv.symmetry.circular_mask(images.shape[2:])\n" if info["masked"] else ""
    torch_images = f"images = torch.rand({shape})  # yours, values from 0 to 1\n"

    def read(outputs: str) -> str:
        return task.wording.code.format(outputs=outputs) + "\n"

    if usage.format == "pt2":
        return f"import torch\n\nmodel = torch.export.load({usage.file!r}).module()\n{torch_images}" + read(
            "model(images)"
        )
    if usage.format == "onnx":
        return (
            f"import numpy as np\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession({usage.file!r})\n"
            f"images = np.random.rand({shape}).astype(np.float32)  # yours, values from 0 to 1\n"
            f'({OUTPUTS},) = session.run(None, {{"images": images}})\n'
        )
    if usage.format == "safetensors":
        arguments = ", ".join(f"{key}={value!r}" for key, value in info["model"].items())
        scaled = ""
        if info["outputs"] is not None:
            scale, shift = (f"torch.tensor({info['outputs'][name]})" for name in ("scale", "shift"))
            scaled = f" * {scale} + {shift}"
        return (
            "import isoconv\nimport torch\nfrom safetensors.torch import load_file\n\n"
            f"net = isoconv.fuse(isoconv.create_model({arguments})).eval()\n"
            f"net.load_state_dict(load_file({usage.file!r}))\n{torch_images}{mask}"
            + read(f"(net((images - 0.5) / 0.5){scaled})")
        )
    return f"import isoconv\nimport torch\n\nmodel = isoconv.from_pretrained({usage.file!r})\n{torch_images}" + read(
        "model(images)"
    )


def _all_scores(run: RunDir) -> list[str]:
    try:
        return [_scores(run.task, protocol, results_by(run, protocol)) for protocol in run.results()]
    except FileNotFoundError:
        command = f"isoconv evaluate {shlex.quote(run.path.name)}"
        return [f"## Scores\n\nNone, it was not evaluated: {code_span(command)}."]


def _scores(task: Task, protocol: str, result: Mapping[str, Any]) -> str:
    summary, test = result["summary"], result["data"]["test_images"]
    scores = [(score.heading, _score(score, summary)) for score in task.scores]
    columns = [task.main, *task.others, task.agreement]
    rows = [(row["name"], _position(row), *(_score(score, row) for score in columns)) for row in result["conditions"]]
    heads = ("position", "", *(score.heading for score in columns))
    inside = ", inside the inscribed disc (ball)" if result["masked"] else ""
    parts = [
        f"## Scores, protocol {protocol}",
        f"Protocol {protocol} of `isoconv evaluate`, {test} test images{inside}; in brackets 95 % intervals.",
        _table(("", ""), scores),
    ]
    if "classes" in result:
        each = [
            (markdown(label), *(_score(score, found) for score in task.of_main))
            for label, found in result["classes"].items()
        ]
        parts.append(_table(("label", *(score.heading for score in task.of_main)), each))
    if "clinical" in result:
        table = shown(result["clinical"])
        rows_of_table = [(markdown(label), *cells) for label, *cells in (row.values() for row in table)]
        parts += [_table(tuple(table[0]), rows_of_table), told(result["clinical"])]
    notes = [f"- {markdown(note)}" for note in result["notes"]]
    return "\n\n".join([*parts, _table(heads, rows), *(["\n".join(notes)] if notes else [])])


def _score(score: Score, found: Mapping[str, Any]) -> str:
    value, ends = found.get(score.key), found.get(f"{score.key}_ci")
    return score.number(value) + ("" if ends is None else f" ({score.number(ends[0])} to {score.number(ends[1])})")


def _position(row: Mapping[str, Any]) -> str:
    return _POSITIONS[row["group"]] + ("" if row["angle"] is None else f" by {row['angle']:.0f}°")


def _limits(model: Mapping[str, Any], task: Task) -> str:
    dims, kept, title = task.info.dims, task.wording.kept, markdown(task.info.title)
    group = model_info(model["name"]).symmetry_with(model)
    if group is GridGroup.NONE:
        symmetry = [f"- It is not built to be symmetric: {task.wording.lost}."]
    else:
        symmetry = [f"- {kept} {group.words(dims)}, to rounding; at other angles it was measured, see above."]
        if group is GridGroup.FULL:
            symmetry.append("- It cannot tell an image from its mirror image.")
    return "\n".join(
        [
            *symmetry,
            f"- It was trained and tested on {title} alone; on images from elsewhere nothing is known.",
            "- It is not a medical device, and is not meant for diagnosis.",
        ]
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
