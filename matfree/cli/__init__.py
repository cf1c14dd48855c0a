"""The command line: ``matfree demo``, ``matrix``, ``merge``, and the commands of adapters.

It may import every module of ``matfree``, and none of them imports it.
"""

from matfree.cli.command import main

__all__ = ["main"]
