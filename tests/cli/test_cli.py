"""The command line: help that explains, results alone on stdout, exit codes, and errors of one line."""

import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoconv import bench
from isoconv.cli.display import show, show_best_epoch, show_next
from isoconv.data import TASKS
from isoconv.evaluation.comparison import compare
from isoconv.models import list_models
from isoconv.runs import RunDir

Evaluated = Callable[[str], RunDir]
Call = Callable[..., Any]  # of a command line, to its Result


# Help


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["does not change when the image is rotated", "isoconv demo", "train", "evaluate", "predict", "compare"]),
        ("train", ["--data", "isoconv data list", "--model", "isoconv models", "--out", "--resume", "torchrun"]),
        ("evaluate", ["RUN", "isoconv train", "--protocol", "official", "--device", "--json"]),
        ("predict", ["IMAGE", "PNG, JPEG, TIFF, npy or npz", "folder", "FILE.csv or FILE.json", "--upright-only"]),
        ("compare", ["RUN", "isoconv evaluate", "paired", "--plot", "--json"]),
        ("demo", ["no download", "minutes", "--out", "--threads"]),
        ("data", ["list", "fetch"]),
        ("data list", ["18 of MedMNIST", "synthetic", "--json"]),
        ("data fetch", ["isoconv data list", "28, 64, 128 or 224", "$ISOCONV_DATA", "~/.medmnist"]),
        ("models", ["networks", "a label per pixel", "'sre_*'", "--width"]),
    ],
)
def test_help(call: Call, command: str, words: list[str]) -> None:
    result = call(*command.split(), "--help")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.out).split())
    assert (result.code, result.err) == (0, "")
    assert [word for word in words if word not in text] == []


