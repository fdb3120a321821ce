"""Studies: what a TOML file may say, locks, and a pool of processes whose failures stay their own."""

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from isoconv import evaluation, study_run, training
from isoconv.cli.main import main
from isoconv.evaluation.comparison import _COSTS, _SCORES
from isoconv.evaluation.protocols import PROTOCOLS
from isoconv.runs import _MODEL_INFO, RunDir
from isoconv.study.plan import Cell, command, load_study
from isoconv.study.running import BusyError, locked, run_cell, run_study, study_status

STUDIES = Path(__file__).parents[1] / "studies"

TINY = """
data = ["cells"]
seeds = [0, 1]
[options]
width = 2
epochs = 1
size = 16
batch_size = 8
[[contestant]]
name = "sre"
model = "sre_resnet18"
kernel_sizes = [3, 3, 3, 3]
[[contestant]]
name = "plain"
model = "resnet18"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write


# What a file may say


def test_cells_and_their_configs(write: Write) -> None:
    study = load_study(
        write(
            """
            title = "both dimensions"
            data = ["breastmnist", "adrenalmnist3d"]
            protocols = ["official"]
            [options]
            width = 8
            lr = 1
            2d = { width = 16 }
            3d = { stem_stride = 2 }
            [[contestant]]
            name = "large"
            title = "large kernels"
            model = "resnet18"
            2d = { kernel_sizes = [9, 9, 5, 5] }
            3d = { width = 4 }
            [[averaged]]
            name = "large-4"
            of = "large"
            turns = 4
            """
        )
    )
    assert [cell.name for cell in study.cells] == ["breastmnist-large-s0", "adrenalmnist3d-large-s0"]
    flat, volume = (study.config(cell, Path("runs"), threads=3) for cell in study.cells)
    assert (flat.model, flat.width, flat.kernel_sizes, flat.stem_stride) == ("resnet18", 16, (9, 9, 5, 5), None)
    assert (volume.model, volume.width, volume.kernel_sizes, volume.stem_stride) == ("resnet18_3d", 4, None, 2)
    assert (flat.lr, flat.threads, flat.out) == (1.0, 3, Path("runs/breastmnist-large-s0"))
    assert (study.name, study.title, study.headline) == ("tiny", "both dimensions", ("large", "large-4"))
    assert [(a.name, a.of, a.turns) for a in study.averaged] == [("large-4", "large", 4)]


def test_the_first_seed_of_everything_comes_first(write: Write) -> None:
    assert [c.name for c in load_study(write(TINY)).cells] == [
        "cells-sre-s0",
        "cells-plain-s0",
        "cells-sre-s1",
        "cells-plain-s1",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = ["cells"]', "", r"tiny.toml: data must be a list of at least one entry"),
        ('data = ["cells"]', 'data = "cells"', r"data must be a list, got 'cells'"),
        ('data = ["cells"]', "data = [1]", r"data must be a string, got 1"),
        ('["cells"]', '["cels"]', r"unknown data set 'cels'; did you mean 'cells'"),
        ('["cells"]', '["cells", "cells"]', r"data cells is given more than once"),
        ("seeds", "sseds", r"unknown key 'sseds'; did you mean 'seeds'\?"),
        ("[0, 1]", "[0, 0]", r"seeds 0 is given more than once"),
        ("[0, 1]", "[true]", r"seeds must be a whole number, got True"),
        ("[0, 1]", "[-1]", r"^[^:]*: seeds must be at least 0, got -1"),
        ("width = 2", "widht = 2", r"options: option 'widht'; did you mean 'width'\?"),
        ("width = 2", "width = 0", r"contestant .sre.: width must be a whole number of at least 1, got 0"),
        ("width = 2", 'width = "2"', r"options: width must be a whole number, got '2'"),
        ("width = 2", "rotate = 1", r"options: rotate must be true or false, got 1"),
        ("width = 2", 'lr = "x"', r"options: lr must be a number, got 'x'"),
        ("width = 2", 'recipe = "offical"', r"recipe must be one of standard, official, got 'offical'"),
        ("width = 2", "threads = 2", r"'threads' does not belong into a study; give --threads to `isoconv study run`"),
        ("width = 2", 'data_root = "x"', r"give --data-root"),
        ("width = 2", "2d = 3", r"2d must be a table, got 3"),
        ("width = 2", "3d = { widht = 3 }", r"options: option 'widht'; did you mean"),
        ("[options]", "[[options]]", r"options must be a table, got \["),
        ("[3, 3, 3, 3]", "3", r"contestant 'sre': kernel_sizes must be a list, got 3"),
        ("[3, 3, 3, 3]", "[3.0]", r"contestant 'sre': kernel_sizes must be a whole number, got 3.0"),
        ("kernel_sizes", "kernels", r"unknown contestant 'sre': option 'kernels'; did you mean 'kernel_sizes'"),
        ('"sre_resnet18"', '"sre_resnet"', r"model 'sre_resnet' is unknown.*did you mean .*'sre_resnet18'"),
        ('"sre_resnet18"', '"sre_resnet18_3d"', r"model 'sre_resnet18_3d' is unknown.*did you mean .*'sre_resnet18'"),
        ('model = "sre_resnet18"', "", r"contestant 'sre' has no model"),
        ('name = "plain"', 'name = "sre"', r"contestant sre is given more than once"),
        ('name = "plain"', 'name = "../x"', r"a name must be of small letters.*got '../x'"),
        ('name = "plain"', "", r"a name must be of small letters.*got None"),
        ("[[contestant]]", "[[contestants]]", r"unknown key 'contestants'; did you mean 'contestant'"),
        ('data = ["cells"]', 'data = ["cells"]\nprotocols = ["offical"]', r"did you mean 'official'"),
        ('data = ["cells"]', 'data = ["cells"]\nheadline = ["sre"]', r"headline must name two contestants, got 1"),
        ('data = ["cells"]', 'data = ["cells"]\nheadline = ["sre", "plan"]', r"'plan' is unknown.*mean 'plain'"),
        ('data = ["cells"]', "data = [", r"tiny.toml is not valid TOML"),
    ],
)
def test_mistakes_in_a_file(write: Write, old: str, new: str, message: str) -> None:
    assert old in TINY
    with pytest.raises(ValueError, match=message) as error:
        load_study(write(TINY.replace(old, new)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('name = "plain-4"', r"averaged 'plain-4' has no of and no turns"),
        ('name = "plain-4"\nof = "plan"\nturns = 4', r"of 'plan' is unknown.*did you mean 'plain'"),
        ('name = "plain-4"\nof = "plain"\nturns = 5', r"turns must be one of 2, 3, 4, .* got 5"),
        ('name = "plain"\nof = "plain"\nturns = 4', r"contestant plain is given more than once"),
        ('name = "plain-4"\nof = "plain"\nturn = 4', r"unknown averaged: key 'turn'; did you mean 'turns'"),
    ],
)
def test_mistakes_in_averaged(write: Write, lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_study(write(f"{TINY}\n[[averaged]]\n{lines}"))


def test_a_contestant_without_a_single_cell(write: Write) -> None:
    volumes = TINY.replace('"cells"', '"cells3d"').replace('"resnet18"', '"c4_resnet18"')
    with pytest.raises(ValueError, match=r"contestant 'plain': c4_resnet18 is for images only, and all data are volu"):
        load_study(write(volumes))
    assert len(load_study(write(volumes.replace('"cells3d"', '"cells3d", "cells"'))).cells) == 6


def _own_data(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        for label in ("round", "square"):
            (folder / split / label).mkdir(parents=True)
            Image.new("L", (16, 16)).save(folder / split / label / "0.png")
    return folder


def test_data_of_ones_own_by_a_relative_path(
    write: Write, tmp_path: Path, pretend: "Pretend", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training notes the whole path; the study has to see that it is the same."""
    _own_data(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    pretend("finish()")
    study = load_study(write(TINY.replace('"cells"', '"mine"')))
    assert study.config(study.cells[0], Path()).data == str(tmp_path / "mine")
    rows = run_study(study, tmp_path / "runs")
    assert [(row["cell"], row["state"]) for row in rows[:2]] == [("mine-sre-s0", "done"), ("mine-plain-s0", "done")]


def test_two_cells_of_one_name(write: Write, tmp_path: Path) -> None:
    paths = [str(_own_data(tmp_path / name)) for name in ("a", "a-sre")]
    text = TINY.replace('["cells"]', json.dumps(paths)).replace('name = "plain"', 'name = "sre-sre"')
    with pytest.raises(ValueError, match="cell a-sre-sre-s0, a-sre-sre-s1 is given more than once"):
        load_study(write(text))


def test_a_byte_order_mark_does_not_matter(write: Write) -> None:
    assert load_study(write("\ufeff" + TINY)) == load_study(write(TINY))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no study at .*none.toml; give a TOML file such as studies/quick.toml"
    ):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "count"), [("paper", 774), ("standard", 774), ("local", 138), ("local-3d", 42), ("quick", 12)]
)
def test_committed_studies_can_be_built(name: str, count: int) -> None:
    study = load_study(STUDIES / f"{name}.toml")
    configs = [study.config(cell, Path()) for cell in study.cells]
    assert len({config.out for config in configs}) == len(configs) == count
    study_run._check_networks(configs)


