"""The options that commands share, and the settings that follow from them."""

from __future__ import annotations

import argparse
import math
import sys
from importlib.util import find_spec
from typing import Any, NoReturn, final

from matfree.cli.failure import CommandError
from matfree.cli.study import StudySettings
from matfree.probes import resolve_seed

TOLERANCE_MISSED = 3

EXIT_STATUS = (
    "Exit status: 0 for success; 2 for bad input, with one line on stderr; "
    f"{TOLERANCE_MISSED} if the tolerance --rtol was not met within --max-matvecs; 130 after "
    "Ctrl-C."
)


@final
class Parser(argparse.ArgumentParser):
    """An argument parser that raises a ``CommandError``, so that its message is one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise CommandError(f"{message}; see {self.prog} --help")


def add_out(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--out`` and ``--seed``."""
    words = f"default {default}" if default else "without it, no files are written"
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=default,
        help=f"folder for report.html, PNG figures, results.json and the results ({words})",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="seed of the random vectors; the seed of a previous run repeats it",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the options that control accuracy and cost."""
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--num-probes",
        type=_count,
        metavar="M",
        help="number of random probes for the trace and for the diagonal (default 32)",
    )
    budget.add_argument(
        "--rtol",
        type=_tolerance,
        metavar="TOL",
        help="tolerance for the trace and the diagonal, as an alternative: the half-width of the "
        "95 %% interval relative to the value",
    )
    parser.add_argument(
        "--max-matvecs",
        type=_count,
        metavar="M",
        help="maximum number of matvecs for --rtol, for each of the two (default 1000)",
    )
    _add_sizes(parser)
    parser.add_argument(
        "--exact", action="store_true", help="compare with exact answers from the dense matrix"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare with other methods for the trace and the diagonal at equal cost",
    )
    parser.add_argument(
        "--json", action="store_true", help="print results.json instead of the tables"
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-steps",
        type=_count,
        default=80,
        metavar="M",
        help="number of Lanczos steps for the spectral density (default 80)",
    )
    parser.add_argument(
        "--top",
        type=_count,
        metavar="K",
        help="number of eigenvalues to compute by power iteration (default 2)",
    )


LARGEST_EXACT = 20_000
"""The largest size for --exact, which takes O(n^3) operations and 8 n^2 bytes."""


def settings(options: argparse.Namespace, size: int) -> StudySettings:
    """The settings that the options ask for, for an operator of this size."""
    if options.max_matvecs is not None and options.rtol is None:
        raise CommandError(
            "--max-matvecs is the budget for --rtol; pass --rtol as well, or --num-probes instead"
        )
    if options.top is not None and options.top > size:
        raise CommandError(
            f"--top must be at most {size}, the number of eigenvalues: got {options.top}; lower it"
        )
    if options.exact and size > LARGEST_EXACT:
        raise CommandError(
            f"--exact needs a dense {size} x {size} matrix ({8e-9 * size**2:.0f} GB) and all its "
            f"eigenvalues, and is limited to n = {LARGEST_EXACT}; omit --exact"
        )
    return StudySettings(
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
    """Whether stderr is a terminal and tqdm, which draws progress bars, is installed."""
    return sys.stderr.isatty() and find_spec("tqdm") is not None


def _seed(text: str) -> int:
    try:
        return resolve_seed(int(text))
    except ValueError:
        raise _invalid("a whole number in [0, 2**64)", text) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise _invalid("a whole number, at least 1", text)
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise _invalid("a positive number", text)
    return value


def _invalid(expected: str, got: Any) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"must be {expected}: got {got!r}")
