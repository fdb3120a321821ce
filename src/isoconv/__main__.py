"""The program ``isoconv``, also as ``python -m isoconv``."""

import sys


def main() -> int:
    """Run the command line; where a package of it is missing, one line says which, and what brings it."""
    try:
        from isoconv.cli.main import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
