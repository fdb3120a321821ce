"""Small training sets of real images, drawn from larger ones: the data of studies/directions.toml.

`python benchmarks/real_sets.py FOLDER` takes `pbc_blood_28.npz` (blood cells, Acevedo et al. 2020) and
`plankton20_64.npz` (PlanktonSet 1.0) from anywhere in FOLDER and writes `build/real/pbc.npz` and
`build/real/plankton.npz`: 2,000 images for training, 400 for validation and 500 for tests, drawn without regard to
their labels, always the same ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

SETS = {"pbc": "pbc_blood_28.npz", "plankton": "plankton20_64.npz"}
COUNTS = {"train": 2000, "val": 400, "test": 500}
OUT = Path("build/real")


def draw(source: Path, target: Path) -> None:
    rng = np.random.default_rng(0)
    with np.load(source, allow_pickle=False) as archive:
        kept = {"classes": archive["classes"]}
        for split, count in COUNTS.items():
            rows = np.sort(rng.permutation(len(archive[f"{split}_labels"]))[:count])
            for what in ("images", "labels"):
                kept[f"{split}_{what}"] = archive[f"{split}_{what}"][rows]
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **kept)
    print(target, {name: array.shape for name, array in kept.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, file in SETS.items():
        (source,) = folder.rglob(file)
        draw(source, OUT / f"{name}.npz")
