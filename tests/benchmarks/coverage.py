"""Coverage of 95 % intervals: operators, functions, probe kinds and numbers of probes.

Every cell counts how many of its runs have an interval that contains the exact value. Limits of a
cell's coverage are those of Clopper and Pearson. Runs over disjoint ranges of the probes of one
seed are independent, and the intervals of the first k probes of a run are those of a run with k
probes, so that the product's own rule (``matfree.results.intervals.mean_error``) is applied to
parts of longer runs.
"""

import os
import warnings
from typing import NamedTuple

import numpy as np
import scipy.stats
from coverage_problems import large, operators

import matfree as mf
from matfree.results.intervals import mean_error, student_quantile

QUICK = os.environ.get("MATFREE_BENCH") == "quick"
RUNS = 6 if QUICK else 400
PROBES = (2, 3, 4, 6, 8, 16, 32)
KINDS = ("rademacher", "gaussian", "sphere")
FUNCTIONS = {"exp": np.exp, "log": np.log, "inverse": lambda x: 1 / x}
CONDITION = 100.0  # of the operators of log and inverse, so that 60 steps leave no bias
SLACK = 1e-9  # relative to the sum of |a_ij|: rounding errors are no misses


class Cell(NamedTuple):
    """The runs of one operator, method and number of probes."""

    row: tuple
    problem: str
    hits: int
    runs: int
    width: float
    """The mean half-width, relative to that of another interval (or nan)."""

    @property
    def coverage(self):
        return self.hits / self.runs

    @property
    def limits(self):
        """The 95 % limits of Clopper and Pearson."""
        found = scipy.stats.binomtest(self.hits, self.runs).proportion_ci()
        return found.low, found.high


def chosen():
    names = list(operators(40).items())[:: 9 if QUICK else 1]
    return dict(names) if QUICK else operators()


def cell(row, problem, centers, halves, references, exact, slack):
    hits = np.abs(np.asarray(centers).real - exact) <= np.asarray(halves) + slack
    width = np.mean(halves) / np.mean(references) if np.mean(references) > slack else np.nan
    return Cell(row, problem, int(hits.sum()), len(hits), float(width))


def trace_cells():
    """Hutchinson's trace, from the first k probes of runs over 32."""
    for name, A in chosen().items():
        exact, slack = np.trace(A).real, SLACK * np.abs(A).sum()
        if A.dtype == np.float32:
            slack *= 1e3
        kinds = (*KINDS, "z4") if np.iscomplexobj(A) else KINDS
        for kind in kinds:
            runs = [
                mf.trace(A, num_probes=PROBES[-1], first_probe=1000 * s, seed=1, kind=kind)
                for s in range(RUNS)
            ]
            for k in PROBES:
                yield cell((kind, k), name, *of_first(runs, k, len(A)), exact, slack)


def of_first(runs, k, size):
    """The means, half-widths and Student's half-widths of the first k probes of every run."""
    centers, halves, students = [], [], []
    for run in runs:
        samples, deviations = run.samples[:k], run.deviations
        if deviations is not None:
            deviations = deviations[: k - (len(run.samples) - len(deviations))]
        for found, given in ((halves, deviations), (students, None)):
            error = mean_error(samples, given, kind=run.kind, size=size)
            found.append(student_quantile(0.95, error.degrees_of_freedom) * error.stderr)
        centers.append(samples.mean())
    return centers, halves, students


class Part(NamedTuple):
    """The probes of one run among those of a longer one."""

    samples: np.ndarray
    deviations: np.ndarray
    kind: str


def function_cells():
    """Traces of functions, from parts of one long run each."""
    most = 16
    for name, A in chosen().items():
        values = np.linalg.eigvalsh(A.astype(np.result_type(A, np.float64)))
        spread = values[-1] - values[0] or 1.0
        for f, function in FUNCTIONS.items():
            shift = -values[0] + spread / CONDITION if f != "exp" else 0.0
            scale = 4 / spread if f == "exp" else 1.0
            B = (scale * (A + shift * np.eye(len(A)))).astype(A.dtype)
            exact = function(scale * (values + shift)).sum()
            for kind in ("rademacher", "sphere"):
                long = mf.trace_function(
                    B, f, num_probes=most * RUNS, num_steps=min(60, len(A)), seed=2, kind=kind
                )
                parts = [
                    Part(long.samples[part], long.deviations[part], kind)
                    for part in (slice(most * s, most * s + most) for s in range(RUNS))
                ]
                slack = long.bias if np.isfinite(long.bias) else 0.0
                for k in (2, 4, 8, most):
                    yield cell((f, kind, k), name, *of_first(parts, k, len(A)), exact, slack)


def other_cells():
    """Estimates whose intervals come from a complete run each."""
    problems = list(chosen().items())
    for name, A in problems:
        exact, slack = np.trace(A).real, SLACK * np.abs(A).sum()
        if A.dtype == np.float32 or name.startswith("diagonal"):
            continue
        for method in ("hutch++", "xtrace", "deflated"):
            for k in (4, 8, 16):
                if k >= len(A):
                    continue
                runs = [
                    mf.trace(A, method=method, num_probes=k, eigenpairs=2, seed=s)
                    for s in range(RUNS)
                ]
                yield of_runs((method, "", k), name, runs, exact, slack)
        norm = np.linalg.norm(A)
        for kind in ("rademacher", "gaussian"):
            for k in (2, 4, 8, 16, 32):
                runs = [mf.frobenius_norm(A, num_probes=k, kind=kind, seed=s) for s in range(RUNS)]
                yield of_runs(("frobenius_norm", kind, k), name, runs, norm, SLACK * norm)
        singular = np.abs(np.linalg.eigvalsh(A))
        for k in (4, 8):
            runs = [mf.schatten_norm(A, 1, num_probes=k, num_steps=30, seed=s) for s in range(RUNS)]
            yield of_runs(
                ("schatten_norm, p = 1", "rademacher", k), name, runs, singular.sum(), slack
            )


