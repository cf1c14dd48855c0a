"""Errors of the estimators for a number of matvecs, compared with reference medians.

Each cell is the median over seeds of a relative error (or of a number of matvecs). The
reference medians were measured with independent implementations of the same methods, over 50
to 100 seeds, so each has an uncertainty of 10 to 20 %. A cell is marked if its median exceeds
the allowed multiple of the reference, and is then measured again over more seeds.
"""

import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from problems import hypercube_spectrum, problem, spectrum
from tables import COMPLETE, DIAGONAL, EIGEN, SUMS, TRACE

import matfree as mf

SEEDS, MORE_SEEDS = 50, 400
WORKERS = 2
ALLOWED = 1.5  # allowed ratio to a reference error
ALLOWED_MATVECS = 1.25  # allowed ratio to a reference number of matvecs
COVERAGE = 0.90  # required of nominal 95 % intervals
ROUNDING = 1e-12  # smaller relative errors are neither compared nor expected to be covered
FUNCTIONS = {"log": np.log, "inverse": np.reciprocal, "exp(-x)": lambda x: np.exp(-x)}
FUNCTIONS["sqrt"] = np.sqrt


class Cell(NamedTuple):
    """One entry of a table: the quantity, the problem, the method and the cost."""

    kind: str
    problem: str
    method: str
    cost: object

    def __str__(self):
        return f"{self.kind} {self.problem}, {self.method}, {self.cost}"


class Measured(NamedTuple):
    """The results of a cell over all seeds."""

    median: float
    coverage: float
    matvecs: tuple
    complete: int = 0

    @property
    def covers(self):
        return self.coverage >= COVERAGE or self.median < ROUNDING


def measure(cell, num_seeds=SEEDS):
    """The median and the coverage of a cell over seeds 1000, 1001, ..."""
    one = {"trace": trace_once, "diagonal": diagonal_once, "sum": sum_once, "eigsh": eigen_once}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        runs = [one[cell.kind](cell, 1000 + seed) for seed in range(num_seeds)]
    errors, inside, matvecs, complete = zip(*runs, strict=True)
    spread = (min(matvecs), max(matvecs))
    return Measured(float(np.median(errors)), float(np.mean(inside)), spread, sum(complete))


def trace_once(cell, seed):
    P = problem(cell.problem)
    estimate = mf.trace(P.A, method=cell.method, max_matvecs=cell.cost, seed=seed)
    return scored(estimate, P.trace)


def diagonal_once(cell, seed):
    P = problem(cell.problem)
    estimate = mf.diagonal(P.A, method=cell.method, max_matvecs=cell.cost, seed=seed)
    return scored(estimate, P.diagonal)


def sum_once(cell, seed):
    f = FUNCTIONS[cell.method]
    num_probes, num_steps = cell.cost
    estimate = mf.trace_function(
        problem(cell.problem).A,
        cell.method if cell.method in ("log", "inverse", "sqrt") else f,
        num_probes=num_probes,
        num_steps=num_steps,
        seed=seed,
    )
    return scored(estimate, float(np.sum(f(spectrum(cell.problem)))))


def scored(estimate, exact):
    """Relative error, fraction of entries inside their intervals, matvecs, and False."""
    low, high = estimate.interval()
    error = np.linalg.norm(estimate.value - exact) / np.linalg.norm(exact)
    return error, np.mean((low <= exact) & (exact <= high)), estimate.num_matvecs, False


def eigen_once(cell, seed):
    """Matvecs to ten (eleven) pairs of a diagonal operator, and whether all were found."""
    values, k, which = eigenproblem(cell.problem)
    options = {}
    if cell.cost is not None:
        options["block_size"], options["num_vectors"] = cell.cost
    options["verify"] = cell.method == "verified"
    A = sp.diags_array(values).tocsr()
    result = mf.eigsh(A, k, which=which, seed=seed, **options)
    size = np.abs(values) if which == "LM" else values
    found = np.abs(result.values) if which == "LM" else result.values
    missing = np.abs(found - np.sort(size)[::-1][:k]).max() / np.abs(values).max()
    complete = bool(missing < 1e-5 and result.converged.all())
    return result.num_matvecs, True, result.num_matvecs, complete


def eigenproblem(name):
    if name == "hypercube":
        return hypercube_spectrum(10), 11, "LA"
    return spectrum(name), 10, "LM"


