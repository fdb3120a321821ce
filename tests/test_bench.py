"""The benchmarks: what they report and when they refuse to."""

import json

import pytest
import torch

from isoconv import bench
from isoconv.cli.main import main
from isoconv.figures.speed import speed_ratios
from isoconv.ops import numba_cpu

TINY = bench.Layer(4, (6, 6), 3, 2)


def test_layers_are_timed_side_by_side() -> None:
    result = bench.bench_ops([TINY, bench.Layer(2, (4, 4, 4), 3, 1)], rounds=3)
    contestants = result["rows"][0]["contestants"]
    assert {"plain", "plain k=3", "reference", "numba", "depthwise + pointwise", "product alone"} <= set(contestants)
    assert contestants["plain"]["multiply_adds"] == 2 * 36 * 4 * 4 * 9
    assert contestants["numba"]["multiply_adds"] == 2 * 36 * 4 * 4 * 2
    for entry in contestants.values():
        assert 0 < entry["forward"]["low"] <= entry["forward"]["median"] <= entry["forward"]["high"]
    assert json.loads(json.dumps(result)) == result
    text = bench.markdown(result)
    assert "| 2D 4x6x6 k=3, batch 2 |" in text
    assert "## forward+backward, ms" in text


def test_a_contestant_of_some_cases_only_leaves_the_others_empty() -> None:
    result = bench.bench_ops([TINY], rounds=2)
    (row,) = result["rows"]
    fewer = row | {"case": "without", "contestants": {k: v for k, v in row["contestants"].items() if k != "numba"}}
    text = bench.markdown(result | {"rows": [fewer, row]})
    cells = next(line for line in text.splitlines() if line.startswith("| without")).split("|")
    heads = next(line for line in text.splitlines() if line.startswith("| case")).split("|")
    assert cells[heads.index(" numba ")].strip() == ""
    assert len(cells) == len(heads)


def test_e2cnn_takes_part_where_it_is_installed() -> None:
    pytest.importorskip("e2cnn")
    result = bench.bench_ops([TINY, bench.Layer(4, (4, 4, 4), 3, 1)], rounds=2)
    assert "e2cnn" in result["versions"]
    first, second = result["rows"]
    assert first["contestants"]["e2cnn, C4"]["multiply_adds"] == first["contestants"]["plain"]["multiply_adds"]
    assert "e2cnn, C4" not in second["contestants"]


def test_ratios_are_drawn() -> None:
    result = bench.bench_ops([TINY, bench.Layer(2, (4, 4, 4), 3, 1)], rounds=2)
    figure = speed_ratios(result)
    forward, both = figure.axes
    times = result["rows"][0]["contestants"]
    assert [label.get_text() for label in forward.get_yticklabels()] == ["2D 4x6x6 k=3", "3D 2x4x4x4 k=3"]
    for ax, part in ((forward, "forward"), (both, "forward+backward")):
        bars = {each.get_label(): each[0].get_width() for each in ax.containers}
        assert "plain" not in bars
        assert bars["numba"] == pytest.approx(times["plain"][part]["median"] / times["numba"][part]["median"])


def test_a_plot_that_cannot_be_written_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "--plot", "nowhere/a.png"]) == 1
    assert "--plot must be a .png file in a folder that exists" in capsys.readouterr().err


def test_training_steps_are_timed_side_by_side() -> None:
    network = bench.Network("sre_resnet18", "resnet18", 1, (8, 8), 2, (3, 3, 3, 3), 2)
    result = bench.bench_models([network], rounds=2)
    assert set(result["rows"][0]["contestants"]) == {"plain twin, k=3", "reference", "numba", "auto"}
    assert "sre_resnet18 (3, 3, 3, 3) width 2, 2 x 1x8x8" in bench.markdown(result)


def test_nothing_is_timed_when_engines_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    run = numba_cpu.run
    monkeypatch.setattr(numba_cpu, "run", lambda *call: 1.01 * run(*call))
    with pytest.raises(RuntimeError, match=r"2D 4x6x6 k=3: the output of numba differs.*nothing is timed"):
        bench.bench_ops([TINY], rounds=1)
    network = bench.Network("sre_resnet18", "resnet18", 1, (8, 8), 2, (3, 3, 3, 3), 2)
    monkeypatch.setattr(numba_cpu, "run", lambda *call: torch.zeros_like(run(*call)))
    with pytest.raises(RuntimeError, match="losses of the engines differ"):
        bench.bench_models([network], rounds=1)