def of_runs(row, problem, runs, exact, slack):
    centers = [run.value for run in runs]
    halves = [float(run.half_width()) for run in runs]
    return cell(row, problem, centers, halves, [0.0], exact, slack)


def stopping_cells():
    """Traces with a tolerance; runs that end at the budget count with their last interval."""
    runs_each = max(3, RUNS // 2)
    for name, (A, exact) in list(large().items())[:: 6 if QUICK else 1]:
        for rtol in (0.3, 0.2, 0.1, 0.05):
            for kind in ("rademacher", "gaussian"):
                runs = [
                    mf.trace(A, rtol=rtol, max_matvecs=1000, kind=kind, seed=s)
                    for s in range(runs_each)
                ]
                found = of_runs((kind, rtol), name, runs, exact, 0.0)
                yield found._replace(width=float(np.mean([run.num_matvecs for run in runs])))


def count_cells():
    """Counts, masses and bands of spectral densities, and ``eigenvalue_count``."""
    for name, A in chosen().items():
        values = np.linalg.eigvalsh(A.astype(np.result_type(A, np.float64)))
        low = values[0] + 0.62 * (values[-1] - values[0])  # outliers are above
        exact = float(np.sum(values >= low))
        width = 0.02
        for k in (1, 2, 4, 8):
            counts, hits = [], np.zeros(4, dtype=int)
            for s in range(RUNS):
                options = {"num_probes": k, "num_steps": 30, "seed": s}
                if k <= 2:
                    counts.append(mf.eigenvalue_count(A, low, np.inf, **options).interval())
                hits += band_hits(mf.spectral_density(A, **options), values, low, width)
            if counts:
                inside = sum(least - 1e-9 <= exact <= most + 1e-9 for least, most in counts)
                yield Cell(("eigenvalue_count", k), name, inside, RUNS, np.nan)
            for method, found in zip(BANDS, hits, strict=True):
                yield Cell((method, k), name, int(found), RUNS, np.nan)


BANDS = ("mass_between", "mass_below", "cdf_band", "density_band")


def band_hits(density, values, low, width):
    """Whether each of the intervals of a density contains the exact number."""
    n, slack = len(values), 1e-9
    above, below = float(np.mean(values >= low)), float(np.mean(values < low))
    mass, rest = density.mass_between(low, np.inf).interval(), density.mass_below(low).interval()
    band = [float(x[0]) for x in density.cdf_band([low])]
    sigma = width * ((density.support[1] - density.support[0]) or abs(density.support[1]) or 1.0)
    point = values[-1]  # an outlier, if there is one
    smooth = float(
        np.mean(np.exp(-0.5 * ((point - values) / sigma) ** 2)) / sigma / (2 * np.pi) ** 0.5
    )
    shape = [float(x[0]) for x in density.density_band([point], width)]
    pairs = ((mass, above), (rest, below), (band, float(np.mean(values <= low))), (shape, smooth))
    return np.array([a - slack <= x <= b + slack * (1 + n) for (a, b), x in pairs], dtype=int)


def table(report, title, header, cells, limit, last="width / Student's"):
    """One row per setting: pooled coverage, and the cells with the lowest coverage.

    The last column is the geometric mean of ``Cell.width``.
    """
    rows = {}
    for found in cells:
        rows.setdefault(found.row, []).append(found)
    lines = []
    for row, group in rows.items():
        hits, runs = sum(c.hits for c in group), sum(c.runs for c in group)
        worst = min(group, key=lambda c: c.coverage)
        low, high = worst.limits
        least = limit(row)
        below = sum(c.coverage < least for c in group)
        widths = [c.width for c in group if c.width > 0]
        width = f"{np.exp(np.mean(np.log(widths))):.2f}" if widths else ""
        lines.append(
            [
                *row,
                len(group),
                f"{100 * hits / runs:.1f}",
                f"{100 * worst.coverage:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                worst.problem,
                f"{below} below {100 * least:g}",
                width,
            ]
        )
    columns = ["cells", "coverage %", "lowest (95 % limits)", "of", "low cells", last]
    report.table(title, [*header, *columns], lines)


def fixed(row):
    """The coverage that is required of every cell with this number of probes."""
    return 0.935 if row[-1] >= 8 else 0.90


def run(report):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        tables(report)


def tables(report):
    many = len(chosen())
    report.say(
        f"\n{RUNS} runs per cell, {many} operators with n up to 100; see coverage_problems.py."
    )
    header = ["probes", "number"]
    table(report, "Coverage of `trace`", header, trace_cells(), fixed)
    header = ["function", "probes", "number"]
    table(report, "Coverage of `trace_function`", header, function_cells(), fixed)
    header = ["method", "probes", "number"]
    table(report, "Coverage of other estimates", header, other_cells(), fixed)
    header = ["method", "number"]
    table(report, "Coverage of counts, masses and bands", header, count_cells(), lambda row: 0.95)
    title = f"Coverage of `trace` with a tolerance, n = 4000, {max(3, RUNS // 2)} runs per cell"
    table(report, title, ["probes", "rtol"], stopping_cells(), lambda row: 0.925, "matvecs")
