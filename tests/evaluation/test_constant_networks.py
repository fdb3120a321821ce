"""Networks that always give the same answer: their consistency is never shown without a word on what it is worth."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from isoconv.cli.main import main
from isoconv.data import Task as DataInfo
from isoconv.data import get_task
from isoconv.deploy.model_card import Usage, model_card
from isoconv.evaluation import compare, evaluate
from isoconv.evaluation.prediction import predict
from isoconv.report import write_report
from isoconv.runs import RunDir
from isoconv.study.plan import load_study
from isoconv.tasks import task_of

Evaluated = Callable[[str], RunDir]
WORTHLESS = "whatever it shows: that this is invariant says nothing"


@pytest.fixture
def constant(evaluated: Evaluated) -> RunDir:
    """A run whose network ignores the image, evaluated."""
    run = evaluated("plain")
    net = run.load_model().net
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.arange(len(net.fc.bias)))
    run.save_model(net, run.model_info)
    evaluate(run)
    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    return tmp_path / "images.npy"


def test_wherever_the_consistency_is_shown(
    constant: RunDir, evaluated: Evaluated, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = str(constant.path), evaluated("sre").path
    assert constant.results()["standard"]["summary"]["consistency"] == 1
    capsys.readouterr()
    assert main(["predict", run, str(images)]) == 0
    assert WORTHLESS in capsys.readouterr().err
    one = images.with_name("one.npy")
    np.save(one, np.load(images)[0])
    assert main(["predict", run, str(one), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["consistency"] == 1
    assert WORTHLESS in err
    assert main(["compare", run, str(other), "--protocol", "standard"]) == 0
    assert WORTHLESS in capsys.readouterr().err
    assert any(WORTHLESS in note for note in compare([run, other], "standard")["notes"][run])
    assert WORTHLESS in model_card(constant, Usage("net.pt2", "pt2", 1))


def test_what_the_test_images_refute_is_not_said(
    evaluated: Evaluated, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = evaluated("plain")
    np.save(images, np.load(images)[[0, 0]])  # one answer, by a network that knows others
    with caplog.at_level(logging.WARNING, "isoconv"):
        predict(run, images)
    assert caplog.messages == []


def test_before_an_evaluation_nobody_knows(constant: RunDir, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    (constant.path / "results.json").unlink()
    with caplog.at_level(logging.WARNING, "isoconv"):
        predict(constant, images)
        predict(constant, images, rotations=False)  # shows no consistency
    (message,) = caplog.messages
    assert message.startswith("note: the answers are all the same; if the network knows no other")
    assert message.endswith(f"isoconv evaluate {constant.path}")


STUDY = """
title = "Few cells"
data = ["cells"]
seeds = [0]
protocols = ["standard"]
headline = ["sre", "plain"]
[options]
width = 4
epochs = 4
batch_size = 4
size = 16
[[contestant]]
name = "sre"
model = "sre_resnet18"
kernel_sizes = [5, 5, 3, 3]
[[contestant]]
name = "plain"
model = "resnet18"
[[averaged]]
name = "plain-4"
of = "plain"
turns = 4
"""


def test_a_report_says_so_in_its_summary_and_its_tables(constant: RunDir, evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(STUDY)
    runs = tmp_path / "runs"
    runs.mkdir()
    constant.path.rename(runs / "cells-plain-s0")
    evaluated("sre").path.rename(runs / "cells-sre-s0")
    page, table, *_ = write_report(load_study(tmp_path / "few.toml"), runs, tmp_path / "report.html")
    summary, rest = page.read_text().split('id="legend"')
    assert WORTHLESS in summary
    assert WORTHLESS in rest
    noted = [line for line in table.read_text().splitlines() if line.endswith(WORTHLESS)]
    assert [line.partition(":")[0] for line in noted] == ["- plain", "- plain-4"]


# Each kind of work


@pytest.mark.parametrize(
    ("name", "records", "words"),
    [
        ("bloodmnist", [[0, 0, 9] + 5 * [0]] * 3, "every image is decided as "),
        ("breastmnist", [[2.0, 1.0], [0.5, 0.1]], "every image is decided as 'malignant'"),
        ("chestmnist", [14 * [-1.0]] * 3, "every image is given no label"),
        ("chestmnist", [[1.0, 1.0] + 12 * [-1.0]] * 2, "every image is decided as 'atelectasis', 'cardiomegaly'"),
        ("vessels", [[[9, 9, 8, 9, 9], [0, 0, 1, 0, 0], 5 * [0]]] * 2, "every pixel is taken for background"),
        ("vessels", [[[0, 0, 9, 0, 0], [1, 10, 1, 10, 10], 5 * [0]]], "every pixel is taken for vessel"),
    ],
)
def test_same_answers(name: str, records: list, words: str) -> None:
    note = task_of(get_task(name)).constant(torch.tensor(records))
    assert note is not None
    assert note.startswith(words)
    assert note.endswith(WORTHLESS)


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("bloodmnist", [[0, 0, 9] + 5 * [0], [9, 0, 0] + 5 * [0]]),
        ("breastmnist", [[2.0, 1.0], [0.1, 0.5]]),
        ("chestmnist", [14 * [-1.0], [1.0] + 13 * [-1.0]]),
        ("vessels", [[[9, 9, 8, 9, 9], [0, 0, 1, 0, 0], 5 * [0]], [[5, 8, 5, 8, 8], [1, 1, 4, 1, 1], 5 * [0]]]),
    ],
)
def test_answers_that_differ(name: str, records: list) -> None:
    assert task_of(get_task(name)).constant(torch.tensor(records)) is None


@pytest.mark.parametrize("labels", [("age",), ("age", "size")])
def test_same_numbers(labels: tuple[str, ...]) -> None:
    task = task_of(DataInfo("x", "X", "regression", 2, 1, labels, (3, 3, 3), licence=""))
    records = torch.tensor([[2.0, 7.0]] * 3)[:, : len(labels)]
    note = task.constant(records)
    assert note is not None
    assert all(label in note for label in labels)
    assert note.endswith("whatever it shows: that this is invariant says nothing")
    assert task.notes(records, torch.rand(3, len(labels))) == [note]
    records[0, 0] = 3
    assert task.constant(records) is None
