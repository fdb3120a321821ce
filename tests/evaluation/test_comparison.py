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

from isoconv.evaluation.comparison import compare, labels_of, load_predictions, results_by
from isoconv.runs import RunDir
from isoconv.runs.config import TrainConfig
from isoconv.tasks.metrics import holm

Evaluated = Callable[[str], RunDir]


def edit(run: RunDir, name: str, change: Callable[[dict], object]) -> None:
    """Change a JSON file of a run in place."""
    values = json.loads((run.path / name).read_text())
    change(values)
    (run.path / name).write_text(json.dumps(values))


@pytest.fixture
def three(evaluated: Evaluated) -> list[RunDir]:
    """One isotropic run and two seeds of the plain network."""
    return [evaluated(name) for name in ("sre", "plain", "plain1")]


def test_a_row_per_run_with_its_scores_and_costs(three: list[RunDir]) -> None:
    result = compare(three, "official")
    assert result["protocol"] == "official"
    assert result["data"]["test_images"] == 40
    for row, run in zip(result["runs"], three, strict=True):
        entry = run.results()["official"]
        known = {**entry["summary"], **entry["cost"]}
        assert row["run"] == str(run.path)
        assert row["seed"] == run.config.seed
        assert {name: known[name] for name in row if name not in ("run", "network", "seed")}.items() <= row.items()
    assert len({tuple(row) for row in result["runs"]}) == 1


def test_seeds_of_a_network_are_taken_together(three: list[RunDir]) -> None:
    result = compare(three)
    sre, plain = result["groups"]
    assert (sre["network"], sre["seeds"]) == ("sre_resnet18 kernel_sizes=5,5,3,3", [0])
    assert (plain["network"], plain["seeds"]) == ("resnet18", [0, 1])
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
    for test in ("upright_p", "always_right_p"):
        assert [pair[f"{test}_holm"] for pair in pairs] == holm([pair[test] for pair in pairs])


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_paired_tests_by_counting(three: list[RunDir], protocol: str) -> None:
    (pair, _) = compare(three, protocol)["pairs"]
    right = []
    for run in three[:2]:
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


@pytest.mark.parametrize("recorded", [False, True])
def test_results_with_another_mask_than_the_network_has_are_out_of_date(three: list[RunDir], recorded: bool) -> None:
    """Whether they say that they were masked or are from before that was said, when all of that protocol were."""
    run = three[0]
    assert results_by(run, "disturbed")["masked"] is True
    edit(run, "model.json", lambda info: info.update(masked=False))
    if not recorded:
        edit(run, "results.json", lambda results: [result.pop("masked") for result in results.values()])
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


def test_other_data(three: list[RunDir], evaluated: Evaluated) -> None:
    with pytest.raises(ValueError, match="volumes was evaluated on 12 test images of cells3d at 16 pixels, .* 40 test"):
        compare([three[0], evaluated("volumes")])


def test_other_test_images(three: list[RunDir]) -> None:
    arrays = load_predictions(three[1])
    arrays["standard_labels"] = np.roll(arrays["standard_labels"], 1)
    np.savez(three[1].path / "predictions.npz", **arrays)
    with pytest.raises(ValueError, match="compare runs on the same test images"):
        compare(three)


def test_other_test_images_of_the_same_labels(three: list[RunDir]) -> None:
    for run, name in zip(three, "aab", strict=True):
        edit(run, "environment.json", lambda values, name=name: values.update(data={"test": name}))
    compare(three[:2])
    with pytest.raises(ValueError, match="plain1 was evaluated on .*; compare runs on the same test images"):
        compare(three)


def test_results_of_another_version(three: list[RunDir]) -> None:
    edit(three[1], "results.json", lambda results: results["standard"]["summary"].pop("always_right"))
    with pytest.raises(ValueError, match=r"another isoconv version, without always_right; do it again: isoconv evalu"):
        compare(three)
    edit(three[0], "results.json", lambda results: results.update(standard={}))
    with pytest.raises(ValueError, match=r"results\.json lacks the entry 'standard\.protocol'; delete it and do"):
        results_by(three[0], "standard")


def test_results_of_an_earlier_network(three: list[RunDir]) -> None:
    best = three[1].model_info["epoch"]
    edit(three[1], "model.json", lambda info: info.update(epoch=9))
    expected = (
        rf"plain was evaluated when epoch {best} was its best, which now is 9 by model.json; do it again: isoconv"
    )
    with pytest.raises(ValueError, match=expected):
        compare(three)


def test_positions_of_another_version(three: list[RunDir]) -> None:
    arrays = load_predictions(three[1])
    arrays["standard_conditions"] = arrays["standard_conditions"][::-1]
    np.savez(three[1].path / "predictions.npz", **arrays)
    with pytest.raises(ValueError, match="plain was evaluated in other positions than protocol 'standard' has now"):
        compare(three)


def test_predictions_missing_or_damaged(three: list[RunDir]) -> None:
    path = three[1].path / "predictions.npz"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match="has no protocol 'standard'; evaluate the run again"):
        compare(three)
    for damaged in (b"", content[:1000], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"predictions\.npz is damaged .*; delete it and evaluate again"):
            compare(three)
    np.savez(path, standard_logits=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged .*pickle"):
        compare(three)