def test_command_trains_the_same(write: Write) -> None:
    study = load_study(write(TINY))
    line = command(study.config(study.cells[0], Path("runs")))
    assert line == (
        "isoconv train --data cells --model sre_resnet18 --out runs/cells-sre-s0 --width 2 --kernel-sizes 3 3 3 3 "
        "--epochs 1 --batch-size 8 --size 16"
    )
    assert "--rotate --size 16 --seed 1" in command(study.config(Cell("cells", "plain", 1), Path(), rotate=True))


# Locks


def _other(tmp_path: Path, **holder: Any) -> Path:
    (tmp_path / "cell.lock").write_text(json.dumps({"host": platform.node(), "born": None, **holder}))
    return tmp_path / "cell"


@pytest.fixture
def dead() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_excludes_and_is_given_back(tmp_path: Path) -> None:
    with locked(tmp_path / "cell"):
        with pytest.raises(BusyError, match=f'"pid": {os.getpid()}'), locked(tmp_path / "cell"):
            pass
        with locked(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_given_back_on_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "cell"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, dead: int) -> None:
    with locked(_other(tmp_path, pid=dead)):
        assert json.loads((tmp_path / "cell.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_so_is_a_claim_on_it(tmp_path: Path, dead: int) -> None:
    cell = _other(tmp_path, pid=dead)
    (tmp_path / "cell.lock+").write_text((tmp_path / "cell.lock").read_text())
    with locked(cell):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process began")
def test_a_reused_process_number_is_no_holder(tmp_path: Path) -> None:
    with locked(_other(tmp_path, pid=os.getpid(), born="1")):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells that a process has ended")
def test_a_process_that_nobody_waited_for_is_no_holder(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cell = _other(tmp_path, pid=process.pid, born=study_run._born(process.pid))
    with pytest.raises(BusyError), locked(cell):
        pass
    assert process.stdin is not None
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with locked(cell):
        pass
    process.wait()


def test_nothing_is_known_of_processes_elsewhere(tmp_path: Path, dead: int) -> None:
    cell = _other(tmp_path, pid=dead, host="elsewhere")
    with pytest.raises(BusyError, match="elsewhere"), locked(cell):
        pass
    assert (tmp_path / "cell.lock").exists()


def test_a_lock_being_written_is_held_for_a_minute(tmp_path: Path) -> None:
    lock = tmp_path / "cell.lock"
    lock.touch()
    with pytest.raises(BusyError), locked(tmp_path / "cell"):
        pass
    os.utime(lock, (time.time() - 61,) * 2)
    with locked(tmp_path / "cell"):
        pass


def test_only_one_takes_over(tmp_path: Path, dead: int) -> None:
    for _ in range(20):
        cell, ready, done = _other(tmp_path, pid=dead), threading.Barrier(8), threading.Barrier(8)
        won: list[bool] = []

        def race(cell: Path = cell, ready: Any = ready, done: Any = done, won: list[bool] = won) -> None:
            ready.wait()
            try:
                with locked(cell):
                    won.append(True)
                    done.wait()
            except BusyError:
                done.wait()

        racers = [threading.Thread(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won == [True]


# The pool, with workers that only pretend

PRETEND = f"""
import json, os, pathlib, signal, sys, time
job = json.load(sys.stdin)
config, out = job["config"], pathlib.Path(job["config"]["out"])
with (out.parent / "calls").open("a") as calls:
    calls.write(out.name + "\\n")
def finish():
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps(dict(config, lr=0.1)))
    (out / "metrics.jsonl").write_text("{{}}\\n" * config["epochs"])
    entry = dict(summary=dict.fromkeys({_SCORES!r}), cost=dict.fromkeys({_COSTS!r}))
    (out / "results.json").write_text(json.dumps(dict.fromkeys(job["protocols"], entry)))
    (out / "predictions.npz").touch()
    (out / "model.json").write_text(json.dumps(dict.fromkeys({_MODEL_INFO!r}, True)))
"""


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let the workers do this instead of training."""
    monkeypatch.setattr(study_run, "_POLL_S", 0.01)

    def pretend(code: str) -> None:
        (tmp_path / "worker.py").write_text(PRETEND + textwrap.dedent(code))
        monkeypatch.setattr(study_run, "_WORKER", [sys.executable, str(tmp_path / "worker.py")])

    return pretend


Pretend = Callable[[str], None]


def _states(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["cell"].removeprefix("cells-"): row["state"] for row in rows}


def test_failures_stay_their_own_and_are_tried_again(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    study, folder = load_study(write(TINY)), tmp_path / "runs"
    pretend(
        """
        if out.name == "cells-sre-s0":
            sys.stderr.write("error: no good\\n")
            sys.exit(1)
        if out.name == "cells-plain-s0":
            os.kill(os.getpid(), signal.SIGKILL)
        if out.name == "cells-sre-s1":
            sys.exit("oops")
        finish()
        """
    )
    rows = run_study(study, folder)
    assert _states(rows) == {"sre-s0": "failed", "plain-s0": "failed", "sre-s1": "failed", "plain-s1": "done"}
    assert [row["detail"] for row in rows] == [
        "no good",
        "killed by SIGKILL, perhaps for memory: use fewer --jobs",
        "oops",
        "",
    ]
    (folder / "calls").unlink()
    pretend("finish()")
    assert set(_states(run_study(study, folder)).values()) == {"done"}
    assert (folder / "calls").read_text().split() == ["cells-sre-s0", "cells-plain-s0", "cells-sre-s1"]
    assert list(folder.glob("*.failed")) == []
    (folder / "calls").unlink()
    run_study(study, folder)
    assert not (folder / "calls").exists()


def test_jobs_run_at_once(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend(
        """
        (out.parent / f"{out.name}.here").touch()
        twin = out.name.replace("sre", "x").replace("plain", "sre").replace("x", "plain")
        end = time.monotonic() + 30
        while not (out.parent / f"{twin}.here").exists():
            if time.monotonic() > end:
                sys.exit("alone")
            time.sleep(0.01)
        finish()
        """
    )
    assert set(_states(run_study(load_study(write(TINY)), tmp_path / "runs", jobs=2)).values()) == {"done"}


def test_threads_are_shared_among_the_jobs(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("(out.parent / 'seen').write_text(f'{config[\"threads\"]} {os.environ[\"OMP_NUM_THREADS\"]}')")
    run_study(load_study(write(TINY)), tmp_path, only=["*sre-s0"], jobs=1000)
    assert (tmp_path / "seen").read_text() == "1 1"


def test_shards_share_the_cells(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    study = load_study(write(TINY))
    parts = [run_study(study, tmp_path / str(i), shard=(i, 3)) for i in (1, 2, 3)]
    names = [row["cell"] for part in parts for row in part]
    assert sorted(names) == sorted(cell.name for cell in study.cells)
    assert [len(part) for part in parts] == [2, 1, 1]


def test_a_cell_of_another_process_is_left_to_it(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    with locked(tmp_path / "cells-sre-s0"):
        rows = run_study(load_study(write(TINY)), tmp_path, only=["*-s0"])
    assert _states(rows) == {"sre-s0": "running", "plain-s0": "done"}
    assert f"process {os.getpid()} on" in rows[0]["detail"]


def test_a_worker_that_finds_its_cell_taken_did_not_fail(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("sys.exit(3)")
    assert set(_states(run_study(load_study(write(TINY)), tmp_path)).values()) == {"missing"}


def test_an_interrupt_ends_the_workers(
    write: Write, tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("time.sleep(60)")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study_run.time, "sleep", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_study(load_study(write(TINY)), tmp_path, jobs=2)
    assert time.monotonic() - start < 50
    assert set(_states(study_status(load_study(tmp_path / "tiny.toml"), tmp_path)).values()) == {"missing"}


def test_changed_options_are_found(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    run_study(load_study(write(TINY)), tmp_path, only=["*sre-s0"])
    row = study_status(load_study(write(TINY.replace("width = 2", "width = 3"))), tmp_path)[0]
    assert row["state"] == "failed"
    assert "was started with other options (width 2 -> 3)" in row["detail"]


def test_stopped_and_damaged_runs(write: Write, tmp_path: Path, pretend: Pretend) -> None:
    pretend("finish()")
    study = load_study(write(TINY))
    run_study(study, tmp_path)
    (tmp_path / "cells-sre-s0" / "metrics.jsonl").unlink()
    (tmp_path / "cells-plain-s0" / "results.json").unlink()
    (tmp_path / "cells-sre-s1" / "config.json").write_text("{")
    rows = study_status(study, tmp_path)
    assert [row["state"] for row in rows] == ["stopped", "stopped", "failed", "done"]
    assert [row["detail"] for row in rows[:2]] == ["0 of 1 epoch", "not evaluated by protocol standard"]
    assert "is not valid JSON" in rows[2]["detail"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (0, 2)}, r"shard must be i/n with i from 1 to n, got 0/2"),
        ({"shard": (3, 2)}, r"got 3/2"),
        ({"only": ["cells-plan-s0"]}, r"no cell of study tiny matches 'cells-plan-s0'; did you mean 'cells-plain-s0'"),
        ({"jobs": 0}, r"jobs must be at least 1, got 0"),
    ],
)
def test_impossible_runs(write: Write, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_study(load_study(write(TINY)), tmp_path / "runs", **options)


def test_a_network_that_cannot_be_built_is_refused_before_any_work(write: Write, tmp_path: Path) -> None:
    study = load_study(write(TINY.replace('model = "resnet18"', 'model = "resnet18"\nbands = 3')))
    with pytest.raises(TypeError, match="'resnet18' has no option 'bands'"):
        run_study(study, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


# Real work


def test_a_cell_is_trained_once_and_evaluated_once(
    write: Write, tmp_path: Path, few_cells: None, no_figures: None
) -> None:
    study = load_study(write(TINY))
    config = study.config(study.cells[0], tmp_path, device="cpu")
    run_cell(config, study.protocols)
    assert study_status(study, tmp_path)[0]["state"] == "done"
    files = ("model.safetensors", "results.json", "environment.json")
    before = {name: (config.out / name).stat().st_mtime_ns for name in files}
    run_cell(config, study.protocols)
    assert before == {name: (config.out / name).stat().st_mtime_ns for name in files}
    assert list(tmp_path.glob("*.lock*")) == []


def test_a_start_that_was_cut_before_the_config_is_no_obstacle(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(TINY))
    config = study.config(study.cells[0], tmp_path)
    (config.out / "checkpoints").mkdir(parents=True)
    (config.out / "environment.json").write_text("{}")
    monkeypatch.setattr(training, "train", lambda config, resume: RunDir.create(config))
    run_cell(config, [])
    assert RunDir(config.out).config == config
    (config.out / "config.json").unlink()
    (config.out / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        run_cell(config, [])


def test_a_protocol_that_a_study_gains_needs_no_training(
    write: Write, tmp_path: Path, few_cells: None, no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(TINY))
    config = study.config(study.cells[0], tmp_path, device="cpu")
    run_cell(config, study.protocols)
    trained = {path: path.read_bytes() for path in config.out.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    earlier = RunDir(config.out).results()
    more = replace(study, protocols=(*study.protocols, "disturbed"))
    row = study_status(more, tmp_path)[0]
    assert (row["state"], row["detail"]) == ("stopped", "not evaluated by protocol disturbed")
    monkeypatch.setattr(evaluation, "evaluate", Mock(wraps=evaluation.evaluate))
    run_cell(config, more.protocols)
    assert [call.args[1] for call in evaluation.evaluate.call_args_list] == ["disturbed"]
    assert study_status(more, tmp_path)[0]["state"] == "done"
    assert trained == {path: path.read_bytes() for path in trained}
    assert RunDir(config.out).results() == {**earlier, "disturbed": RunDir(config.out).results()["disturbed"]}


def test_what_was_seen_through_another_mask_is_evaluated_again(
    evaluated: Callable[[str], RunDir], write: Write, tmp_path: Path, no_figures: None
) -> None:
    """Of a network trained without the mask, by the protocol that follows the training; by the others not."""
    run, study = evaluated("plain"), replace(load_study(write(TINY)), protocols=PROTOCOLS)
    config = replace(run.config, out=run.path)
    info = json.loads((run.path / "model.json").read_text())
    assert study_run._state(config, study.protocols)[0] == "done"
    (run.path / "model.json").write_text(json.dumps({**info, "masked": False}))
    assert study_run._state(config, study.protocols)[::2] == ("stopped", "not evaluated by protocol disturbed")
    before = run.results()
    run_cell(config, study.protocols)
    assert study_run._state(config, study.protocols)[0] == "done"
    after = run.results()
    assert after["disturbed"]["masked"] is False
    assert {p: after[p] for p in ("standard", "official")} == {p: before[p] for p in ("standard", "official")}


def test_command_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real worker in a process of its own, on few images; then the failures that a user sees."""
    (tmp_path / "worker.py").write_text(
        "import sys\nfrom dataclasses import replace\nfrom isoconv import data, figures, study_run\n"
        "data.TASKS['cells'] = data.SYNTHETIC['cells'] = replace(data.TASKS['cells'], counts=(16, 8, 8))\n"
        "figures.save_all = lambda *_: []\nsys.exit(study_run._main())\n"
    )
    monkeypatch.setattr(study_run, "_WORKER", [sys.executable, str(tmp_path / "worker.py")])
    monkeypatch.setenv("COLUMNS", "200")
    path, runs = str(write(TINY)), str(tmp_path / "runs")
    assert main(["study", "run", path, "--runs", runs, "--only", "*plain-s0", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["counts"] == {"done": 1, "running": 0, "stopped": 0, "failed": 0, "missing": 0}
    assert main(["study", "status", path, "--runs", runs]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"cells +│ plain +│ 1 +│ - +│ - +│ - +│ 1 ", shown)
    assert "1 done, 0 running, 0 stopped, 0 failed, 3 missing, of 4 cells" in shown

    (Path(runs) / "cells-sre-s0.failed").write_text("no good\n")
    assert main(["study", "status", path, "--runs", runs]) == 0
    assert "cells-sre-s0: failed, no good" in capsys.readouterr().out
    monkeypatch.setattr(study_run, "_WORKER", [sys.executable, "-c", "raise SystemExit('error: broken')"])
    assert main(["study", "run", path, "--runs", runs, "--only", "*sre-s0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == ("error: 1 of 1 cell failed (cells-sre-s0); the logs say more")
    assert main(["study", "run", path, "--shard", "3"]) == 1
    assert capsys.readouterr().err == "error: shard must look like 3/8, got '3'\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["run", "status", "report"]),
        ("run", ["STUDY.toml", "--jobs", "--threads", "--shard", "--only", "--runs", "$ISOCONV_DATA", "--json"]),
        ("status", ["STUDY.toml", "--runs", "--json"]),
        ("report", ["STUDY.toml", "--out", "--protocol", "HTML", "--json"]),
    ],
)
def test_help(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", *command.split(), "--help"])
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []
