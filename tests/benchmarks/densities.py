"""Distance between estimated and exact spectral densities for a number of matvecs."""

import sys
from pathlib import Path

import numpy as np
import scipy.sparse

import matfree as mf

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.matrices import laplacian_2d, laplacian_2d_spectrum, nn_spectrum, wishart
from support.measures import relative_distance

SEEDS = 30
PAIRS, MATVECS_FOR_PAIRS = 10, 60

CELLS = {
    "lap2d": ((1, 16), (4, 16), (16, 16), (4, 64), (16, 64)),
    "wishart": ((1, 16), (4, 16), (16, 16), (4, 64), (16, 64)),
    "nn": ((1, 64), (4, 64), (16, 64)),
}

TARGETS = {
    ("lap2d", "atoms"): (2.2e-2, 1.9e-2, 1.8e-2, 6.3e-3, 5.0e-3),
    ("lap2d", "spread"): (1.1e-2, 5.7e-3, 4.3e-3, 4.9e-3, 3.0e-3),
    ("lap2d", "kpm"): (9.1e-3, 5.3e-3, 4.0e-3, 4.8e-3, 2.9e-3),
    ("wishart", "atoms"): (2.0e-2, 1.6e-2, 1.5e-2, 6.1e-3, 4.3e-3),
    ("wishart", "spread"): (1.1e-2, 5.7e-3, 3.6e-3, 5.1e-3, 2.8e-3),
    ("wishart", "kpm"): (1.0e-2, 5.3e-3, 2.8e-3, 5.0e-3, 2.6e-3),
    ("nn", "atoms"): (5.4e-4, 3.7e-4, 2.3e-4),
    ("nn", "spread"): (5.4e-4, 3.7e-4, 2.3e-4),
    ("nn", "kpm"): (2.3e-3, 2.1e-3, 2.0e-3),
    ("nn", "variance reduced"): (None, 9.6e-5, 2.3e-5),
    ("nn", "deflated"): (None, 8.8e-6, 5.0e-6),
}


def problems():
    """Operators and their eigenvalues.

    The uniform distribution on a sphere is rotation invariant, so a diagonal matrix is
    equivalent to one with Haar-distributed eigenvectors.
    """
    covariance = wishart(1000, 2000)
    peaked = nn_spectrum(2000)
    return {
        "lap2d": (laplacian_2d(40), laplacian_2d_spectrum(40)),
        "wishart": (covariance, np.linalg.eigvalsh(covariance)),
        "nn": (scipy.sparse.diags_array(peaked).tocsr(), peaked),
    }


def distances(A, spectrum, num_probes, num_steps, seed, *, outliers):
    """W1 / range for every interpretation and method, from one seed."""
    options = {"num_probes": num_probes, "num_steps": num_steps, "kind": "sphere", "seed": seed}
    density = mf.spectral_density(A, **options)
    kernel = mf.spectral_density(A, method="kpm", **options)
    found = {
        "atoms": relative_distance(density, spectrum),
        "spread": relative_distance(density, spectrum, reading="spread"),
        "kpm": relative_distance(kernel, spectrum),
    }
    if outliers:
        found["variance reduced"] = relative_distance(density.variance_reduced(), spectrum)
        if num_probes > 1:
            found["deflated"] = _deflated(A, spectrum, options)
    return found


def _deflated(A, spectrum, options):
    """The deflated density, with the matvecs for the pairs subtracted from those of the probes."""
    pairs = mf.eigsh(A, PAIRS, verify=False, seed=options["seed"])
    if pairs.num_matvecs > MATVECS_FOR_PAIRS:
        raise ArithmeticError(f"the pairs took {pairs.num_matvecs} matvecs")
    num_probes = options["num_probes"]
    steps = (num_probes * options["num_steps"] - MATVECS_FOR_PAIRS) // num_probes
    density = mf.spectral_density(A, eigenpairs=pairs, **{**options, "num_steps": steps})
    return relative_distance(density, spectrum)


def distance_tables(report):
    rows = []
    for name, (A, spectrum) in problems().items():
        for cell, (num_probes, num_steps) in enumerate(CELLS[name]):
            runs = [
                distances(A, spectrum, num_probes, num_steps, seed, outliers=name == "nn")
                for seed in range(SEEDS)
            ]
            for method in runs[0]:
                median = np.median([run[method] for run in runs])
                goal = TARGETS[name, method][cell]
                rows.append(
                    [
                        f"{name}, {num_probes} probes x {num_steps}",
                        method,
                        f"{median:.1e}",
                        "-" if goal is None else f"{goal:.1e}",
                        "-" if goal is None else f"{median / goal:.2f}",
                    ]
                )
    report.table(
        f"Spectral density: Wasserstein-1 distance / range, median of {SEEDS} seeds",
        ["problem", "method", "matfree", "target", "ratio"],
        rows,
    )


def bulk(report):
    """Mean error of the distribution function around the peak at zero."""
    A, spectrum = problems()["nn"]
    x = np.linspace(-0.04, 0.4, 2001)
    truth = np.searchsorted(np.sort(spectrum), x, side="right") / len(spectrum)
    targets = {
        16: (1.6e-2, 1.1e-2),
        32: (5.7e-3, 4.2e-3),
        64: (3.3e-3, 2.8e-3),
        128: (2.7e-3, None),
    }
    rows = []
    for num_steps, pair in targets.items():
        runs = [
            mf.spectral_density(A, num_probes=4, num_steps=num_steps, kind="sphere", seed=seed)
            for seed in range(SEEDS)
        ]
        for reading, goal in zip(("atoms", "spread"), pair, strict=True):
            median = np.median([np.abs(d.cdf(x, reading=reading) - truth).mean() for d in runs])
            ratio = "-" if goal is None else f"{median / goal:.2f}"
            goal = "-" if goal is None else f"{goal:.1e}"
            rows.append([f"nn, 4 probes x {num_steps}", reading, f"{median:.1e}", goal, ratio])
    report.table(
        f"Spectral density: mean error of the distribution function in [-0.04, 0.4], {SEEDS} seeds",
        ["problem", "interpretation", "matfree", "target", "ratio"],
        rows,
    )


def coverage(report):
    rows = []
    for name, (A, spectrum) in problems().items():
        x = np.quantile(spectrum, np.linspace(0.002, 0.998, 200)) + 1e-9 * np.ptp(spectrum)
        truth = np.searchsorted(np.sort(spectrum), x, side="right") / len(spectrum)
        for num_probes, num_steps in CELLS[name]:
            covered, width = [], []
            for seed in range(SEEDS):
                density = mf.spectral_density(
                    A, num_probes=num_probes, num_steps=num_steps, kind="sphere", seed=seed
                )
                low, high = density.cdf_band(x)
                covered.append(np.mean((low <= truth) & (truth <= high)))
                width.append(np.mean(high - low))
            cell = f"{name}, {num_probes} probes x {num_steps}"
            rows.append([cell, f"{np.mean(covered):.3f}", f"{np.mean(width):.3f}", "0.95"])
    report.table(
        "Spectral density: coverage of the 95 % band of the distribution function",
        ["problem", "covered", "mean width", "target"],
        rows,
    )


def run(report):
    distance_tables(report)
    bulk(report)
    coverage(report)
