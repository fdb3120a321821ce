"""What was chosen on validation images: learning rates, the profile and norm of isotropic rings, orders.

`python benchmarks/choices.py [I/N]` trains networks of studies/directions.toml, half as long, and writes
benchmarks/results/choices.md. Test images are not touched. It resumes. I/N: every N-th training from the I-th on, for
several processes at once.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from isoconv.data import load
from isoconv.evaluation.measuring import measure
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.study.plan import load_study
from isoconv.training import train

RUNS = Path("build/choices")
RESULTS = Path("benchmarks/results/choices.md")
EPOCHS = 6
RATES = (1e-3, 3e-3, 1e-2)
SMALL = {"model": "sre_resnet18", "kernel_sizes": (5, 5, 5, 3), "lr": 1e-3}
RINGS = {
    f"{profile}, norm {norm}": {**SMALL, "profile": profile, "norm": norm}
    for profile, norm in (("hard", "none"), ("hard", "unit"), ("gaussian", "unit"))
}
CARRIED = {"model": "steerable_resnet18", "width": 12, "lr": 1e-2}
ORDERS = {
    "order 1": {**CARRIED, "orders": 1},
    "orders 1 and 2": CARRIED,
}

Trainings = list[tuple[str, str, TrainConfig]]


def rates() -> Trainings:
    """(network, learning rate) on the first data set, one seed; the other plain networks take that of plain."""
    study = load_study("studies/directions.toml")
    cells = [cell for cell in study.cells if cell.data == study.data[0] and cell.seed == 0]
    return [
        (cell.contestant, f"{lr:g}", trained(study.config(cell, RUNS), f"{cell.contestant}-{lr:g}", lr=lr))
        for cell in cells
        if cell.contestant not in ("plain-rotate", "plain-small", "plain-wide")
        for lr in RATES
    ]


def variants(options: dict[str, dict[str, object]], seeds: int) -> Trainings:
    """(variant, data set) on all data sets."""
    study = load_study("studies/directions.toml")
    found = []
    for cell in study.cells:
        if cell.contestant == "plain" and cell.seed < seeds:
            for name, chosen in options.items():
                folder = f"{Path(cell.data).stem}-{name.replace(', ', '-').replace(' ', '_')}-s{cell.seed}"
                found.append((name, Path(cell.data).stem, trained(study.config(cell, RUNS), folder, **chosen)))
    return found


def trained(config: TrainConfig, folder: str, **options: object) -> TrainConfig:
    return replace(config, epochs=EPOCHS, threads=1, out=RUNS / folder, **options)  # type: ignore[arg-type]


def finish(config: TrainConfig) -> None:
    """Keep the scores on the validation images, as an evaluation finds them on test images."""
    if not (config.out.exists() and len(RunDir(config.out).metrics()) == EPOCHS):
        train(config, resume=config.out.exists(), wait=True)
    kept = config.out / "validation.json"
    if not kept.exists():
        run = RunDir(config.out)
        data = load(run.config.data, size=run.config.size, root=None, task=run.config.task)
        torch.set_num_threads(1)
        scores, *_ = measure(
            run.load_model(), run.task, data.val, "standard", masked=True, size=run.model_info["input_size"],
            batch_size=100, device=torch.device("cpu"),
        )  # fmt: skip
        kept.write_text(json.dumps(scores["summary"]))


def table(title: str, trainings: Trainings) -> list[str]:
    columns = list(dict.fromkeys(column for _, column, _ in trainings))
    lines = ["", f"## {title}", "", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in dict.fromkeys(row for row, _, _ in trainings):
        cells = []
        for column in columns:
            of = [config.out / "validation.json" for *names, config in trainings if names == [row, column]]
            kept = [json.loads(path.read_text()) for path in of if path.exists()]
            keys = ("upright", "rotated_mean", "consistency")
            cells.append(
                " / ".join(f"{100 * mean(scores[key] for scores in kept):.1f}" for key in keys) + f" ({len(kept)})"
                if kept
                else ""
            )
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def experiments() -> Iterator[tuple[str, Trainings]]:
    yield "Learning rates, blood cells, one seed", rates()
    yield "Rings of isotropic networks, kernels 5, 5, 5, 3, rate 0.001", variants(RINGS, 3)
    yield "Orders of carried networks of width 12, one seed", variants(ORDERS, 1)


def write() -> None:
    text = [
        "# Choices made on validation images",
        "",
        f"`python benchmarks/choices.py`: networks of `studies/directions.toml`, {EPOCHS} epochs, 400 validation "
        "images, bfloat16 (the rates of plain, sre and the two lower ones of isotropic: float32).",
        "Accuracy upright / mean over 36 angles / share of the same answers, in %, means over seeds (their number).",
        "The rates and the orders were chosen while recipe modern shifted training images by whole pixels.",
    ]
    for title, trainings in experiments():
        text += table(title, trainings)
    RESULTS.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("share", nargs="?", default="1/1")
    first, step = map(int, parser.parse_args().share.split("/"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = [config for _, trainings in experiments() for _, _, config in trainings]
    for config in work[first - 1 :: step]:
        finish(config)
    write()
