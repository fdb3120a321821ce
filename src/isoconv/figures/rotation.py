"""Pictures of evaluated runs: the main score of the task against the angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, inference_mode

from isoconv.evaluation.comparison import labels_of
from isoconv.evaluation.measuring import first_test_image
from isoconv.evaluation.results import results_by
from isoconv.evaluation.saliency import has_default_layer
from isoconv.figures.clinical import clinical_curves
from isoconv.figures.curves import against_angle, curves_of
from isoconv.figures.look import save
from isoconv.figures.maps import feature_maps, kernels, shows_stages
from isoconv.figures.saliency import saliency_maps
from isoconv.runs import RunDir, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["rotation_curve", "save_all", "save_comparison"]


def rotation_curve(runs: Sequence[RunDir], protocol: str = "standard") -> Figure:
    """The main score of the task on the test images against the angle of rotation, a line per configuration.

    For one run the band is the 95 % interval of the bootstrap over test images, for several seeds one standard
    deviation over seeds. Of one run whose task has a score for each class, there is a line for each class but the
    background instead. Images: on a circle and along an axis. Volumes: along the axis only, rotations by the same angle
    about different axes averaged; the random rotations of the standard protocol are points.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: no run, runs of different kinds of work, or one that was not evaluated by the protocol.
    """
    if not runs:
        raise ValueError("a figure needs at least one run, got none")
    task = runs[0].task
    if others := {run.task.name for run in runs} - {task.name}:
        raise ValueError(f"a figure shows one kind of work, got {task.name} and {', '.join(others)}")
    results = [results_by(run, protocol) for run in runs]
    labels, tables = labels_of([run.config for run in runs]), [result["conditions"] for result in results]
    key = task.main.key
    if len(runs) == 1 and "classes" in tables[0][0]:
        labels = list(task.info.labels)[1:]
        tables = [
            [{**row, key: row["classes"][label], f"{key}_ci": row["classes_ci"][label]} for row in tables[0]]
            for label in labels
        ]
    kind, images = ("images", "disc") if task.info.dims == 2 else ("volumes", "ball")
    inside = f", inside the inscribed {images}" if results[0]["masked"] else ""
    title = f"{task.info.title}: {results[0]['data']['test_images']} test {kind}{inside}, protocol {protocol}"
    return against_angle(curves_of(labels, tables, key), task.main, title, task.info.dims, protocol)


def save_all(run: RunDir, protocol: str = "standard", image: Tensor | None = None) -> list[Path]:
    """Write ``figures/*.png`` of an evaluated run and return their paths.

    Args:
        image: (1, C, *spatial) in [0, 1] for the feature maps; None takes the first test image.
    """
    model = run.load_model()
    figures = {f"rotation_{run.task.main.key}_{protocol}": rotation_curve([run], protocol), "kernels": kernels(model)}
    result = results_by(run, protocol)
    curves = result.get("clinical", {"classes": {}})["classes"].values()
    if any(found["curves"]["upright"] for found in curves):
        title = f"{run.task.info.title}: {result['data']['test_images']} test images, protocol {protocol}"
        figures[f"clinical_{protocol}"] = clinical_curves(result["clinical"], title)
    if shows_stages(model):
        image = first_test_image(run) if image is None else image.cpu()
        figures["feature_maps"] = feature_maps({run.config.model: model}, image)
    if has_default_layer(model):
        image = first_test_image(run) if image is None else image.cpu()
        with inference_mode():
            output = run.task.explained(model(image))
        figures["saliency"] = saliency_maps({run.config.model: model}, image, output, run.task.info.labels[output])
    return _save(figures, run.path / "figures")


def save_comparison(runs: Sequence[RunDir], folder: Path, protocol: str = "standard") -> list[Path]:
    """Write the main score of evaluated runs against the angle, and the feature maps of one run per configuration,
    into ``folder``."""
    labels = labels_of([run.config for run in runs])
    first = dict(reversed(list(zip(labels, runs, strict=True))))
    models = {label: first[label].load_model() for label in dict.fromkeys(labels)}
    figures = {f"rotation_{runs[0].task.main.key}_{protocol}": rotation_curve(runs, protocol)}
    if all(map(shows_stages, models.values())):
        figures["feature_maps"] = feature_maps(models, first_test_image(runs[0]))
    return _save(figures, folder)


def _save(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        save(figure, paths[-1])
    return paths
