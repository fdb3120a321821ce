"""Isotropic networks and their plain twins on three MedMNIST tasks, trained upright, tested turned.

    python benchmarks/real_data.py runs/local

Trains what is missing under the folder, continues what was stopped, evaluates by both protocols, and prints the tables.
The files breastmnist.npz, retinamnist.npz and adrenalmnist3d.npz are searched as `isoconv train` does. With --as-is
nothing is trained: a run that is not finished is listed as such. The tables go to benchmarks/results/real-data.md,
every figure with the configuration and the machine of each run to real-data.json beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoconv.comparison import compare, results_by
from isoconv.config import TrainConfig
from isoconv.evaluation import evaluate
from isoconv.protocols import PROTOCOLS
from isoconv.runs import RunDir
from isoconv.training import train

RESULTS = Path(__file__).parent / "results" / "real-data.md"
SEEDS = (0, 1)
DIMS = {"breastmnist": 2, "retinamnist": 2, "adrenalmnist3d": 3}
OPTIONS: dict[int, dict[str, Any]] = {2: {"width": 16}, 3: {"width": 8, "stem_stride": 2}}
COLUMNS = {
    "upright": "upright",
    "rotated mean": "rotated_mean",
    "worst angle": "rotated_worst",
    "right angles": "right_angles",
    "flips": "flips",
    "same answer": "consistency",
}


def configs(folder: Path, data: str) -> Iterator[TrainConfig]:
    suffix = "_3d" if DIMS[data] == 3 else ""
    for model in (f"sre_resnet18{suffix}", f"resnet18{suffix}"):
        for seed in SEEDS:
            out = folder / f"{data}-{model}-s{seed}"
            options = OPTIONS[DIMS[data]]
            yield TrainConfig(data, model, out, seed=seed, recipe="official", device="cpu", threads=1, **options)


def finished(config: TrainConfig) -> RunDir | None:
    try:
        run = RunDir(config.out)
    except FileNotFoundError:
        return None
    return run if len(run.metrics()) == config.epochs else None


def evaluated(run: RunDir) -> RunDir:
    for protocol in PROTOCOLS:
        try:
            results_by(run, protocol)
        except (FileNotFoundError, ValueError):
            evaluate(run, protocol)
    return run


def cell(group: dict[str, Any], key: str) -> str:
    sd = group[f"{key}_sd"]
    return f"{100 * group[key]:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the run directories are")
    parser.add_argument("--as-is", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    everything: dict[str, dict[str, Any]] = {}
    for data in DIMS:
        runs, missing = [], []
        for config in configs(arguments.folder, data):
            run = finished(config)
            if run is None and not arguments.as_is:
                run = train(config, resume=(config.out / "config.json").exists())
            if run is None:
                missing.append(config.out.name)
            else:
                runs.append(evaluated(run))
        provenance = [
            {
                "run": run.path.name,
                "config": {**run.config.to_json(), "out": run.path.name, "data_root": None},
                "environment": json.loads((run.path / "environment.json").read_text()),
            }
            for run in runs
        ]
        everything[data] = {"unfinished": missing, "provenance": provenance}
        for protocol in PROTOCOLS:
            if len(runs) > 1:
                everything[data][protocol] = compare(runs, protocol)
    for each in everything.values():
        for protocol in set(PROTOCOLS) & set(each):
            for row in each[protocol]["runs"]:
                row["run"] = Path(row["run"]).name
            for row in each[protocol]["pairs"]:
                row.update(a=Path(row["a"]).name, b=Path(row["b"]).name)
    RESULTS.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    with RESULTS.open("w") as file, contextlib.redirect_stdout(file):
        show(everything)


def show(everything: dict[str, dict[str, Any]]) -> None:
    print("# Three MedMNIST tasks, trained upright, tested turned\n\n`python benchmarks/real_data.py runs/local`.")
    print("Recipe official, 100 epochs, one CPU thread; width 16 in 2D, width 8 and a stem of stride 2 in 3D.")
    print("Times are those of a machine that did other work beside: they say little. Configurations: real-data.json.")
    for data, found in everything.items():
        print(f"\n## {data}")
        for name in found["unfinished"]:
            print(f"\n`{name}`: not finished, left out.")
        for protocol in PROTOCOLS:
            if protocol not in found:
                continue
            images = found[protocol]["data"]["test_images"]
            print(f"\nProtocol {protocol}, {images} test images; accuracy in %, mean ± deviation over seeds.\n")
            print("| network | seeds | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * (len(COLUMNS) + 1))
            for group in found[protocol]["groups"]:
                scores = " | ".join(cell(group, key) for key in COLUMNS.values())
                print(f"| {group['network']} | {len(group['seeds'])} | {scores} |")
        if "official" in found:
            print("\n| network | parameters | multiply-adds, per tap | per band | training |\n|---|---|---|---|---|")
            for g in found["official"]["groups"]:
                adds = " | ".join(f"{g[f'multiply_adds_{kind}'] / 1e6:.1f} M" for kind in ("dense", "banded"))
                print(f"| {g['network']} | {g['parameters']:,} | {adds} | {g['training_seconds'] / 60:.0f} min |")


if __name__ == "__main__":
    main()
