"""The command line."""

from isoconv.cli.main import main as main

__all__ = ["main"]