def measure_all(cells, say, num_seeds=SEEDS):
    """Measure all cells with a few processes, and report the progress in order."""
    cells, results = list(cells), {}
    with ProcessPoolExecutor(WORKERS) as pool:
        for found in pool.map(measure, cells, [num_seeds] * len(cells)):
            cell = cells[len(results)]
            results[cell] = found
            say(f"{len(results)}/{len(cells)} {cell}: {found.median:.3g}")
    return results


def compared(measured, reference):
    """Format 'ours / reference', with a mark if the ratio is too large."""
    if reference is None:
        return f"{measured.median:.1e}"
    mark = " **above**" if too_large(measured, reference) else ""
    ratio = measured.median / reference
    return f"{measured.median:.1e} / {reference:.1e} ({ratio:.2f}){mark}"


def too_large(measured, reference):
    return reference is not None and measured.median > max(ALLOWED * reference, ROUNDING)


def covered(measured):
    if measured.median < ROUNDING:
        return "(rounding)"
    return f"{measured.coverage:.2f}" + ("" if measured.covers else " **below**")


def error_tables(report, title, kind, references):
    """Tables of medians and coverage, and a third of the marked cells over more seeds."""
    targets = {
        Cell(kind, name, method, cost): reference
        for (name, cost), row in references.items()
        for method, reference in row.items()
    }
    found = measure_all(targets, say)
    methods = list(dict.fromkeys(cell.method for cell in targets))

    def rows(text):
        for name, cost in references:
            cells = [Cell(kind, name, method, cost) for method in methods]
            yield [name, cost, *[text(cell) if cell in targets else "" for cell in cells]]

    header = ["problem", "cost", *methods]
    report.table(
        f"{title}: ours / reference (ratio), {SEEDS} seeds",
        header,
        list(rows(lambda cell: compared(found[cell], targets[cell]))),
    )
    report.table(
        f"{title}: coverage of nominal 95 % intervals",
        header,
        list(rows(lambda cell: covered(found[cell]))),
    )
    marked = [c for c in targets if too_large(found[c], targets[c]) or not found[c].covers]
    if not marked:
        return
    again = measure_all(marked, say, MORE_SEEDS)
    report.table(
        f"{title}: marked cells again, {MORE_SEEDS} seeds",
        ["cell", "ours / reference", "coverage"],
        [[cell, compared(m, targets[cell]), covered(m)] for cell, m in again.items()],
    )


def eigen_tables(report):
    found = measure_all([Cell("eigsh", name, "to residual", size) for name, size in EIGEN], say)
    rows = []
    for (cell, measured), reference in zip(found.items(), EIGEN.values(), strict=True):
        ratio = measured.median / reference
        mark = " **above**" if ratio > ALLOWED_MATVECS else ""
        least, most = measured.matvecs
        name, (block, vectors), matvecs = cell.problem, cell.cost, f"{measured.median:.0f}"
        complete = f"{measured.complete}/{SEEDS}"
        seeds = [f"{least} to {most}", complete]
        rows.append([name, block, vectors, matvecs, reference, f"{ratio:.2f}{mark}", *seeds])
    report.table(
        f"Matvecs to residual 1e-6 ||A||, ten largest |eigenvalues|, verify=False, {SEEDS} seeds",
        ["problem", "block", "vectors", "matvecs", "reference", "ratio", "range", "complete"],
        rows,
    )
    found = measure_all([Cell("eigsh", name, "verified", size) for name, size in COMPLETE], say)
    rows = []
    for cell, measured in found.items():
        complete = f"{measured.complete}/{SEEDS}"
        complete += "" if measured.complete == SEEDS else " **below**"
        options = "defaults" if cell.cost is None else "block {}, vectors {}".format(*cell.cost)
        reference = COMPLETE[cell.problem, cell.cost] or ""
        rows.append([cell.problem, options, complete, f"{measured.median:.0f}", reference])
    report.table(
        "Complete lists from the verified search",
        ["problem", "options", "complete", "matvecs", "reference"],
        rows,
    )


def say(text):
    print(f"  {text}", flush=True)


def run(report):
    error_tables(report, "Trace, relative error", "trace", TRACE)
    error_tables(report, "Diagonal, relative 2-norm error", "diagonal", DIAGONAL)
    error_tables(report, "Sums over the spectrum, cost (probes, steps)", "sum", SUMS)
    eigen_tables(report)
