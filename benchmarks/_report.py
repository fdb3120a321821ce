"""Run a benchmark from the command line and write its results beside this file."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoconv.bench import markdown
from isoconv.figures.speed import speed_ratios


def main(name: str, bench: Callable[..., dict[str, Any]], rounds: int) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = bench(rounds=arguments.rounds, device=arguments.device)
    result["command"] = f"python benchmarks/{name}.py {' '.join(sys.argv[1:])}".strip()
    threads = f"-{arguments.threads}-threads" if arguments.device == "cpu" and arguments.threads > 1 else ""
    path = Path(__file__).parent / "results" / f"{name}-{arguments.device}{threads}"
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = f"{markdown(result)}\nCommand: `{result['command']}`\n"
    path.with_suffix(".md").write_text(text)
    speed_ratios(result).savefig(path.with_suffix(".png"), dpi=110)
    print(text)
