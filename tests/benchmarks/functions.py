"""Functions of operators: reliability of the error of f(A) b, and traces with a Krylov space."""

import os
import warnings

import numpy as np
import scipy.sparse as sp
from support.matrices import with_spectrum

import matfree as mf

QUICK = os.environ.get("MATFREE_BENCH") == "quick"
N = 60 if QUICK else 256
SEEDS = 2 if QUICK else 8
TOLERANCES = (1e-3, 1e-6, 1e-9)
ROUNDING = 1e-11  # errors below, relative to ||f(A) b||, are not compared with their estimates
BUDGET, STEPS = (40, 5) if QUICK else (400, 25)

FUNCTIONS = {
    "exp": (np.exp, "exp"),
    "log": (np.log, "log"),
    "sqrt": (np.sqrt, "sqrt"),
    "inverse sqrt": (lambda x: 1 / np.sqrt(x), "inverse sqrt"),
    "exp(-5i x)": (lambda x: np.exp(-5j * x), lambda x: np.exp(-5j * x)),
}


def spectra():
    """Ten spectra of positive definite matrices, of well and badly conditioned ones."""
    rng = np.random.default_rng(0)
    G = rng.standard_normal((N, 2 * N))
    k = np.arange(1.0, N + 1)
    bulk = np.abs(0.005 + 0.02 * rng.standard_normal(N - 10)) + 1e-3
    return {
        "uniform": np.linspace(0.01, 10.0, N),
        "condition 1e6": np.geomspace(1e-6, 1.0, N),
        "five outliers": np.r_[np.linspace(0.01, 1.0, N - 5), 10, 12, 15, 18, 20],
        "Laplacian": 2 - 2 * np.cos(np.pi * k / (N + 1)),
        "Wishart": np.linalg.eigvalsh(G @ G.T / (2 * N)),
        "1 / i": 1 / k,
        "two clusters": np.r_[np.linspace(0.9, 1.1, N // 2), np.linspace(9, 11, N - N // 2)],
        "network": np.r_[20, 15, 10, 8, 5, 3, 2, 1, 0.5, 0.5, bulk],
        "cubic": np.linspace(0.01, 1.0, N) ** 3,
        "one point": np.full(N, 2.0),
    }


def reliability():
    """Per function (runs, within the estimate, at most 100 times the error, matvecs)."""
    rows = []
    for name, (dense, f) in FUNCTIONS.items():
        runs = within = tight = matvecs = 0
        for spectrum in spectra().values():
            for seed in range(SEEDS):
                b = np.random.default_rng(seed).standard_normal(N)
                exact = dense(spectrum) * b
                for rtol in TOLERANCES:
                    found = mf.apply_function(sp.diags_array(spectrum), f, b, rtol=rtol)
                    error = np.linalg.norm(found.values - exact)
                    runs, matvecs = runs + 1, matvecs + found.num_matvecs
                    within += error <= found.error
                    rounded = error <= ROUNDING * np.linalg.norm(exact)
                    tight += rounded or found.error <= 100 * error
        share = [f"{100 * part / runs:.1f} %" for part in (within, tight)]
        rows.append((name, runs, *share, f"{matvecs / runs:.0f}"))
    return rows


def chain(num_spins):
    """The Hamiltonian of the Ising chain in a transverse field, dense."""
    x, z = np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])

    def at(operator, site):
        return np.kron(np.kron(np.eye(2**site), operator), np.eye(2 ** (num_spins - site - 1)))

    H = -sum(at(x, i) for i in range(num_spins))
    return H - sum(at(z, i) @ at(z, i + 1) for i in range(num_spins - 1))


def traces():
    """(name, matrix, name of f, f)"""
    size = 64 if QUICK else 512
    rng = np.random.default_rng(1)
    H = chain(6 if QUICK else 9)
    points = rng.random((size, 2))
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    K = np.exp(-squares / 0.18) + 1e-2 * np.eye(size)
    G = rng.standard_normal((size, 2 * size))
    wishart = G @ G.T / (2 * size)
    bulk = np.abs(0.005 + 0.02 * rng.standard_normal(size - 10))
    network = with_spectrum(np.r_[50, 30, 20, 10, 5, 3, 2, 1, 0.5, 0.5, bulk] + 1e-3)
    return [
        ("tr exp(-3 H), Ising chain", -3 * H, "exp", np.exp),
        ("tr exp(-0.6 H), Ising chain", -0.6 * H, "exp", np.exp),
        ("tr sqrt, 1 / i", with_spectrum(1 / np.arange(1.0, size + 1)), "sqrt", np.sqrt),
        ("log det, kernel + 0.01 I", K, "log", np.log),
        ("tr sqrt, kernel + 0.01 I", K, "sqrt", np.sqrt),
        ("log det, network + 0.001 I", network, "log", np.log),
        ("log det, Wishart + 0.01 I", wishart + 0.01 * np.eye(size), "log", np.log),
        ("tr inverse, Wishart + 0.1 I", wishart + 0.1 * np.eye(size), "inverse", np.reciprocal),
        ("tr exp, condition 3e3", with_spectrum(np.geomspace(1e-3, 3, size)), "exp", np.exp),
        ("tr sqrt, uniform", with_spectrum(np.linspace(0.1, 2, size)), "sqrt", np.sqrt),
    ]


def krylov_traces():
    """Per problem the root mean square errors of the methods, and the coverage of intervals."""
    rows = []
    for name, A, f, dense in traces():
        exact, cells, errors = dense(np.linalg.eigvalsh(A)).sum(), [], {}
        for method in ("slq", "krylov", "auto"):
            options = {"method": method, "max_matvecs": BUDGET, "num_steps": STEPS}
            found = [mf.trace_function(A, f, seed=s, **options) for s in range(3 * SEEDS)]
            inside = sum(low <= exact <= high for low, high in (e.interval() for e in found))
            errors[method] = np.sqrt(np.mean([(e.value / exact - 1) ** 2 for e in found]))
            cells.append(f"{errors[method]:.1e} ({inside} of {len(found)})")
        rows.append((name, *cells, f"{errors['auto'] / errors['slq']:.2g}"))
    return rows


def run(report):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        header = ("function", "runs", "error within", "estimate <= 100 errors", "matvecs per run")
        title = f"f(A) b: the estimated error (n = {N}, ten spectra, rtol 1e-3, 1e-6 and 1e-9)"
        report.table(title, header, reliability())
        header = ("problem", "SLQ", "krylov", "auto", "auto / SLQ")
        title = f"tr f(A) with {BUDGET} matvecs: relative error (intervals that hold)"
        report.table(title, header, krylov_traces())
