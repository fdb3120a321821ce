"""The process of a cell: works on the one that a line of stdin describes, for as long as stdin is open."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback

from isoconv._text import one_line
from isoconv.runs.config import TrainConfig
from isoconv.runs.lock import BusyError
from isoconv.study.cell import BUSY, work


def main() -> int:
    """Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(TrainConfig.from_json(job["config"]), job["protocols"])
    except BusyError:
        return BUSY
    except Exception as error:  # noqa: BLE001 - whatever it is, the study shows one line of it
        traceback.print_exc()
        sys.stderr.write(one_line(error, traceback="the log of the cell shows where") + "\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _end_with_parent() -> None:
    """A worker of a cluster that is killed takes its cell along: others shall continue it."""
    if not os.read(sys.stdin.fileno(), 1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
