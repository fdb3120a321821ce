"""Runs side by side: seeds taken together, paired tests on the same images, and nothing compared that cannot be."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from isoconv.evaluation.comparison import compare, labels_of
from isoconv.evaluation.results import load_predictions, results_by
from isoconv.runs import RunDir, write_json
from isoconv.runs.config import TrainConfig
from isoconv.tasks.dice import foreground, pooled
from isoconv.tasks.metrics import holm

Evaluated = Callable[[str], RunDir]


def edit(run: RunDir, name: str, change: Callable[[dict], object]) -> None:
    """Change a JSON file of a run in place."""
    values = json.loads((run.path / name).read_text())
    change(values)
    (run.path / name).write_text(json.dumps(values))


def edit_arrays(run: RunDir, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change arrays of the standard protocol in place."""
    arrays = load_predictions(run)
    np.savez(run.path / "predictions.npz", **arrays | {n: change(arrays[n]) for n, change in changes.items()})


NAMES = ("sre", "plain", "plain1")
LABELS = {
    "": ["sre_resnet18 kernel_sizes=5,5,3,3", "resnet18"],
    "masks/": ["sre_unet kernel_sizes=5,3,3,3 engine=reference", "unet"],
}


@pytest.fixture(params=LABELS, ids=["classification", "segmentation"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the runs, as they are called."""
    return request.param


@pytest.fixture
def three(kind: str, evaluated: Evaluated) -> list[RunDir]:
    """One isotropic run and two seeds of the plain network."""
    return [evaluated(f"{kind}{name}") for name in NAMES]


@pytest.fixture
def three_that_classify(evaluated: Evaluated) -> list[RunDir]:
    return [evaluated(name) for name in NAMES]


def test_a_row_per_run_with_its_scores_and_costs(three: list[RunDir]) -> None:
    result, task = compare(three, "official"), three[0].task
    assert (result["task"], result["protocol"]) == (task.name, "official")
    assert result["data"] == three[0].results()["official"]["data"]
    assert result["notes"] == {str(run.path): n for run in three if (n := run.results()["official"]["notes"])}
    assert [score.key for score in task.scores if score.key not in result["runs"][0]] == []
    for row, run in zip(result["runs"], three, strict=True):
        entry = run.results()["official"]
        known = {**entry["summary"], **entry["cost"]}
        assert row["run"] == str(run.path)
        assert row["seed"] == run.config.seed
        assert {
            name: known[name] for name in row if name not in ("run", "network", "seed", "fold")
        }.items() <= row.items()
    assert len({tuple(row) for row in result["runs"]}) == 1


def test_seeds_of_a_network_are_taken_together(kind: str, three: list[RunDir]) -> None:
    result = compare(three)
    sre, plain = result["groups"]
    assert [sre["network"], plain["network"]] == LABELS[kind]
    assert (sre["seeds"], plain["seeds"]) == ([0], [0, 1])
    values = [row["rotated_mean"] for row in result["runs"][1:]]
    assert plain["rotated_mean"] == pytest.approx(mean(values))
    assert plain["rotated_mean_sd"] == pytest.approx(stdev(values))
    assert sre["rotated_mean_sd"] is None
    assert sre["parameters"] == result["runs"][0]["parameters"]
    assert set(sre) == set(plain)


def test_pairs_are_those_of_different_networks(three: list[RunDir]) -> None:
    pairs = compare(three)["pairs"]
    sre, plain, plain1 = (str(run.path) for run in three)
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(sre, plain), (sre, plain1)]
    tests = [key for key in pairs[0] if key.endswith("_p")]
    assert {"upright_p", "rotated_mean_p"} <= set(tests)
    for test in tests:
        assert [pair[f"{test}_holm"] for pair in pairs] == holm([pair[test] for pair in pairs])


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_paired_tests_by_counting(three_that_classify: list[RunDir], protocol: str) -> None:
    (pair, _) = compare(three_that_classify, protocol)["pairs"]
    right = []
    for run in three_that_classify[:2]:
        arrays = load_predictions(run)
        rotated = [i for i, name in enumerate(arrays[f"{protocol}_conditions"]) if name.startswith("rot")]
        right.append(arrays[f"{protocol}_logits"][rotated].argmax(-1) == arrays[f"{protocol}_labels"])
    for name, a, b in (("upright", *(r[0] for r in right)), ("always_right", *(r.all(0) for r in right))):
        only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
        n = only_a + only_b
        tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
        assert (pair[f"{name}_only_a"], pair[f"{name}_only_b"]) == (only_a, only_b)
        assert pair[f"{name}_p"] == pytest.approx(min(1, 2 * tail))
    difference = right[0].mean() - right[1].mean()
    assert pair["rotated_mean_difference"] == pytest.approx(difference, abs=1e-4)  # official: rounded per angle
    low, high = pair["rotated_mean_difference_ci"]
    assert low <= difference <= high


def test_pairs_of_masks_by_counting(evaluated: Evaluated) -> None:
    three = [evaluated(f"masks/{name}") for name in NAMES]
    (pair, _) = compare(three)["pairs"]
    counts = [torch.from_numpy(load_predictions(run)["standard_counts"])[..., :3] for run in three[:2]]
    a, b = (foreground(pooled(each)) for each in counts)
    for name, difference in (("upright", a[0] - b[0]), ("rotated_mean", a[:36].mean() - b[:36].mean())):
        assert pair[f"{name}_difference"] == pytest.approx(difference.item())
        low, high = pair[f"{name}_difference_ci"]
        assert low <= difference <= high
        assert 2 / 2**4 * 0.9 < pair[f"{name}_p"] <= 1  # of 4 images there are 16 ways to swap them


def test_networks_that_answer_alike_do_not_differ(three: list[RunDir]) -> None:
    sre, plain, _ = three
    for name in ("predictions.npz", "results.json"):
        shutil.copy(sre.path / name, plain.path / name)
    write_json(plain.path / "model.json", {**plain.model_info, "epoch": sre.model_info["epoch"]})
    (pair,) = compare([sre, plain])["pairs"]
    assert pair["upright_difference"] == pair["rotated_mean_difference"] == 0
    assert pair["rotated_mean_difference_ci"] == [0, 0]
    assert {value for key, value in pair.items() if key.endswith(("_p", "_p_holm"))} == {1}


def test_results_with_another_mask_than_the_network_has_are_out_of_date(three_that_classify: list[RunDir]) -> None:
    run = three_that_classify[0]
    assert results_by(run, "disturbed")["masked"] is True
    edit(run, "model.json", lambda info: info.update(masked=False))
    for protocol in ("standard", "official"):
        results_by(run, protocol)
    expected = (
        f"{run.path} was evaluated by protocol 'disturbed' on masked images, its network was trained on whole ones; "
        f"do it again: isoconv evaluate {run.path} --protocol disturbed"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        results_by(run, "disturbed")


def test_first_common_protocol_is_taken(three: list[RunDir]) -> None:
    assert compare(three)["protocol"] == "standard"
    edit(three[1], "results.json", lambda results: results.pop("standard"))
    assert compare(three)["protocol"] == "official"
    edit(three[0], "results.json", lambda results: [results.pop(name) for name in ("official", "disturbed")])
    with pytest.raises(ValueError, match=r"no common protocol \(.*sre: standard; .*plain: official.*; .*the same one"):
        compare(three)


def test_volumes(evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("volumes")
    other = RunDir(shutil.copytree(run.path, tmp_path / "wider"))
    edit(other, "config.json", lambda config: config.update(width=8))
    result = compare([run, other.path])
    assert [group["network"] for group in result["groups"]] == ["sre_resnet18_3d width=2", "sre_resnet18_3d width=8"]
    assert result["pairs"][0]["upright_p"] == 1
    assert result["pairs"][0]["rotated_mean_difference_ci"] == [0, 0]
    json.dumps(result, allow_nan=False)


def test_labels_tell_what_differs_and_is_not_the_default() -> None:
    base = TrainConfig("cells", "resnet18", Path("a"))
    assert labels_of([base, replace(base, seed=1, out=Path("b"), device="cpu", threads=2)]) == ["resnet18", "resnet18"]
    assert labels_of([base, replace(base, width=8)]) == ["resnet18", "resnet18 width=8"]
    assert labels_of([replace(base, width=8)]) == ["resnet18"]
    assert labels_of([replace(base, rotate=True, epochs=9), replace(base, model="sre_resnet18", epochs=9)]) == [
        "resnet18 rotate=True",
        "sre_resnet18",
    ]


# Bad input


def test_too_few_runs(three: list[RunDir]) -> None:
    for runs in ([], three[:1]):
        with pytest.raises(ValueError, match=f"at least two run directories, got {len(runs)}"):
            compare(runs)


def test_the_same_run_twice(three: list[RunDir]) -> None:
    with pytest.raises(ValueError, match=r"plain is given more than once; give each run once"):
        compare([three[1], three[1].path.parent / "sre" / ".." / "plain"])


def test_run_that_was_not_evaluated(three: list[RunDir]) -> None:
    (three[1].path / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist; evaluate it first: isoconv evaluate"):
        compare(three)


def test_run_that_was_not_evaluated_by_that_protocol(three: list[RunDir]) -> None:
    edit(three[1], "results.json", lambda results: results.pop("official"))
    with pytest.raises(ValueError, match=r"plain was not evaluated by protocol 'official'; .* --protocol official"):
        compare(three, "official")


def test_unknown_protocol(three: list[RunDir]) -> None:
    with pytest.raises(ValueError, match="unknown protocol 'offical'.* did you mean 'official'"):
        compare(three, "offical")


def test_other_data(kind: str, three: list[RunDir], evaluated: Evaluated) -> None:
    data = "vessels3d at 16 pixels, .* 4 test" if kind else "cells3d at 16 pixels, .* 40 test"
    with pytest.raises(ValueError, match=f"volumes was evaluated on .* test images of {data} images"):
        compare([three[0], evaluated(f"{kind}volumes")])


def test_runs_of_different_kinds_of_work(evaluated: Evaluated) -> None:
    with pytest.raises(ValueError, match=r"sre is for classification, .*masks/sre for segmentation; compare runs of"):
        compare([evaluated("sre"), evaluated("masks/sre")])


def test_nothing_to_compare(three: list[RunDir]) -> None:
    """Such as masks and answers with nothing but background."""

    def forget(results: dict) -> None:
        results["standard"]["summary"]["upright"] = None
        results["standard"]["notes"] = ["no mask of the test set holds vessel"]

    edit(three[1], "results.json", forget)
    with pytest.raises(ValueError, match="plain has no (accuracy|Dice): no mask of the test set holds vessel$"):
        compare(three)


def test_other_test_images(three: list[RunDir]) -> None:
    edit_arrays(three[1], standard_labels=lambda labels: np.roll(labels, 1, axis=0))
    with pytest.raises(ValueError, match="compare runs on the same test images"):
        compare(three)


def test_other_test_images_of_the_same_labels(three: list[RunDir]) -> None:
    for run, name in zip(three, "aab", strict=True):
        edit(run, "environment.json", lambda values, name=name: values.update(data={"test": name}))
    compare(three[:2])
    with pytest.raises(ValueError, match="plain1 was evaluated on .*; compare runs on the same test images"):
        compare(three)


def test_results_of_another_version(three: list[RunDir]) -> None:
    edit(three[1], "results.json", lambda results: results["standard"]["summary"].pop("flips"))
    with pytest.raises(ValueError, match=r"another isoconv version, without flips; do it again: isoconv evaluate "):
        compare(three)
    edit(three[0], "results.json", lambda results: results.update(standard={}))
    with pytest.raises(ValueError, match=r"results\.json lacks the entry 'standard\.protocol'; delete it and do"):
        results_by(three[0], "standard")


@pytest.mark.parametrize(
    "change",
    [lambda entry: entry["conditions"][3].update(group="nix"), lambda entry: entry["conditions"].pop()],
)
def test_results_in_other_positions(three: list[RunDir], change: Callable[[dict], object]) -> None:
    edit(three[1], "results.json", lambda results: change(results["standard"]))
    expected = r"plain/results\.json, protocol 'standard', has other positions than the protocol has now; do it again: "
    with pytest.raises(ValueError, match=f"{expected}isoconv evaluate .* --protocol standard"):
        compare(three)


def test_results_of_an_earlier_network(three: list[RunDir]) -> None:
    best = three[1].model_info["epoch"]
    edit(three[1], "model.json", lambda info: info.update(epoch=9))
    expected = (
        rf"plain was evaluated when epoch {best} was its best, which now is 9 by model.json; do it again: isoconv"
    )
    with pytest.raises(ValueError, match=expected):
        compare(three)


def test_positions_of_another_version(three: list[RunDir]) -> None:
    edit_arrays(three[1], standard_conditions=lambda names: names[::-1])
    with pytest.raises(ValueError, match="plain was evaluated in other positions than protocol 'standard' has now"):
        compare(three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[:, :-1], "shape .* for 39 positions and"),
        (lambda records: records[:-1], "shape .* for 39 positions and"),
        (lambda records: records[0], "shape .* for 39 positions and"),
        (lambda records: records.astype("U4"), "<U4"),
        (lambda records: np.array(3), "shape"),
    ],
)
def test_records_that_cannot_be(three: list[RunDir], change: Callable, message: str) -> None:
    edit_arrays(three[1], **{f"standard_{three[1].task.record_name}": change})
    expected = (
        rf"predictions\.npz: standard_.* cannot be of this run \({message}.*; do it again: isoconv evaluate .*plain"
    )
    with pytest.raises(ValueError, match=expected):
        compare(three)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_records_that_are_not_finite(three: list[RunDir], value: float) -> None:
    def poison(records: np.ndarray) -> np.ndarray:
        records = records.astype(float)
        records[3, 2, 0] = value
        return records

    edit_arrays(three[1], **{f"standard_{three[1].task.record_name}": poison})
    with pytest.raises(
        ValueError, match=r"plain/predictions\.npz: standard_.* must hold finite numbers, got NaN or inf"
    ):
        compare(three)


def test_predictions_missing_or_damaged(three: list[RunDir]) -> None:
    path = three[1].path / "predictions.npz"
    content = path.read_bytes()
    path.unlink()
    expected = rf"has no standard_{three[1].task.record_name}, standard_labels, .*; do it again: isoconv evaluate"
    with pytest.raises(ValueError, match=expected):
        compare(three)
    for damaged in (b"", content[:1000], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"predictions\.npz is damaged .*; delete it and evaluate again"):
            compare(three)
    np.savez(path, standard_logits=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged .*pickle"):
        compare(three)
