"""``matfree demo``: estimates for a matrix with known answers, and for neural networks."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import scipy.stats

from matfree.cli import options, sections
from matfree.cli.failure import one_line
from matfree.cli.report.document import Chapter, ReportBuilder
from matfree.cli.session import run_and_report
from matfree.cli.study import Study, StudySettings
from matfree.operators import aslinearoperator

CHAPTER_GROUP = "matfree.demo"
"""Entry points ``name = package:function``; the function is called as
``function(report, seed=..., progress=...)`` and adds its chapters to a ``ReportBuilder``."""

SIZE = 300

_INTRODUCTION = (
    f"A symmetric {SIZE} x {SIZE} matrix with four outliers, 10, 7, 4 and -3, and a bulk of "
    f"{SIZE - 4} eigenvalues with a semicircular distribution on [-0.5, 1.5]. The Hessians of "
    "neural networks have similar spectra. Every estimate is computed from matvecs with A only, "
    "and is compared with the exact answer from `numpy.linalg.eigvalsh`."
)


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="compare every estimate with its exact answer, for a matrix and a neural network",
        description="Estimates eigenvalues, trace, diagonal and spectral density of a matrix, and "
        "of the Hessians of two small neural networks that it trains, and compares them with "
        "exact answers. It takes about a minute.",
    )
    options.add_out(parser, default="matfree-report")
    parser.set_defaults(run=run, seed=0)


def run(given: argparse.Namespace) -> int:
    """Write the report of the demo."""

    def work(report: ReportBuilder) -> None:
        progress = options.progress_visible()
        add_matrix_chapter(report, seed=given.seed, progress=progress)
        for point in entry_points(group=CHAPTER_GROUP):
            try:
                add_chapters = point.load()
            except ImportError as cause:
                report.add_note(
                    f"The chapters of {point.name} are omitted, because a package that they need "
                    f"is not installed ({one_line(cause)}): pip install {cause.name}."
                )
            else:
                add_chapters(report, seed=given.seed, progress=progress)

    return run_and_report(given, "Randomized linear algebra, compared with exact answers", work)


def add_matrix_chapter(report: ReportBuilder, *, seed: int, progress: bool) -> None:
    """Add the chapter on a matrix with a known spectrum."""
    matrix = example(SIZE)
    settings = StudySettings(
        seed=seed,
        top=4,
        eigen_rtol=1e-6,
        num_probes=256,
        num_steps=80,
        compare=True,
        progress=progress,
    )
    study = Study(aslinearoperator(matrix), "A", "matrix", settings)
    report.add_chapter(
        Chapter(
            key="matrix",
            title="A matrix with a known spectrum",
            text=(_INTRODUCTION,),
            code="import matfree as mf\nfrom matfree.cli.demo import SIZE, example\n"
            "A = example(SIZE)",
            facts=(("size", f"{SIZE} x {SIZE}, {matrix.dtype}"), ("seed", str(seed))),
        )
    )
    sections.add_sections(study.with_exact(matrix), report)


def example(size: int) -> np.ndarray[Any, Any]:
    """A symmetric matrix with four outliers and a semicircular bulk; a deterministic function.

    Parameters
    ----------
    size : int, at least 5

    Returns
    -------
    (size, size) float64
    """
    outliers = [10.0, 7.0, 4.0, -3.0]
    bulk = size - len(outliers)
    # Quantiles at the midpoints represent the distribution without random numbers.
    law = scipy.stats.semicircular(loc=0.5, scale=1.0)
    eigenvalues = np.concatenate((outliers, law.ppf((np.arange(bulk) + 0.5) / bulk)))
    noise = np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)
    # The identity keeps the eigenvectors close to unit vectors, so that the diagonal varies.
    basis = np.linalg.qr(np.eye(size) + 3 * noise)[0]
    matrix = (basis * eigenvalues) @ basis.T
    return np.asarray((matrix + matrix.T) / 2)
