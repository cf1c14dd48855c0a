"""``matfree demo``: every estimate on a matrix where the answer is known, then on a network."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import scipy.stats

from matfree.cli import options, sections
from matfree.cli.failure import one_line
from matfree.cli.report.document import Chapter, Notebook
from matfree.cli.session import conduct
from matfree.cli.study import Settings, Study
from matfree.operators import aslinearoperator

CHAPTER_GROUP = "matfree.demo"
"""Entry points ``name = package:function``; the function is called as
``function(notebook, seed=..., progress=...)`` and adds its chapters to the notebook."""

SIZE = 300

_WORDS = (
    f"A symmetric {SIZE} x {SIZE} matrix, made for teaching: four outliers, 10, 7, 4 and -3, "
    f"stand clear of a bulk of {SIZE - 4} eigenvalues that fill a half circle from -0.5 to 1.5. "
    "Spectra of neural networks look like this. Every estimate uses nothing but products of A "
    "with vectors, and stands beside the exact answer of `numpy.linalg.eigvalsh`."
)


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="every estimate beside its exact answer, on a matrix and on a neural network",
        description="Estimates eigenvalues, trace, diagonal and spectral density of a matrix, "
        "beside NumPy's exact answers, and then of the Hessian of a small neural network that "
        "it trains. Takes less than a minute.",
    )
    options.add_out(parser, default="matfree-report")
    parser.set_defaults(run=run, seed=0)


def run(given: argparse.Namespace) -> int:
    """Make the report."""

    def work(notebook: Notebook) -> None:
        progress = options.progress_visible()
        matrix_chapter(notebook, seed=given.seed, progress=progress)
        for point in entry_points(group=CHAPTER_GROUP):
            try:
                add_chapters = point.load()
            except ImportError as cause:
                notebook.note(
                    f"The {point.name} part is left out, because what it needs is not installed: "
                    f"pip install 'matfree-nla[demo]' brings it ({one_line(cause)})."
                )
            else:
                add_chapters(notebook, seed=given.seed, progress=progress)

    return conduct(given, "Randomized linear algebra, beside the exact answers", work)


def matrix_chapter(notebook: Notebook, *, seed: int, progress: bool) -> None:
    """The chapter on an explicit matrix."""
    matrix = example(SIZE)
    settings = Settings(
        seed=seed, eigen_rtol=1e-6, num_probes=256, num_steps=80, compare=True, progress=progress
    )
    study = Study(aslinearoperator(matrix), "A", "matrix", settings)
    notebook.open(
        Chapter(
            key="matrix",
            title="A matrix with a known spectrum",
            text=(_WORDS,),
            code="import matfree as mf\nfrom matfree.cli.demo import SIZE, example\n"
            "A = example(SIZE)",
            facts=(("size", f"{SIZE} x {SIZE}, {matrix.dtype}"), ("seed", str(seed))),
        )
    )
    sections.write(study.with_exact(matrix), notebook)


def example(size: int) -> np.ndarray[Any, Any]:
    """A symmetric matrix with four outliers and a semicircular bulk; the same every time.

    Parameters
    ----------
    size : int, at least 5

    Returns
    -------
    (size, size) float64
    """
    outliers = [10.0, 7.0, 4.0, -3.0]
    bulk = size - len(outliers)
    law = scipy.stats.semicircular(loc=0.5, scale=1.0)
    eigenvalues = np.concatenate((outliers, law.ppf((np.arange(bulk) + 0.5) / bulk)))
    noise = np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)
    # The identity keeps some of the spectrum on the diagonal, which has something to show then.
    basis = np.linalg.qr(np.eye(size) + 3 * noise)[0]
    matrix = (basis * eigenvalues) @ basis.T
    return np.asarray((matrix + matrix.T) / 2)
