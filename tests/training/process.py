"""A training on the tiny images of the tests, to be killed or to be one of several processes:
``python tests/training/process.py OUT [--resume] [--die EPOCH STEP]``."""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config, tiny_data

import isoconv.training.loop as training
from isoconv.training.learner import Learner
from isoconv.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die", type=int, nargs=2, metavar=("EPOCH", "STEP"))
    args = parser.parse_args()
    tiny = tiny_data()
    training.find = lambda *_: (tiny.task, lambda _: tiny)
    original = Learner.training_step

    def step(self: Learner, batch: Any) -> Any:
        if args.die and divmod(self.global_step, 3) == tuple(args.die):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch)

    def on_train_end(self: Learner) -> None:
        if self.trainer.world_size > 1:
            path = args.out.parent / f"rank{self.global_rank}.pt"
            torch.save({"state": self.state_dict(), "steps": self.global_step}, path)

    Learner.training_step, Learner.on_train_end = step, on_train_end
    train(tiny_config(args.out), args.resume)


if __name__ == "__main__":
    main()
