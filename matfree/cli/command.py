"""The command ``matfree``: its parser, its subcommands, and its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import matfree
from matfree.cli import demo, matrix, merge
from matfree.cli.failure import CommandError, one_line
from matfree.cli.options import EXIT_STATUS, Parser
from matfree.errors import MatfreeError
from matfree.probes import resolve_seed

COMMAND_GROUP = "matfree.commands"
"""Entry points ``command = package:function``. The function takes the object that argparse's
``add_subparsers`` returns, and adds a parser with the name of the command and with
``set_defaults(run=...)``, a function of the parsed options that returns the exit status. Among
the options are ``seed``, which is drawn at random if it was not given, and ``command_line``."""

BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments after the name of the program; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 for success, 2 for bad input (with one line on stderr that says what
        to do), 3 if a tolerance was not met, 130 after an interruption by Ctrl-C, 141 if the
        output was closed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal must not cause an error
    try:
        options = _parser(given).parse_args(given)
        options.command_line = ["matfree", *given]
        options.seed = resolve_seed(options.seed)
        return int(options.run(options))
    except (CommandError, MatfreeError) as error:
        return _end(str(error), BAD_INPUT)
    except MemoryError as error:
        return _end(f"not enough memory: {one_line(error)}", BAD_INPUT)
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _end(message: str, status: int) -> int:
    print(f"matfree: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser(given: list[str]) -> Parser:
    """The parser; of the commands of adapters, only those that are needed are imported."""
    parser = Parser(
        prog="matfree",
        description="Randomized, matrix-free linear algebra with reliable error bars.",
        epilog=EXIT_STATUS,
    )
    parser.add_argument("--version", action="version", version=f"matfree {matfree.__version__}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    demo.register(subparsers)
    matrix.register(subparsers)
    merge.register(subparsers)
    for point in entry_points(group=COMMAND_GROUP):
        # Importing a command may import a whole framework, which takes seconds.
        if given[:1] == [point.name]:
            _registration(point)(subparsers)
        elif given[:1] in (["-h"], ["--help"]):
            try:
                _registration(point)(subparsers)
            except CommandError as refusal:
                subparsers.add_parser(point.name, help=f"not available: {refusal}")
        else:
            subparsers.add_parser(point.name)
    return parser


def _registration(point: EntryPoint) -> Any:
    """The function that registers the command of an adapter.

    Raises
    ------
    CommandError
        The adapter cannot be imported, because the library that it adapts is not installed.
    """
    try:
        return point.load()
    except ImportError as cause:
        library = cause.name or point.module.partition(".")[0].removeprefix("matfree_")
        raise CommandError(
            f"the command {point.name} needs {library}, which cannot be imported "
            f"({one_line(cause)}): pip install {library}"
        ) from cause
