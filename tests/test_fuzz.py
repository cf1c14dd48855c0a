"""Public functions called with random operators and arguments, sensible ones and others.

Whatever the arguments, a call returns a result whose claims hold, or raises an exception that says
what is wrong with them: a ValueError, a TypeError or one of the library's own. MATFREE_FUZZ is the
number of calls of a longer search.
"""

import dataclasses
import math
import os
import warnings

import numpy as np
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import matfree as mf

CALLS = int(os.environ.get("MATFREE_FUZZ", "150"))
# MemoryError is the answer to memory= below what one vector needs.
ALLOWED = (ValueError, TypeError, mf.MatfreeError, MemoryError, OverflowError)

SIZES = st.sampled_from([1, 2, 3, 5, 8, 17, 40])
DTYPES = st.sampled_from([np.float64, np.float32, np.complex128, np.complex64, np.int64])
# Decimal exponents, as fractions of the largest one of the data type.
MAGNITUDES = st.sampled_from([0.0] * 9 + [-0.03, 0.03, -0.95, -0.5, 0.5, 0.92])


def spectrum(shape, n, rng):
    return {
        "random": lambda: rng.standard_normal(n),
        "zero": lambda: np.zeros(n),
        "identity": lambda: np.ones(n),
        "rank one": lambda: np.r_[1.0, np.zeros(n - 1)],
        "repeated": lambda: np.repeat([3.0, -1.0], [n // 2, n - n // 2]),
        "decaying": lambda: 2.0 ** -np.arange(n),
        "positive": lambda: rng.random(n) + 0.1,
    }[shape]()


@st.composite
def matrices(draw):
    """A dense matrix, most often Hermitian."""
    n, dtype = draw(SIZES), draw(DTYPES)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = draw(
        st.sampled_from(
            ["random", "zero", "identity", "rank one", "repeated", "decaying", "positive"]
        )
    )
    G = rng.standard_normal((n, n))
    if np.issubdtype(dtype, np.complexfloating):
        G = G + 1j * rng.standard_normal((n, n))
    Q = np.eye(n) if draw(st.booleans()) else np.linalg.qr(G)[0]
    limits = np.iinfo(dtype) if dtype is np.int64 else np.finfo(dtype)
    scale = 10.0 ** (draw(MAGNITUDES) * math.log10(limits.max))
    A = (Q * spectrum(shape, n, rng)) @ Q.conj().T * scale
    A = (A + A.conj().T) / 2
    flaw = draw(st.sampled_from([None] * 20 + ["rectangular", "skew", "nan"]))
    if flaw == "rectangular":
        A = A[: max(1, n - 1)]
    elif flaw == "skew":
        A = A + np.triu(G, 1) * (abs(A).max() or 1)
    elif flaw == "nan":
        A = A.copy()
        A[-1, -1] = np.nan
    with np.errstate(invalid="ignore"):
        return A.astype(dtype)


@st.composite
def operators(draw):
    """A matrix, and one of the forms in which it is handed to the library."""
    A = draw(matrices())
    form = draw(st.sampled_from(["dense", "dense", "csr", "function", "scaled", "list"]))
    if form == "csr":
        return A, sp.csr_array(A)
    if form == "function":
        return A, mf.aslinearoperator(
            lambda x: A @ x, shape=A.shape, like=np.zeros(1, np.result_type(A.dtype, np.float32))
        )
    if form == "scaled":
        return A, mf.aslinearoperator(A) * 0.5 + mf.aslinearoperator(A) * 0.5
    return A, A.tolist() if form == "list" else A


def pick(usual, unusual=()):
    """One of the usual values, and once in twenty draws or so one of the others."""
    return st.sampled_from([*usual] * (20 * len(unusual) // len(usual) + 1) + [*unusual])


COUNT = pick([None, 1, 2, 3, 7, 12, 30], [0, -1, 2.5, "ten", 10**30, True, np.int64(4)])
TOLERANCE = pick([None, 0.5, 0.05, 1e-3, 1e-9], [0, -1.0, np.nan, np.inf, "small", 1e-300])
BUDGET = pick([None, 20, 100, 1000], [0, 1, 2, 5, -3, 1.5, 10**30, "all"])
SEED = pick([0, 1, 7], [2**64 - 1, -1, 2**64, 1.5, "seed"])
KIND = pick(["rademacher", "gaussian", "sphere", "z4"], ["normal", None, 3])
STEPS = pick([None, 1, 2, 5, 12, 40], [0, -1, 10**30, "all", 2.5])
K = pick([1, 2, 3, 6], [0, -1, 40, 41, 10**9, 1.0, None, "all"])
REORTHOGONALIZE = pick(["none", "half", "full"], ["all", None])

SAMPLING = {
    "num_probes": COUNT,
    "rtol": TOLERANCE,
    "atol": TOLERANCE,
    "max_matvecs": BUDGET,
    "block_size": COUNT,
    "seed": SEED,
    "kind": KIND,
    "first_probe": pick([0, 5], [-1, 2**63, 1.5, None]),
}
QUADRATURE = {
    **SAMPLING,
    "num_steps": STEPS,
    "reorthogonalize": REORTHOGONALIZE,
    "memory": pick([None, 10**6], [0, 10, -1, "1 GB"]),
}
BRACKETED = {**QUADRATURE, "spectrum": pick([None, (0, 4), (-5.0, 5.0)], [(1, 0), (0,), "all"])}
PAIRS = {
    "k": K,
    "rtol": TOLERANCE,
    "block_size": COUNT,
    "num_vectors": COUNT,
    "max_matvecs": BUDGET,
    "verify": st.booleans(),
    "seed": SEED,
}
EIGENPAIRS = pick([0, 1, 3, 10], [-1, 50, None, 1.5, "all"])
METHODS = ["hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"]
DIAGONALS = ["hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"]
PARTITION = st.sampled_from(
    [{"all": slice(0, 3)}, {"a": slice(0, 1), "b": slice(1, 2)}, {}, {"a": slice(0, 99)}, {"a": 3}]
)
NUMBER = pick([-1.0, 0.0, 0.5, 2.0], [np.nan, np.inf, -np.inf, "low", None])
FUNCTIONS = pick(
    ["log", "exp", "inverse", "sqrt", np.exp, lambda x: 1 / (x - 0.1j)],
    ["nothing", lambda x: 1.0, lambda x: x[:1], np.log, lambda x: x * np.nan, None],
)

CALLS_BY_NAME = {
    "trace": (mf.trace, {**SAMPLING, "method": pick(METHODS, ["all"]), "eigenpairs": EIGENPAIRS}),
    "diagonal": (
        mf.diagonal,
        {**SAMPLING, "method": pick(DIAGONALS, ["all"]), "eigenpairs": EIGENPAIRS},
    ),
    "block_traces": (mf.block_traces, {**SAMPLING, "partition": PARTITION, "joint": st.booleans()}),
    "block_diagonals": (
        mf.block_diagonals,
        {**SAMPLING, "partition": PARTITION, "joint": st.booleans(), "method": pick(DIAGONALS)},
    ),
    "frobenius_norm": (mf.frobenius_norm, SAMPLING),
    "schatten_norm": (mf.schatten_norm, {**BRACKETED, "p": pick([1, 2, 3.5, 0.5], [0, -1, "nuc"])}),
    "logdet": (mf.logdet, BRACKETED),
    "trace_function": (mf.trace_function, {**BRACKETED, "f": FUNCTIONS}),
    "eigenvalue_count": (mf.eigenvalue_count, {**QUADRATURE, "low": NUMBER, "high": NUMBER}),
    "spectral_density": (
        mf.spectral_density,
        {
            "method": pick(["lanczos", "kpm"], ["all"]),
            "num_steps": STEPS,
            "num_probes": COUNT,
            "eigenpairs": EIGENPAIRS,
            "block_size": COUNT,
            "reorthogonalize": REORTHOGONALIZE,
            "seed": SEED,
            "kind": KIND,
            "measure_noise": st.booleans(),
        },
    ),
    "eigsh": (mf.eigsh, {**PAIRS, "which": pick(["LM", "LA", "SA", "BE", "SM"], ["XX", None])}),
    "svds": (mf.svds, PAIRS),
    "solve": (
        lambda A, **options: mf.solve(A, np.ones(np.shape(A)[0]), **options),
        {
            "method": pick(["auto", "cg", "minres", "lsmr"], ["gmres"]),
            "shift": NUMBER,
            "rtol": TOLERANCE,
            "lower": NUMBER,
            "max_matvecs": BUDGET,
            "seed": SEED,
        },
    ),
    "low_rank": (
        mf.low_rank,
        {
            "rank": K,
            "rtol": TOLERANCE,
            "positive": pick([None, False], [True]),
            "max_matvecs": BUDGET,
            "block_size": COUNT,
            "seed": SEED,
        },
    ),
    "power_iteration": (
        mf.power_iteration,
        {"k": K, "rtol": TOLERANCE, "max_steps": COUNT, "seed": SEED},
    ),
    "check_operator": (mf.check_operator, {"seed": SEED, "tolerance": TOLERANCE}),
}
REQUIRED = {"partition", "p", "f", "low", "high"}


@st.composite
def calls(draw):
    """A function, an operator and arguments, of which some are left at their defaults."""
    name = draw(st.sampled_from(list(CALLS_BY_NAME)))
    A, operator = draw(operators())
    function, choices = CALLS_BY_NAME[name]
    given_names = [key for key in choices if key in REQUIRED or draw(st.integers(0, 3)) == 0]
    if "num_probes" in given_names and draw(st.integers(0, 9)):  # which excludes tolerances
        given_names = [key for key in given_names if key not in ("rtol", "atol", "max_matvecs")]
    return name, function, A, operator, {key: draw(choices[key]) for key in given_names}


@settings(
    max_examples=CALLS,
    deadline=None,
    derandomize="MATFREE_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(calls())
def test_every_call_returns_what_holds_or_says_what_is_wrong(call):
    name, function, A, operator, options = call
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        warnings.filterwarnings("ignore", message=r"lower=.* is no lower bound")
        try:
            result = function(operator, **options)
        except ALLOWED as error:
            message = str(error)
            result = None
    if result is None:
        assert message
        return
    budget = options.get("max_matvecs")
    for one in result.values() if isinstance(result, dict) else [result]:
        assert budget is None or one.num_matvecs <= budget
        assert str(one)
        assert repr(one)
    CLAIMS.get(name, estimate_claims)(result, A, options)


def estimate_claims(result, A, options):
    """A converged estimate is finite, with a finite interval, from at least one matvec."""
    for estimate in result.values() if isinstance(result, dict) else [result]:
        if np.all(estimate.converged):
            assert np.all(np.isfinite(estimate.value))
            assert estimate.num_matvecs > 0
            if options.get("rtol") is not None or options.get("atol") is not None:
                assert np.all(np.isfinite(estimate.half_width()))
            assert not np.any(np.isnan(estimate.stderr))
            low, high = estimate.interval()
            assert np.all(low <= high)


def density_claims(result, A, options):
    assert np.all(np.isfinite(result.cdf(np.array([-1.0, 0.0, 1.0]))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.ConvergenceWarning)
        assert np.isfinite(result.trace_function(np.abs).value)
    low, high = result.mass_between(-0.5, 0.5).interval()
    assert 0 <= low <= high <= 1


def normalized(result, A):
    """The matrix and its pairs without the magnitude of the entries, and a bound of rounding."""
    A = np.asarray(A, dtype=np.result_type(A.dtype, np.float32))
    eps = 100 * float(np.finfo(A.dtype).eps) * max(1.0, len(A) ** 0.5)
    unit = np.abs(A).max() or 1.0
    pairs = dataclasses.replace(result, values=result.values / unit, norm=result.norm / unit)
    return A / unit, pairs, eps


def eigen_claims(result, A, options):
    """The residuals are those of the matrix, and verified eigenvalues are complete."""
    A, result, eps = normalized(result, A)
    scale = np.linalg.norm(A, 2)
    true = np.linalg.norm(A @ result.vectors - result.vectors * result.values, axis=0)
    allowed = (result.residuals + eps) * max(result.norm, scale)
    assert np.all(true <= allowed), (true, allowed)
    if getattr(result, "verified", False) and result.converged.all():
        exact = np.linalg.eigvalsh(A)
        order = {
            "LM": np.argsort(-abs(exact)),
            "LA": np.argsort(-exact),
            "SA": np.argsort(exact),
        }.get(result.which)
        if order is not None:
            expected = exact[order][: len(result.values)]
            found = result.values
            if result.which == "LM":
                expected, found = abs(expected), abs(found)
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=(result_rtol(options) + eps) * scale
            )


def singular_claims(result, A, options):
    A, result, eps = normalized(result, A)
    scale = np.linalg.norm(A, 2)
    true = np.linalg.norm(A @ result.right - result.left * result.values, axis=0)
    assert np.all(true <= (result.residuals + eps) * max(result.norm, scale))
    if result.verified and result.converged.all():
        expected = np.linalg.svd(A, compute_uv=False)[: len(result.values)]
        np.testing.assert_allclose(
            result.values, expected, rtol=0, atol=(result_rtol(options) + eps) * scale
        )


def solve_claims(result, A, options):
    """The residuals are those of the solution, up to rounding, and within rtol if converged."""
    A = np.asarray(A, dtype=np.result_type(A.dtype, np.float32)).astype(np.complex128)
    values = np.asarray(result.values, dtype=np.complex128)
    b, eps = np.ones(A.shape[0]), 100 * float(np.finfo(result.values.dtype).eps)
    # Products of numbers near the limits of the range are computed without their magnitudes.
    size, length = np.abs(A).max() or 1.0, np.abs(values).max() or 1.0
    A, values = A / size, values / length
    product = A @ values * (size * length)
    growth = np.linalg.norm(A) * np.linalg.norm(values) * (size * length)
    shift = options.get("shift", 0.0)
    if shift:
        product += shift * length * values
        growth += abs(shift) * length * np.linalg.norm(values)
    true = np.linalg.norm(b - product) / np.linalg.norm(b)
    assert abs(true - result.residuals[0]) <= eps * (1 + growth / np.linalg.norm(b))
    if result.converged[0] and A.shape[0] == A.shape[1]:
        assert result.residuals[0] <= max(float(options.get("rtol", 1e-6)), 0.0)


def low_rank_claims(result, A, options):
    """The factors are orthonormal, and the error is not far beyond its estimate."""
    A = np.asarray(A, dtype=np.result_type(A.dtype, np.float32))
    unit = np.abs(A).max() or 1.0
    eps = float(np.finfo(A.dtype).eps)
    for U in (result.left, result.left if result.right is None else result.right):
        assert np.abs(U.conj().T @ U - np.eye(result.rank)).max(initial=0) <= 1e3 * eps
    right = result.left if result.right is None else result.right
    error = np.linalg.norm(A / unit - (result.left * (result.values / unit)) @ right.conj().T)
    # An estimate from two vectors may miss most of the error.
    assert error <= 50 * result.error_frobenius / unit + 1e5 * eps * np.linalg.norm(A / unit)


def result_rtol(options):
    """An eigenvalue and the one that it may be mistaken for have residuals of up to rtol each."""
    rtol = options.get("rtol")
    return 2 * (1e-4 if rtol is None else max(float(rtol), 1e-6))


def report_claims(result, A, options):
    assert result.num_matvecs > 0


CLAIMS = {
    "spectral_density": density_claims,
    "eigsh": eigen_claims,
    "power_iteration": lambda result, A, options: None,
    "low_rank": low_rank_claims,
    "solve": solve_claims,
    "svds": singular_claims,
    "check_operator": report_claims,
}
