"""The process of a cell: works on the one that stdin describes."""

from __future__ import annotations

import json
import logging
import signal
import sys

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
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        logging.getLogger("isoconv").debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
