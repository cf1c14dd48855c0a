"""The command line: ``matfree demo``, ``matrix``, ``merge``, and the commands of adapters."""

from matfree.cli.command import main

__all__ = ["main"]
