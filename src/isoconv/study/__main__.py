"""The process of a cell: works on the one that stdin describes."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback

from isoconv._text import one_line
from isoconv.runs.config import TrainConfig
from isoconv.runs.lock import BusyError
from isoconv.study.cell import BUSY, work


def main() -> int:
    """Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    job = json.load(sys.stdin)
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


if __name__ == "__main__":
    sys.exit(main())
