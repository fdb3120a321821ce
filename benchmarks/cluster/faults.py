"""A study on a Dask cluster whose workers fail: every cell is done once, none is lost, all are as a local run has them.

A scheduler and three workers are processes in network namespaces of their own, joined by a bridge. One worker is killed
with SIGKILL in the middle of a cell; another loses its network for a minute, then has it again. Needs root, Linux and
iproute2, and `pip install 'isoconv[cluster]'`.

    python benchmarks/cluster/faults.py > benchmarks/results/cluster-faults.md
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BRIDGE, NET = "isoconv0", "10.77.0"
WORKERS = ("isow1", "isow2", "isow3")
PARTITION_S = 60
EPOCHS = 6
STUDY = f"""
title = "Faults"
protocols = ["standard"]
headline = ["sre", "plain"]
seeds = [0, 1, 2, 3]
data = ["cells"]
[options]
epochs = {EPOCHS}
width = 4
kernel_sizes = [3, 3, 3, 3]
[[contestant]]
name = "sre"
title = "SRE"
model = "sre_resnet18"
[[contestant]]
name = "plain"
title = "plain"
model = "resnet18"
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge at NET.1 of this namespace, and a namespace per worker behind it."""
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(WORKERS, 2):
            ip("netns", "add", name)
            ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}h", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in WORKERS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        ip("link", "del", BRIDGE)


def started(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.log")]


def digest(folder: Path) -> dict[str, str]:
    """Of the weights of each cell that is whole: trained to the end and evaluated."""
    return {
        run.name: hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        for run in sorted(folder.iterdir())
        if (run / "results.json").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    }


def main(folder: Path) -> None:
    study, shared, local = folder / "faults.toml", folder / "shared", folder / "local"
    study.write_text(STUDY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    dask, isoconv = [sys.executable, "-m", "dask"], [sys.executable, "-m", "isoconv"]
    address = f"tcp://{NET}.1:8786"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "start_new_session": True}
    began, events, logs = time.monotonic(), [], []

    def note(text: str) -> None:
        events.append(f"| {time.monotonic() - began:.0f} | {text} |")

    with network():
        scheduler = subprocess.Popen([*dask, "scheduler", "--host", f"{NET}.1", "--no-dashboard"], **quiet)  # type: ignore[call-overload]
        time.sleep(5)
        workers = [
            subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    name,
                    *dask,
                    "worker",
                    address,
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                    "--name",
                    name,
                ],
                **quiet | {"cwd": folder},
            )  # type: ignore[call-overload]
            for name in WORKERS
        ]
        try:
            run = subprocess.Popen(
                [*isoconv, "study", "run", str(study), "--runs", str(shared), "--scheduler", address],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            while len(started(shared)) < len(WORKERS):
                time.sleep(0.5)
            note(f"{len(WORKERS)} cells started")
            time.sleep(8)
            os.killpg(workers[0].pid, signal.SIGKILL)
            note(f"worker {WORKERS[0]} killed, {len(digest(shared))} cells done")
            time.sleep(5)
            ip("link", "set", f"{WORKERS[1]}h", "down")
            note(f"worker {WORKERS[1]} without network, {len(digest(shared))} cells done")
            time.sleep(PARTITION_S)
            ip("link", "set", f"{WORKERS[1]}h", "up")
            note(f"worker {WORKERS[1]} has its network again, {len(digest(shared))} cells done")
            logs = run.communicate()[1].splitlines()
            note(f"the study ends with status {run.returncode}")
        finally:
            for process in (*workers, scheduler):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
    subprocess.run(
        [*isoconv, "study", "run", str(study), "--runs", str(local), "--threads", "1"], check=True, capture_output=True
    )
    here, there = digest(local), digest(shared)
    finished = [found[1] for line in logs if (found := re.search(r"\] (\S+): done", line))]
    print("# A study on a cluster with faults\n\n`python benchmarks/cluster/faults.py`\n\n| s | event |\n|---|---|")
    print("\n".join(events))
    print("\n| cells | |\n|---|---|")
    print(f"| of the study | {len(here)} |\n| done on the cluster | {len(there)} |")
    print(f"| lost | {len(here.keys() - there.keys())} |")
    print(f"| doubled (done again after they were done) | {len(finished) - len(set(finished))} |")
    print(f"| weights equal to the local run, byte for byte | {sum(here[name] == there.get(name) for name in here)} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
