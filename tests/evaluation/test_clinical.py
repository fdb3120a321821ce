"""Thresholds and temperatures: chosen on validation images, shown wherever scores are, and absent from old results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_stat_scores

from isoconv.cli.main import main
from isoconv.data import load
from isoconv.deploy.model_card import Usage, model_card
from isoconv.evaluation import compare, evaluate, load_predictions
from isoconv.evaluation.results import results_by
from isoconv.runs import RunDir
from isoconv.symmetry import circular_mask
from isoconv.tasks.metrics import margins

Evaluated = Callable[[str], RunDir]


def test_the_threshold_is_chosen_on_validation_images(evaluated: Evaluated) -> None:
    """By hand: Youden's index of every cut between validation images, masked as the protocol has it."""
    run = evaluated("sre")
    entry = evaluate(run, threshold="youden")["clinical"]
    val = load(run.config.data, size=16).val
    images = val.images.float() / 255 * circular_mask((16, 16))
    with torch.inference_mode():
        ranked = margins("multiclass", run.load_model()(images))
    assert entry["validation_images"] == len(val)
    for c, found in enumerate(entry["classes"].values()):
        mine = val.labels == c
        points = ranked[:, c].sort().values
        between = ((points[1:] + points[:-1]) / 2).tolist()
        best = max(((ranked[mine, c] >= t).double().mean() - (ranked[~mine, c] >= t).double().mean()) for t in between)
        t = found["threshold"]
        chosen = (ranked[mine, c] >= t).double().mean() - (ranked[~mine, c] >= t).double().mean()
        assert chosen == pytest.approx(best.item(), abs=1e-6)


def test_each_angle_has_its_scores(evaluated: Evaluated) -> None:
    run = evaluated("sre")
    entry, arrays = run.results()["standard"], load_predictions(run)
    logits, labels = (torch.from_numpy(arrays[f"standard_{name}"]) for name in ("logits", "labels"))
    for row, each in zip(entry["conditions"], logits, strict=True):
        decided = torch.nn.functional.one_hot(labels) * 0 + (each.double().softmax(-1) >= 0.5)
        truth = torch.nn.functional.one_hot(labels)
        for c in range(each.shape[1]):
            tp, fp, tn, fn, _ = multiclass_stat_scores(decided[:, c], truth[:, c], 2, average=None)[1].double()
            expected = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]
            got = [row[name][c] for name in ("sensitivity", "specificity", "ppv", "npv")]
            assert [np.nan if value is None else value for value in got] == pytest.approx(
                [value.item() for value in expected], nan_ok=True
            )
    turned = [row["specificity"][0] for row in entry["conditions"] if row["group"] == "rotation"]
    first = next(iter(entry["clinical"]["classes"].values()))
    assert first["rotated"]["specificity"] == pytest.approx(np.mean(turned))


def test_wherever_scores_are_shown(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run, other = evaluated("sre"), evaluated("plain")
    assert main(["evaluate", str(run.path), "--threshold", "sensitivity=0.9"]) == 0
    out, err = capsys.readouterr()
    assert "NPV" in out
    assert "rule sensitivity=0.9" in err
    assert (run.path / "figures" / "clinical_standard.png").exists()
    assert main(["compare", str(run.path), str(other.path), "--protocol", "standard"]) == 0
    assert "sensitivity=0.9" in capsys.readouterr().out
    assert "rule sensitivity=0.9" in model_card(run, Usage("net.pt2", "pt2", None))


def test_old_results_have_none_and_are_still_read(evaluated: Evaluated) -> None:
    runs = evaluated("sre"), evaluated("plain")
    for run in runs:
        results = run.results()
        for entry in results.values():
            del entry["clinical"]
            names = ("sensitivity", "specificity", "ppv", "npv", "average_precision", "calibration_error")
            entry["conditions"] = [
                {k: v for k, v in row.items() if not k.startswith(names)} for row in entry["conditions"]
            ]
        (run.path / "results.json").write_text(json.dumps(results))
        assert "clinical" not in results_by(run, "standard")
        assert "Each class against the rest" not in model_card(run, Usage("net.pt2", "pt2", None))
    assert compare(runs, "standard")["clinical"] == {}


@pytest.mark.parametrize("name", ["masks/sre"])
def test_other_tasks_refuse_a_threshold_before_the_work(evaluated: Evaluated, name: str) -> None:
    run = evaluated(name)
    before = Path(run.path / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"a threshold is for classification, .* is for segmentation; leave it out"):
        evaluate(run, threshold="youden")
    assert (run.path / "results.json").read_bytes() == before
