"""The program ``isoconv``, also as ``python -m isoconv``."""

import sys

from isoconv._extras import require
from isoconv._version import __version__


def main() -> int:
    """Run the command line; where a package of it is missing, one line says which, and what brings it."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write(f"isoconv {__version__}\n")
        return 0
    try:
        require("tyro", extra="study")
        from isoconv.cli.main import main as run
    except ModuleNotFoundError as error:
        if arguments in ([], ["--help"], ["-h"]):
            sys.stdout.write(f"isoconv {__version__}: the commands come with the extra study, isoconv[study]\n")
            return 0
        sys.stderr.write(f"error: {error}\n")
        return 1
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
