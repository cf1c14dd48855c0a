"""``matfree merge FILE FILE ...``: merge the results of jobs over different probes."""

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
        help="merge the results of jobs over different probes",
        description="Merges estimates, or spectral densities, of one operator with one seed over "
        "different probes (first_probe=), and prints the result that one run over all of these "
        "probes would have returned.",
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="results that were saved with .save()"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write the merged result to this .npz file"
    )
    parser.set_defaults(run=run, seed=None)


def run(given: argparse.Namespace) -> int:
    """Merge the files, print the result, and write it to a file if requested."""
    results = [_loaded(file) for file in given.files]
    first, others = results[0], results[1:]
    for file, result in zip(given.files, results, strict=True):
        if not hasattr(result, "merge"):
            raise CommandError(
                f"{file} holds an object of type {type(result).__name__}; only estimates and "
                "spectral densities can be merged"
            )
        if type(result) is not type(first):
            raise CommandError(
                f"{file} holds an object of type {type(result).__name__}, and {given.files[0]} one "
                f"of type {type(first).__name__}; pass results of one type"
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
