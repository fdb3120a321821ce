"""Make a run a network that comes with isoconv: `python benchmarks/ship.py DATA RUN [--examples N]`.

Copies what a prediction needs, and the scores, to `src/isoconv/models/trained/DATA/NETWORK`, with a model card that
names the source and licence of the images. `--examples` writes as many test images, each of another class, that the
network answers rightly; only where the licence allows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from isoconv.deploy.export import smallest_size
from isoconv.deploy.model_card import Usage, model_card
from isoconv.runs import RunDir

ROOM = Path(__file__).parents[1] / "src/isoconv/models/trained"
KEPT = ("config.json", "environment.json", "metrics.jsonl", "model.json", "model.safetensors", "results.json")
MOST = 2 * 2**20  # bytes of weights
SOURCES = {
    "pbc": (
        "Blood cells: Acevedo, Merino, Alferez, Molina, Boldu, Rodellar: A dataset of microscopic peripheral blood "
        "cell images for development of automatic recognition systems, Data in Brief 2020, "
        "[doi 10.17632/snkd93bnjr](https://doi.org/10.17632/snkd93bnjr), CC BY 4.0; resized to 28 pixels. The example "
        "images are of this set.",
        True,
    ),
    "plankton": ("Plankton: PlanktonSet 1.0, NOAA NCEI accession 0127422, open data; resized to 28 pixels.", False),
    "nuclei": ("Nuclei: BBBC038v1, Data Science Bowl 2018, CC0; resized to 64 pixels.", True),
    "cells": ("Cells: the synthetic set that isoconv draws itself (`isoconv data list`).", True),
}


def ship(data: str, source: Path, examples: int) -> None:
    run, (credit, may_show) = RunDir(source), SOURCES[data]
    folder = ROOM / data / run.model_info["model"]["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in KEPT:  # the data set goes by its name
        (folder / name).write_bytes((source / name).read_bytes().replace(run.config.data.encode(), data.encode()))
    edit(folder / "config.json", out=f"runs/{data}", data_root=None)
    edit(folder / "environment.json", data={})
    edit(folder / "model.json", task={**run.model_info["task"], "name": data, "title": data})
    if (size := (folder / "model.safetensors").stat().st_size) > MOST:
        raise SystemExit(f"the weights take {size:,} bytes, expected at most {MOST:,}: train a narrower network")
    shipped = RunDir(folder)
    usage = Usage(f"{data}/{folder.name}", "pretrained", smallest_size(shipped.load_model(), shipped.model_info))
    card = model_card(shipped, usage)
    (folder / "README.md").write_text(f"{card}\n## Images\n\n{credit}\n")
    if examples and may_show:
        show(run, folder / "examples", examples)
    print(folder, f"{size:,} bytes")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def show(run: RunDir, folder: Path, count: int) -> None:
    folder.mkdir()
    predictions = run.arrays("predictions.npz")
    labels = predictions["standard_labels"].flatten()
    right = predictions["standard_logits"][0].argmax(1) == labels  # upright
    images = np.load(run.config.data, allow_pickle=False)["test_images"]
    for number in np.linspace(0, labels.max(), count).round().astype(int):
        place = np.flatnonzero(right & (labels == number))[0]
        Image.fromarray(images[place]).save(folder / f"{run.task.info.labels[number]}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=SOURCES)
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=0)
    options = parser.parse_args()
    ship(options.data, options.run, options.examples)
