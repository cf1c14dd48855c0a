"""One call of every public algorithm, with every method that it offers, as picklable functions."""

from functools import partial

import numpy as np

import matfree as mf

LANCZOS_STEPS = 12


def start_block(A):
    """Two start vectors, of which this process takes its own rows."""
    space = getattr(A, "space", None)
    rows = slice(None) if space is None else slice(space.rows.start, space.rows.stop)
    return mf.space_like(np.zeros(1), A.shape[0]).probes(2, seed=3)[rows]


def call_lanczos(A):
    return mf.lanczos(A, start_block(A), LANCZOS_STEPS)


def call_ritz_vectors(A):
    start = start_block(A)
    T = mf.lanczos(A, start, LANCZOS_STEPS, keep_basis=False, reorthogonalize="full")
    return mf.ritz_vectors(A, T, start=start, k=2, rtol=1.0)


def call_solve(A, **options):
    return mf.solve(A, start_block(A), shift=9.0, rtol=1e-10, seed=0, **options)


def call_inverse(A):
    return mf.trace(mf.inverse(A, shift=9.0, rtol=1e-13, seed=0), num_probes=4, seed=1)


def call_least_squares(A):
    space = getattr(A, "space", None)
    rows = slice(None) if space is None else slice(space.rows.start, space.rows.stop)
    return mf.solve(A, np.linspace(1, 2, A.shape[0])[rows, None], rtol=1e-10, seed=0)


def call_exponential(A, **options):
    return mf.trace_function(A, "exp", num_steps=12, num_probes=4, seed=1, **options)


def call_apply_function(A):
    return mf.apply_function(A, "exp", start_block(A), t=[0.1, -0.1j])


def call_matrix_function(A):
    return mf.trace(mf.matrix_function(A, "exp"), num_probes=3, seed=1)


PARTITION = {"head": slice(0, 13), "tail": slice(13, 40)}

_TRACE = {
    method: partial(mf.trace, method=method, num_probes=12, seed=1)
    for method in ("hutch++", "xtrace", "xnystrace")
}
_DIAGONAL = {
    method: partial(mf.diagonal, method=method, num_probes=12, seed=1)
    for method in ("diag++", "xdiag", "xnysdiag")
}
_DENSITY = {"num_steps": 12, "num_probes": 3, "seed": 1}

SYMMETRIC = {
    "trace hutchinson": partial(mf.trace, num_probes=9, block_size=4, seed=1),
    "trace deflated": partial(mf.trace, method="deflated", num_probes=12, eigenpairs=3, seed=1),
    **{f"trace {method}": call for method, call in _TRACE.items()},
    "trace exact": partial(mf.trace, rtol=1e-9, max_matvecs=40, seed=1),
    "trace sphere": partial(mf.trace, kind="sphere", num_probes=4, seed=1),
    "diagonal hutchinson": partial(mf.diagonal, num_probes=9, seed=1),
    "diagonal gaussian": partial(mf.diagonal, num_probes=9, kind="gaussian", seed=1),
    "diagonal deflated": partial(
        mf.diagonal, method="deflated", num_probes=12, eigenpairs=3, seed=1
    ),
    **{f"diagonal {method}": call for method, call in _DIAGONAL.items()},
    "frobenius_norm": partial(mf.frobenius_norm, num_probes=6, seed=1),
    "schatten_norm": partial(mf.schatten_norm, p=3.0, num_steps=12, num_probes=4, seed=1),
    "logdet": partial(mf.logdet, num_steps=12, num_probes=4, seed=1),
    "trace_function none": call_exponential,
    "trace_function half": partial(call_exponential, reorthogonalize="half"),
    "trace_function full": partial(call_exponential, reorthogonalize="full"),
    "trace_function krylov": partial(call_exponential, method="krylov"),
    "spectral_density lanczos": partial(mf.spectral_density, **_DENSITY),
    "spectral_density kpm": partial(mf.spectral_density, method="kpm", **_DENSITY),
    "spectral_density deflated": partial(mf.spectral_density, eigenpairs=3, **_DENSITY),
    "eigenvalue_count": partial(
        mf.eigenvalue_count, low=0.0, high=3.0, num_steps=12, num_probes=4, seed=1
    ),
    "block_traces": partial(mf.block_traces, partition=PARTITION, num_probes=6, seed=1),
    "block_traces joint": partial(
        mf.block_traces, partition=PARTITION, joint=True, num_probes=6, seed=1
    ),
    "block_diagonals": partial(
        mf.block_diagonals, partition=PARTITION, joint=True, num_probes=6, seed=1
    ),
    "eigsh LM": partial(mf.eigsh, k=3, seed=0),
    "eigsh BE": partial(mf.eigsh, k=4, which="BE", block_size=1, seed=0),
    "spectral_norm": partial(mf.spectral_norm, seed=0),
    "condition_number": partial(mf.condition_number, seed=0),
    "power_iteration": partial(mf.power_iteration, k=2, rtol=1e-6, seed=0),
    "solve cg": call_solve,
    "solve minres": partial(call_solve, method="minres"),
    "solve lsmr": partial(call_solve, method="lsmr"),
    "inverse": call_inverse,
    "low_rank": partial(mf.low_rank, rank=6, seed=0),
    "low_rank indefinite": partial(mf.low_rank, rank=6, positive=False, seed=0),
    "lanczos": call_lanczos,
    "ritz_vectors": call_ritz_vectors,
    "apply_function": call_apply_function,
    "matrix_function": call_matrix_function,
    "check_operator": mf.check_operator,
}

RECTANGULAR = {
    "svds": partial(mf.svds, k=3, seed=0),
    "low_rank of a rectangle": partial(mf.low_rank, rank=6, seed=0),
    "solve of a rectangle": call_least_squares,
    "frobenius_norm of a rectangle": partial(mf.frobenius_norm, num_probes=6, seed=1),
    "check_operator of a rectangle": mf.check_operator,
}
