"""The options that commands share, and their way into settings."""

from __future__ import annotations

import argparse
import math
import sys
from importlib.util import find_spec
from typing import Any, NoReturn, final

from matfree.cli.failure import CommandError
from matfree.cli.study import Settings
from matfree.probes import resolve_seed


@final
class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, like every other of ours."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise CommandError(f"{message}; see {self.prog} --help")


def add_out(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``--out`` and ``--seed``, which every command has."""
    words = f"default {default}" if default else "without it only the terminal is written to"
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=default,
        help=f"folder for report.html, PNG pictures, results.json ({words})",
    )
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="repeat the run that reported this seed"
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """How thoroughly an operator of the user's is studied."""
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--num-probes",
        type=_count,
        metavar="M",
        help="random probes for the trace and the diagonal (default 32)",
    )
    budget.add_argument(
        "--rtol",
        type=_tolerance,
        metavar="TOL",
        help="as many probes as a 95 %% interval of this relative half-width takes, instead",
    )
    parser.add_argument(
        "--max-matvecs",
        type=_count,
        metavar="M",
        help="the most products for --rtol, for each of the two (default 1000)",
    )
    parser.add_argument(
        "--num-steps",
        type=_count,
        default=80,
        metavar="M",
        help="Lanczos steps of the spectral density (default 80)",
    )
    parser.add_argument(
        "--top", type=_count, metavar="K", help="eigenvalues by power iteration (default 2)"
    )
    parser.add_argument(
        "--exact", action="store_true", help="the dense answers beside the estimates"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="other methods for the trace and the diagonal beside, for as many products",
    )
    parser.add_argument(
        "--json", action="store_true", help="print results.json instead of the tables"
    )


LARGEST_EXACT = 20_000
"""The size up to which dense answers are offered: they take n^3 work and 8 n^2 bytes."""


def settings(options: argparse.Namespace, size: int) -> Settings:
    """What the options ask for, of an operator of this size."""
    if options.max_matvecs is not None and options.rtol is None:
        raise CommandError("--max-matvecs is the budget of --rtol; give that too, or --num-probes")
    if options.top is not None and options.top > size:
        raise CommandError(f"--top {options.top} is more than the {size} eigenvalues there are")
    if options.exact and size > LARGEST_EXACT:
        raise CommandError(
            f"--exact would take a dense {size} x {size} matrix ({8e-9 * size**2:.0f} GB) and all "
            f"its eigenvalues; it is offered up to n = {LARGEST_EXACT}, so leave it out"
        )
    return Settings(
        seed=options.seed,
        top=min(size, options.top or 2),
        num_probes=options.num_probes,
        rtol=options.rtol,
        max_matvecs=options.max_matvecs,
        num_steps=options.num_steps,
        compare=options.compare,
        progress=progress_visible(),
    )


def progress_visible() -> bool:
    """Whether somebody watches, and there is a bar to watch."""
    return sys.stderr.isatty() and find_spec("tqdm") is not None


def _seed(text: str) -> int:
    try:
        return resolve_seed(int(text))
    except ValueError:
        raise _wrong("a whole number in [0, 2**64)", text) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise _wrong("a whole number, at least 1", text)
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise _wrong("a positive number", text)
    return value


def _wrong(expected: str, got: Any) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"must be {expected}: got {got!r}")
