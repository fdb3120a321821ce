"""A command line on the few images of the tests, killed just before its AT-th change of a folder:
``python tests/cli/killing.py AT evaluate RUN``."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from isoconv import data
from isoconv.cli.main import main
from isoconv.data.synthetic import SYNTHETIC

CALLS = ("replace", "rename", "mkdir", "rmdir", "unlink")
left = int(sys.argv[1])


def counted(call: Callable) -> Callable:
    def do(*args: object, **options: object) -> object:
        global left  # noqa: PLW0603
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*args, **options)

    return do


for sets in (data.TASKS, SYNTHETIC):
    sets["cells"] = replace(sets["cells"], counts=(60, 20, 40))
for name in CALLS:
    setattr(os, name, counted(getattr(os, name)))
sys.exit(main(sys.argv[2:]))
