"""Overhead of the library compared with hand-written NumPy for the same work."""

import numpy as np
import scipy.sparse as sp
from harness import side_by_side

import matfree as mf

SIDE, PROBES, STEPS = 316, 8, 40


def laplacian(side):
    off = -np.ones(side - 1)
    T = sp.diags_array([off, 2 * np.ones(side), off], offsets=[-1, 0, 1])
    identity = sp.eye_array(side)
    return (sp.kron(T, identity) + sp.kron(identity, T)).tocsr()


def lanczos_by_hand(A, start, num_steps):
    """Batched Lanczos with two passes of reorthogonalization, as written by hand in NumPy."""
    n, k = start.shape
    V = start / np.linalg.norm(start, axis=0)
    bases = [np.empty((num_steps, n)) for _ in range(k)]
    alphas, betas = np.empty((num_steps, k)), np.empty((num_steps, k))
    for j in range(num_steps):
        W = A @ V
        next_V = np.empty_like(V)
        for p, basis in enumerate(bases):
            basis[j] = V[:, p]
            w = np.ascontiguousarray(W[:, p])
            first = basis[: j + 1] @ w
            w -= basis[: j + 1].T @ first
            second = basis[: j + 1] @ w
            w -= basis[: j + 1].T @ second
            alphas[j, p] = first[j] + second[j]
            betas[j, p] = np.linalg.norm(w)
            next_V[:, p] = w / betas[j, p]
        V = next_V
    return alphas, betas


def lanczos_overhead(report):
    A = laplacian(SIDE)
    start = mf.aslinearoperator(A).space.probes(PROBES, seed=0)
    ours, by_hand = side_by_side(
        lambda: mf.lanczos(A, start, STEPS, keep_basis=False),
        lambda: lanczos_by_hand(A, start, STEPS),
        rounds=5,
    )
    T = mf.lanczos(A, start, STEPS)
    alphas, _ = lanczos_by_hand(A, start, STEPS)
    difference = max(np.abs(T.alphas[p] - alphas[:, p]).max() for p in range(PROBES))
    report.table(
        f"Lanczos compared with hand-written NumPy: n = {A.shape[0]}, {PROBES} probes, "
        f"{STEPS} steps",
        ["matfree (s)", "by hand (s)", "ratio", "target", "largest difference in T"],
        [[f"{ours:.3f}", f"{by_hand:.3f}", f"{ours / by_hand:.2f}", "1.10", f"{difference:.0e}"]],
    )


def trace_overhead(report):
    A = np.random.default_rng(0).standard_normal((100, 100))
    W = mf.space_like(A, 100).probes(30, seed=0)
    ours, matvecs = side_by_side(
        lambda: mf.trace(A, num_probes=30, seed=0), lambda: A @ W, rounds=200
    )
    report.table(
        "mf.trace at n = 100, 30 probes: overhead over its matvecs",
        ["matfree (ms)", "matvecs (ms)", "overhead (ms)", "target (ms)"],
        [[f"{1e3 * ours:.3f}", f"{1e3 * matvecs:.3f}", f"{1e3 * (ours - matvecs):.3f}", "1"]],
    )


def sign_probes(report):
    n, rows = 1_000_000, []
    for dtype in (np.float64, np.float32):
        for k in (1, 8):
            space, rng = mf.space_like(np.zeros(1, dtype), n), np.random.default_rng(0)
            one, two = dtype(1), dtype(2)

            def integers(k=k, rng=rng, dtype=dtype, one=one, two=two):
                return rng.integers(0, 2, (n, k), dtype=np.int8).astype(dtype) * two - one

            def choice(k=k, rng=rng, dtype=dtype):
                return rng.choice(np.array([-1, 1], dtype=dtype), (n, k))

            ours, cheapest, usual = side_by_side(
                lambda space=space, k=k: space.probes(k, seed=0), integers, choice
            )
            rows.append(
                [
                    f"{np.dtype(dtype).name}, {k} probe{'s' * (k > 1)}",
                    f"{1e3 * ours:.1f}",
                    f"{1e3 * cheapest:.1f}",
                    f"{1e3 * usual:.1f}",
                    f"{ours / cheapest:.2f}",
                    f"{ours / usual:.2f}",
                ]
            )
    report.table(
        "Sign probes at n = 1e6 compared with NumPy's generator (target: ratio 1)",
        ["probes", "matfree (ms)", "integers (ms)", "choice (ms)", "/ integers", "/ choice"],
        rows,
    )


def run(report):
    lanczos_overhead(report)
    trace_overhead(report)
    sign_probes(report)
