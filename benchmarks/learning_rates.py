"""The learning rate of each family of networks, chosen on validation images.

`python benchmarks/learning_rates.py [I/N]` trains every contestant of studies/directions.toml, half as long, once at
each rate on its first data set, and writes benchmarks/results/learning_rates.md. It resumes. I/N: every N-th training
from the I-th on, for several processes at once.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.study.plan import load_study
from isoconv.training import train

RATES = (1e-3, 3e-3, 1e-2)
RUNS = Path("build/learning_rates")
RESULTS = Path("benchmarks/results/learning_rates.md")
EPOCHS = 6


def configs() -> dict[str, list[TrainConfig]]:
    study = load_study("studies/directions.toml")
    cells = {cell.contestant: study.config(cell, RUNS) for cell in study.cells if cell.data == study.data[0]}
    return {
        name: [replace(config, lr=lr, epochs=EPOCHS, seed=0, threads=1, out=RUNS / f"{name}-{lr:g}") for lr in RATES]
        for name, config in cells.items()
        if name != "plain-rotate"  # the network is plain's
    }


def table() -> str:
    lines = [
        "# Learning rates",
        "",
        f"`python benchmarks/learning_rates.py`: {EPOCHS} epochs on the first data set of studies/directions.toml, "
        "seed 0. Accuracy on the validation images and their loss, means of the last two epochs.",
        "",
        f"| network | {' | '.join(f'{lr:g}' for lr in RATES)} |",
        f"|---|{'---|' * len(RATES)}",
    ]
    for name, trainings in configs().items():
        cells = []
        for config in trainings:
            last = RunDir(config.out).metrics()[-2:]
            accuracy, loss = (sum(line[key] for line in last) / 2 for key in ("val_acc", "val_loss"))
            cells.append(f"{100 * accuracy:.1f} %, {loss:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    first, step = map(int, sys.argv[1].split("/")) if len(sys.argv) > 1 else (1, 1)
    work = [config for trainings in configs().values() for config in trainings]
    for config in work[first - 1 :: step]:
        train(config, resume=config.out.exists(), wait=True)
    if all(config.out.exists() and len(RunDir(config.out).metrics()) == EPOCHS for config in work):
        RESULTS.write_text(table())
