"""The command line: ``matfree demo``, ``matfree matrix``, and what adapters announce."""

from matfree.cli.command import main

__all__ = ["main"]
