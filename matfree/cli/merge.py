"""``matfree merge FILE FILE ...``: results of independent jobs as the result of one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matfree
from matfree.cli.failure import CommandError, one_line


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "merge",
        help="results of jobs over different probes, saved with .save(), as one result",
        description="Merges estimates, or spectral densities, of one operator and one seed over "
        "different probes (first_probe=), and prints what one run over all of them would have "
        "given.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="results written by .save()")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write the merged result there, as .npz"
    )
    parser.set_defaults(run=run, seed=None)


def run(given: argparse.Namespace) -> int:
    """Merge the files, print the result, and write it where that is asked for."""
    results = [_loaded(file) for file in given.files]
    first, others = results[0], results[1:]
    for file, result in zip(given.files, results, strict=True):
        if not hasattr(result, "merge"):
            raise CommandError(
                f"{file} holds a {type(result).__name__}; estimates and spectral densities are "
                "what can be merged"
            )
        if type(result) is not type(first):
            raise CommandError(
                f"{file} holds a {type(result).__name__}, {given.files[0]} a "
                f"{type(first).__name__}; give results of one kind"
            )
    try:
        merged = first.merge(*others)
    except ValueError as refusal:
        raise CommandError(str(refusal)) from refusal
    if given.out is not None:
        try:
            merged.save(given.out)
        except OSError as cause:
            raise CommandError(f"cannot write {given.out}: {cause.strerror}") from cause
    print(merged)
    return 0


def _loaded(file: str) -> Any:
    if not Path(file).is_file():
        raise CommandError(f"{file} is not a file; check the path")
    try:
        return matfree.load(file)
    except ValueError as cause:
        raise CommandError(one_line(cause)) from cause
