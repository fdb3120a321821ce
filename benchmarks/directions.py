"""What directions give on real images: the table of studies/directions.toml and studies/directions-medmnist.toml.

`python benchmarks/directions.py` reads the runs of both studies, keeps under benchmarks/results/directions/ what they
found (config, metrics, results, and the logits of the test images in float16, of images turned by multiples of 30
degrees) and writes benchmarks/results/directions.md from that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from isoconv.study.plan import Study, load_study

STUDIES = (Path("studies/directions.toml"), Path("studies/directions-medmnist.toml"))
RESULTS = Path("benchmarks/results/directions")
SCORES = {
    "upright": "upright",
    "turned, mean": "rotated_mean",
    "worst": "rotated_worst",
    "same answer": "consistency",
    "AUC upright": "upright_auc",
    "AUC turned": "rotated_auc",
}
NOTE = (
    "In %, mean ± deviation over seeds. Change of the logits: root mean square between an image and itself turned by "
    "10 to 40 degrees to either side (a volume: by all random rotations), over the spread of the upright "
    "logits between images. Training: seconds of one CPU core that other work shared, bfloat16."
)


def keep(run: Path, kept: Path) -> None:
    """A run's figures without its weights, and without the folders of this machine."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("environment.json", "metrics.jsonl"):
        shutil.copy(run / name, kept)
    config = json.loads((run / "config.json").read_text())
    config |= {"data": config["data"].removeprefix(f"{Path.cwd()}/"), "data_root": None}
    (kept / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    result = json.loads((run / "results.json").read_text())["standard"]
    with np.load(run / "predictions.npz", allow_pickle=False) as archive:
        logits, labels = archive["standard_logits"], archive["standard_labels"]
    positions = result["conditions"]
    result["data"]["name"] = config["data"]
    result["change"] = change(logits, positions)
    (kept / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    chosen = [i for i, p in enumerate(positions) if of_volumes(positions) or sparse(p)]
    names = np.array([positions[i]["name"] for i in chosen])
    np.savez_compressed(
        kept / "logits.npz", logits=logits[chosen].astype(np.float16), labels=labels.astype(np.uint8), positions=names
    )


def of_volumes(positions: Sequence[Mapping[str, Any]]) -> bool:
    return any(p["group"] == "cube" for p in positions)


def sparse(position: Mapping[str, Any]) -> bool:
    return position["group"] == "rotation" and position["angle"] % 30 == 0


def change(logits: np.ndarray, positions: Sequence[Mapping[str, Any]]) -> float:
    """Of the logits under free rotations, see :data:`NOTE`."""
    volumes = of_volumes(positions)
    turned = [
        i
        for i, p in enumerate(positions)
        if i and p["group"] == "rotation" and (volumes or 10 <= min(p["angle"], 360 - p["angle"]) <= 40)
    ]
    moved = logits[turned].astype(float) - logits[0]
    return float(np.sqrt((moved**2).mean() / (logits[0].astype(float).std(0) ** 2).mean()))


def rows(study: Study) -> Iterator[str]:
    for data in study.data:
        stem = Path(data).stem
        yield f"| **{stem}** |{' |' * (len(SCORES) + 5)}"
        for contestant in study.contestants:
            found = [
                json.loads(path.read_text())
                for path in sorted(RESULTS.glob(f"{stem}-{contestant.name}-s[0-9]/results.json"))
            ]
            if not found:
                continue
            cost = found[0]["cost"]
            cells = [spread([100 * each["summary"][key] for each in found]) for key in SCORES.values()]
            cells += [
                spread([each["change"] for each in found], 2),
                f"{cost['parameters']:,}",
                f"{cost['multiply_adds_dense'] / 1e6:.0f} M",
                f"{mean(each['cost']['training_seconds'] for each in found):.0f}",
            ]
            yield f"| {contestant.title} | {len(found)} | {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int = 1) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def main() -> None:
    studies = [load_study(path) for path in STUDIES]
    for study in studies:
        for cell in study.cells:
            run = Path("runs") / study.name / cell.name
            if (run / "results.json").exists():
                keep(run, RESULTS / cell.name)
    heads = ["", "seeds", *SCORES, "change of the logits", "weights", "multiply-adds", "training, s"]
    lines = [
        "# Directions on real images",
        "",
        "`python benchmarks/directions.py`, from the runs of `studies/directions.toml` and "
        "`studies/directions-medmnist.toml`. All trained upright by recipe modern, but for those trained on rotated "
        "images; the epoch and the learning rates were chosen on validation images ([choices](choices.md)).",
        NOTE,
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(row for study in studies for row in rows(study)),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
