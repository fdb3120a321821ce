"""Model cards: what a trained network is for, how well it does, and how to run it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from isoconv import __version__
from isoconv.data import TASKS
from isoconv.data.vessels import VESSELS
from isoconv.evaluation.comparison import results_by
from isoconv.evaluation.protocols import DISTURBANCES
from isoconv.evaluation.segment_comparison import DICE, dice_results
from isoconv.runs import RunDir

__all__ = ["Usage", "logits_shape", "model_card"]

_RULES = {
    "multilabel": ("a sigmoid each", "each label whose probability exceeds 1/2", ".sigmoid()"),
    "multiclass": ("softmax", "the largest", ".softmax(1)"),
    "binary": ("softmax", "the larger", ".softmax(1)"),
    "ordinal": ("softmax", "the largest", ".softmax(1)"),
    "segmentation": ("softmax at each pixel", "the largest there", ".softmax(1)"),
}
_SCORES = {
    "accuracy upright": "upright",
    "accuracy rotated, mean": "rotated_mean",
    "accuracy rotated, worst": "rotated_worst",
    "accuracy at right angles": "right_angles",
    "accuracy flipped": "flips",
    "AUC upright": "upright_auc",
    "AUC rotated, mean": "rotated_auc",
    "same answer as upright": "consistency",
}
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

    Scores are those that ``isoconv evaluate`` or ``isoconv segment evaluate`` left in the run; without them the card
    says that there are none. Raises ValueError if they are out of date.
    """
    info = run.model_info
    task, model = info["task"], info["model"]
    images = "volumes" if task["dims"] == 3 else "images"
    does = f"Gives each pixel of {images} a label" if run.segments else f"Classifies {images}, {task['kind']}"
    sections = [
        f"# {model['name']} for {task['title']}",
        f"{does}. Written by isoconv {__version__}.",
        "## Input and output",
        _table(("", ""), _interface(info, usage)),
        "Labels, in the order of the logits:",
        "\n".join(f"{i}. {label}" for i, label in enumerate(task["labels"])),
        "## How to run it",
        f"```python\n{_code(usage, info)}```",
        _check(usage),
        "## Training",
        _training(run, info),
        *_all_scores(run),
        "## Limits",
        _limits(model, task),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def logits_shape(task: Mapping[str, Any]) -> str:
    """``"(N, 9)"``, or of a segmentation ``"(N, 3, H, W)"``."""
    return f"(N, {len(task['labels'])}{', ' + _axes(task) if task['kind'] == 'segmentation' else ''})"


def _axes(task: Mapping[str, Any]) -> str:
    return ", ".join("DHW"[-task["dims"] :])


def _interface(info: Mapping[str, Any], usage: Usage) -> list[tuple[str, str]]:
    task = info["task"]
    chance, rule, _ = _RULES[task["kind"]]
    size = "x".join([str(info["input_size"])] * task["dims"])
    others = "no other" if usage.smallest is None else f"others run from {usage.smallest} up, untested"
    steps = ["black outside of the inscribed disc (ball)"] * info["masked"] + ["(x - 0.5) / 0.5"]
    who = "yours to do, see below" if usage.format == "safetensors" else "done inside"
    return [
        ("input", f"`images`, float32 (N, {task['channels']}, {_axes(task)}), values from 0 to 1"),
        ("size", f"{size} pixels, as trained and tested; {others}"),
        ("preparation", f"{', then '.join(steps)}: {who}"),
        ("output", f"`logits`, float32 {logits_shape(task)}; probabilities by {chance}; decision: {rule}"),
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
    known = {**TASKS, **VESSELS}.get(config.data)
    options = ", ".join(f"{key}={value}" for key, value in info["model"].items() if key != "name")
    licence = f", licence {known.licence}" if known else ""
    rotated = "with" if config.rotate else "without"
    done, planned = len(run.metrics()), config.epochs
    epochs = f"{planned} epochs" if done == planned else f"{done} epochs ({planned} were planned)"
    return (
        f"Data: {task['title']}, size {config.size}{licence}. Network: {info['model']['name']} ({options}). Recipe "
        f"{config.recipe}, {rotated} random rotation, seed {config.seed}; of {epochs} the best on the "
        f"validation images, number {info['epoch'] + 1}."
    )


def _code(usage: Usage, info: Mapping[str, Any]) -> str:
    task, last = info["task"], _RULES[info["task"]["kind"]][2]
    shape = ", ".join(map(str, (1, task["channels"], *[info["input_size"]] * task["dims"])))
    mask = "images *= isoconv.symmetry.circular_mask(images.shape[2:])\n" if info["masked"] else ""
    torch_images = f"images = torch.rand({shape})  # yours, values from 0 to 1\n"
    if usage.format == "pt2":
        return (
            f'import torch\n\nmodel = torch.export.load("{usage.file}").module()\n{torch_images}'
            f"probabilities = model(images){last}\n"
        )
    if usage.format == "onnx":
        return (
            f'import numpy as np\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{usage.file}")\n'
            f"images = np.random.rand({shape}).astype(np.float32)  # yours, values from 0 to 1\n"
            '(logits,) = session.run(None, {"images": images})\n'
        )
    if usage.format == "safetensors":
        arguments = ", ".join(f"{key}={value!r}" for key, value in info["model"].items())
        return (
            "import isoconv\nimport torch\nfrom safetensors.torch import load_file\n\n"
            f"net = isoconv.fuse(isoconv.create_model({arguments})).eval()\n"
            f'net.load_state_dict(load_file("{usage.file}"))\n{torch_images}{mask}'
            f"probabilities = net((images - 0.5) / 0.5){last}\n"
        )
    return (
        f'import isoconv\nimport torch\n\nmodel = isoconv.from_pretrained("{usage.file}")\n{torch_images}'
        f"probabilities = model(images){last}\n"
    )


def _all_scores(run: RunDir) -> list[str]:
    try:
        if run.segments:
            return [_dice(dice_results(run))]
        return [_scores(protocol, results_by(run, protocol)) for protocol in run.results()]
    except FileNotFoundError:
        command = "segment evaluate" if run.segments else "evaluate"
        return [f"## Scores\n\nNone, it was not evaluated: `isoconv {command} {run.path.name}`."]


def _dice(result: Mapping[str, Any]) -> str:
    found = list(result["classes"])[1:]
    summaries = [result["summary"], *(result["classes"][label] for label in found)]
    scores = [
        (name, *(_score(summary[key], summary.get(f"{key}_ci")) for summary in summaries)) for name, key in DICE.items()
    ]
    positions = [
        (
            row["name"],
            _position(row),
            _score(row["dice"], row.get("dice_ci")),
            *(_score(row["classes"][label], row.get("classes_ci", {}).get(label)) for label in found),
        )
        for row in result["conditions"]
    ]
    what = (
        f"Protocol {result['protocol']} of `isoconv segment evaluate`: Dice inside the inscribed disc (ball), over the "
        f"pixels of all {result['data']['test_images']} test images together. The mean is that of all labels but the "
        "background."
    )
    heads = ("mean", *found)
    return "\n\n".join(
        ["## Scores", what, _table(("Dice, %", *heads), scores), _table(("position", "", *heads), positions)]
    )


def _scores(protocol: str, result: Mapping[str, Any]) -> str:
    summary, test = result["summary"], result["data"]["test_images"]
    scores = [(name, _score(summary.get(key), summary.get(f"{key}_ci"))) for name, key in _SCORES.items()]
    positions = [
        (
            row["name"],
            _position(row),
            _score(row["accuracy"], row["accuracy_ci"]),
            _score(row["balanced_accuracy"]),
            _score(row["auc"]),
            _score(row["consistency"]),
        )
        for row in result["conditions"]
    ]
    heads = ("position", "", "accuracy (95 %)", "balanced accuracy", "AUC", "same answer as upright")
    what = f"Protocol {protocol} of `isoconv evaluate`, {test} test images."
    return "\n\n".join([f"## Scores, protocol {protocol}", what, _table(("", "%"), scores), _table(heads, positions)])


def _position(row: Mapping[str, Any]) -> str:
    return _POSITIONS[row["group"]] + ("" if row["angle"] is None else f" by {row['angle']:.0f}°")


def _limits(model: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    family, *_ = model["name"].split("_")
    exact = "the cube's 48 rotations and reflections" if task["dims"] == 3 else "quarter turns and mirror images"
    turns = {"sre": exact, "d4": exact, "c4": "quarter turns"}.get(family)
    if task["kind"] == "segmentation":
        kept, lost = (
            "Its labels move with the image under",
            "a structure can get another label when the image is turned",
        )
    else:
        kept, lost = "Its answer is the same for an image and its", "its answer can change when an image is turned"
    if turns is None:
        symmetry = [f"- It is an ordinary network: {lost}."]
    elif model.get("downsample") == "strided":
        symmetry = [f"- Its kernels are isotropic, but its strides are not: {lost}."]
    elif family == "sre":
        symmetry = [
            f"- {kept} {turns}, to rounding, and nearly so for other rotations.",
            "- It cannot tell an image from its mirror image, nor how neighbouring structures are oriented to each "
            "other.",
        ]
    else:
        symmetry = [f"- {kept} {turns}, to rounding; otherwise {lost}."]
    return "\n".join(
        [
            *symmetry,
            f"- It was trained and tested on {task['title']} alone; on images from elsewhere nothing is known.",
            "- It is no medical device, and is not meant for diagnosis.",
        ]
    )


def _score(share: float | None, interval: Sequence[float] | None = None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f}" + ("" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