def test_every_option_is_explained(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # wider terminals get two columns of boxes
    commands = ["train", "evaluate", "predict", "compare", "demo", "models", "doctor", "export", "serve", "bench ops"]
    commands += [f"data {name}" for name in ("list", "fetch", "check", "manifest")]
    commands += [f"study {name}" for name in ("run", "status", "report")]
    for command in commands:
        text = re.sub(r"[│╭╮╰╯─]", " ", call(*command.split(), "--help").out)
        options = [re.split(r"\n\s*\n", part)[0] for part in re.split(r"^ +(?=--[a-z])", text, flags=re.MULTILINE)[1:]]
        assert options, command
        for option in options:
            words = re.sub(r"\((default|required).*", "", option, flags=re.DOTALL)
            _, *explained = re.split(r" {2,}|\n", words.strip(), maxsplit=1)
            assert len(" ".join(explained)) > 10, f"{command}: {option}"


# Results


def test_the_next_command_can_be_pasted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isoconv")
    show_next("evaluate", Path("my runs/a b"))
    assert caplog.messages == ["next: isoconv evaluate 'my runs/a b'"]


@pytest.mark.parametrize(
    ("data", "models"), [("cells", ("sre_resnet18", "resnet18")), ("vessels", ("sre_unet", "unet"))]
)
def test_train_evaluate_and_compare(
    call: Call, few_cells: None, tmp_path: Path, no_figures: None, data: str, models: tuple[str, str]
) -> None:
    options = ["--data", data, "--width", 2, "--size", 16, "--epochs", 1, "--device", "cpu", "--lr", 0.1, "--json"]
    for model in models:
        result = call("train", "--model", model, "--out", tmp_path / model, *options)
        assert result.code == 0, result.err
        assert json.loads(result.out)["epoch"] == 0
        assert "epoch 1/1: train loss" in result.err
        assert result.err.endswith(f"next: isoconv evaluate {tmp_path / model}\n")
        result = call("evaluate", tmp_path / model, "--device", "cpu", "--json")
        assert json.loads(result.out) == RunDir(tmp_path / model).results()["standard"]
        assert f"figures are in {tmp_path / model / 'figures'}" in result.err
        assert f"next: isoconv predict {tmp_path / model} IMAGE, or: isoconv serve {tmp_path / model}" in result.err
    result = call("compare", *(tmp_path / model for model in models), "--json")
    assert (result.code, result.err) == (0, "next: isoconv export RUN, or: isoconv serve RUN --plain RUN\n")
    assert [row["network"] for row in json.loads(result.out)["groups"]] == list(models)


@pytest.mark.parametrize(("kind", "score"), [("", "accuracy"), ("masks/", "Dice")])
def test_comparison_for_people(call: Call, evaluated: Evaluated, tmp_path: Path, kind: str, score: str) -> None:
    three = [evaluated(f"{kind}{name}") for name in ("sre", "plain", "plain1")]
    result = call("compare", *(run.path for run in three), "--plot", tmp_path / "angles.png")
    assert result.code == 0, result.err
    (plain,) = (group for group in compare(three)["groups"] if len(group["seeds"]) == 2)
    mean, deviation = (f"{100 * plain[f'rotated_mean{end}']:.1f}" for end in ("", "_sd"))
    assert f"{mean} % ± {deviation}" in result.out
    for text in (f"{score} rotated, worst", ", 2 seeds", "upright, a - b", "p upright (Holm)", "p rotated (Holm)"):
        assert text in result.out, text
    assert (tmp_path / "angles.png").read_bytes().startswith(b"\x89PNG")
    seeds = call("compare", *(run.path for run in three[1:]))
    assert seeds.code == 0
    assert "a - b" not in seeds.out  # seeds of one network are not a pair


@pytest.mark.parametrize("name", ["sre", "masks/sre"])
def test_evaluation_for_people(call: Call, evaluated: Evaluated, no_figures: None, name: str) -> None:
    run = evaluated(name)
    result = call("evaluate", run.path, "--protocol", "official", "--batch-size", 16)
    entry, task = run.results()["official"], run.task
    summary = entry["summary"]
    assert result.code == 0
    for score in task.scores:
        assert re.search(rf"│ {re.escape(score.title)} +│ {100 * summary[score.key]:.1f} %", result.out), score.title
    assert f" at {summary['rotated_worst_at']} " in result.out
    assert re.search(r"multiply-adds, one per tap +│ [\d,]+ ", result.out)
    for label, of_class in entry.get("classes", {}).items():
        assert re.search(rf"│ {label} +│ {100 * of_class['upright']:.1f} % ", result.out), label


def test_runs_of_one_name_are_told_apart(call: Call, evaluated: Evaluated, tmp_path: Path) -> None:
    sre, plain = evaluated("sre"), evaluated("plain")
    namesake = shutil.copytree(plain.path, tmp_path / "other" / "sre")
    result = call("compare", sre.path, namesake)
    assert all(str(path) in result.out for path in (sre.path, namesake))


def test_epochs_are_counted_from_1_for_people(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluated("sre")
    show_best_epoch(run, as_json=False)
    assert re.search(rf"│ epoch +│ {run.model_info['epoch'] + 1} ", capsys.readouterr().out)


def test_note_on_a_network_that_decides_all_alike(call: Call, evaluated: Evaluated, no_figures: None) -> None:
    result = call("evaluate", evaluated("volumes").path)
    assert "note: every image is decided as" in result.err
    assert "decided" not in result.out


def test_predict_table(call: Call, evaluated: Evaluated, picture: Path) -> None:
    plain = evaluated("plain").path
    result = call("predict", plain, picture)
    assert (result.code, result.err) == (0, f"next: isoconv serve {plain}\n")
    assert result.out.count("two.npy[") == 2
    assert "same answer as upright" in result.out
    result = call("predict", evaluated("sre").path, picture, "--upright-only", "--device", "cpu", "--batch-size", 1)
    assert result.out.count("two.npy[") == 2
    assert "same answer as upright" not in result.out


def test_predict_masks(call: Call, evaluated: Evaluated, tmp_path: Path) -> None:
    run = evaluated("masks/sre").path
    np.save(tmp_path / "two.npy", np.random.default_rng(0).random((2, 16, 16)))
    command = ["predict", run, tmp_path / "two.npy", "--upright-only"]
    table = call(*command)
    assert table.err.startswith("give --out FOLDER to keep the masks\nnext: isoconv serve ")
    assert all(text in table.out for text in ("two.npy[1]", "vessel", "cell", " % "))
    rows = json.loads(call(*command, "--json").out)
    assert [list(row) for row in rows] == [["source", "index", "shares"]] * 2
    kept = json.loads(call(*command, "--out", tmp_path / "out", "--json").out)
    assert [Path(row["mask"]).name for row in kept] == ["two_0.png", "two_1.png"]
    assert all(Path(row["mask"]).is_file() for row in kept)
    assert "exists and is not overwritten" in call(*command, "--out", tmp_path / "out").error
    assert "nowhere to write out into" in call(*command, "--out", tmp_path / "nowhere" / "out").error


def test_predict_json_and_files(call: Call, evaluated: Evaluated, picture: Path, tmp_path: Path) -> None:
    run = evaluated("plain").path
    rows = json.loads(call("predict", run, picture, "--json").out)
    assert [row["index"] for row in rows] == [0, 1]
    result = call("predict", run, picture, "--out", tmp_path / "rows.json")
    assert (result.code, result.out) == (0, "")
    assert result.err == (f"answers on 2 images written to {tmp_path / 'rows.json'}\nnext: isoconv serve {run}\n")
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    call("predict", run, picture, "--out", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().count("\n") == 3


def test_predict_names_what_it_leaves_out_of_a_folder(call: Call, evaluated: Evaluated, picture: Path) -> None:
    folder = picture.parent / "folder"
    folder.mkdir()
    picture.rename(folder / "two.npy")
    (folder / "notes.txt").touch()
    result = call("predict", evaluated("plain").path, folder, "--json")
    assert result.err.startswith(f"warning: left out of {folder}, not images: notes.txt\n")
    assert len(json.loads(result.out)) == 2


def test_data_list(call: Call) -> None:
    tasks = json.loads(call("data", "list", "--json").out)
    assert [task["name"] for task in tasks] == list(TASKS)
    table = call("data", "list")
    assert (table.code, table.err) == (0, "next: isoconv train --data DATA --model MODEL --out RUN\n")
    assert all(name in table.out for name in TASKS)


def test_data_fetch(call: Call, few_cells: None) -> None:
    assert json.loads(call("data", "fetch", "cells", "--json").out) == {"cells": "synthetic seed=0"}


def test_data_fetch_of_real_files(call: Call, medmnist_dir: Path) -> None:
    result = call("data", "fetch", "breastmnist", "--data-root", medmnist_dir, "--json")
    assert json.loads(result.out) == {"breastmnist": str(medmnist_dir / "breastmnist.npz")}


def test_models(call: Call) -> None:
    counts = json.loads(call("models", "--json").out)
    assert list(counts) == list_models()
    assert counts["sre_resnet18"] < counts["resnet18"]
    assert list(json.loads(call("models", "sre_*_3d", "--width", "8", "--json").out)) == list_models("sre_*_3d")
    assert json.loads(call("models", "--pretrained", "--json").out)["pbc"] == "steerable_resnet18, sre_resnet18"


def test_bench(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    one = functools.partial(bench.bench_ops, [bench.Layer(4, (8, 8), 3, 1)])
    monkeypatch.setattr(bench, "bench_ops", one)
    (row,) = json.loads(call("bench", "ops", "--rounds", 2, "--json").out)["rows"]
    assert row["case"] == "2D 4x8x8 k=3"
    assert "| 2D 4x8x8 k=3" in call("bench", "ops", "--rounds", 2).out
    assert "rounds must be at least 2" in call("bench", "ops", "--rounds", 1).error


def test_demo(call: Call, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the demo prints; the trainings themselves are replaced by finished ones."""
    names = {"sre_resnet18": "sre", "resnet18": "plain"}
    monkeypatch.setattr("isoconv.demo.train", lambda config, resume: evaluated(names[config.model]))
    monkeypatch.setattr("isoconv.demo.evaluate", lambda run: None)
    monkeypatch.setattr("isoconv.demo.save_all", lambda run: [])
    result = call("demo", "--out", tmp_path / "demo")
    assert result.code == 0, result.err
    assert all(word in result.out for word in ("upright", "rotated, mean", "sre_resnet18", "resnet18"))
    figures = [Path(line.removeprefix("figure: ")) for line in result.out.splitlines() if line.startswith("figure: ")]
    assert figures
    assert all(path.is_file() for path in figures)


def test_json_is_all_there_is_on_stdout_of_a_process(evaluated: Evaluated, picture: Path) -> None:
    """Through the door that users take, with warnings and progress bars as they are there."""
    command = [sys.executable, "-m", "isoconv", "predict", evaluated("plain").path, picture, "--upright-only", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0
    assert result.stderr.startswith("next: isoconv serve ")
    assert result.stderr.count("\n") == 1
    assert len(json.loads(result.stdout)) == 2


def test_large_numbers_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    show({"seconds": 12345.678, "rate": 0.0123456, "parameters": 1234567}, as_json=False, title="run")
    out = capsys.readouterr().out
    assert all(text in out for text in ("12,346", "0.01235", "1,234,567"))
