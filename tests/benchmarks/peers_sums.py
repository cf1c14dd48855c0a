"""Sums over the spectrum: log-determinant, trace of the inverse, Hutchinson, XTrace."""

import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import contest
import roofline
from contest import Answer, Entry
from peers_matrices import SHIFT, with_potential

import matfree as mf
from matfree.arguments import block_size_for

PROBES, STEPS = 20, 40
XTRACE_MATVECS = 120
FUNCTIONS = {"log": np.log, "inverse": np.reciprocal}


def variants(matrix):
    """The matrix as an operator without numba and, if it is installed and used, with it."""
    with mock.patch("matfree_scipy.strategies.compiled_products", return_value=None):
        found = {"without numba": mf.aslinearoperator(matrix)}
    compiled = mf.aslinearoperator(matrix)
    if "numba" in repr(compiled):
        found["with numba"] = compiled
    return found


def quadrature(report, problem, name, machine, rounds):
    """tr f(A) by stochastic Lanczos quadrature, with the same numbers of probes and steps."""
    exact, matrix = problem.sum(FUNCTIONS[name]), problem.matrix
    block = min(PROBES, block_size_for(problem.size, None))

    def ours(operator):
        def run(seed):
            found = mf.trace_function(operator, name, num_probes=PROBES, num_steps=STEPS, seed=seed)
            return Answer(found.value, found.num_matvecs)

        def prepare():
            mf.trace_function(operator, name, num_probes=PROBES, num_steps=2)  # compiles
            return run

        return prepare

    def imate():
        import imate

        function = {"log": imate.logdet, "inverse": imate.traceinv}[name]
        options = {"min_num_samples": PROBES, "max_num_samples": PROBES, "error_rtol": 1e-30}
        options |= {"lanczos_degree": STEPS, "orthogonalize": 0, "num_threads": machine.threads}

        def run(seed):
            value = function(matrix, method="slq", seed=seed, **options)
            return Answer(value, PROBES * STEPS)

        return run

    def primate():
        from primate.operators import MatrixFunction
        from primate.trace import hutch

        operator = MatrixFunction(matrix, fun=FUNCTIONS[name], deg=STEPS, orth=0)

        def run(seed):
            value = hutch(operator, batch=PROBES, converge="count", count=PROBES, seed=seed)
            return Answer(value, PROBES * STEPS)

        return run

    def of_block(size):
        return roofline.lanczos_step(matrix, size).times

    return contest.contest(
        report,
        f"tr f(A) with f = {name}, 3-D Laplacian + {SHIFT}, n = {problem.size}, {PROBES} probes "
        f"x {STEPS} steps, {machine.threads} thread{'s' if machine.threads > 1 else ''}",
        [
            *[
                Entry("matfree", f"{variant}, blocks of {block}", ours(operator), of_block(block))
                for variant, operator in variants(matrix).items()
            ],
            Entry("imate", "slq, orthogonalize=0", imate, of_block(1)),
            Entry("scikit-primate", "MatrixFunction, orth=0; hutch", primate, of_block(1)),
        ],
        lambda value: abs(value / exact - 1),
        machine,
        rounds,
    )


def hutchinson(report, problem, machine, rounds):
    """Traces by sign probes; two libraries compute the diagonal from the same matvecs."""
    matrix, exact = with_potential(problem)
    block = min(PROBES, block_size_for(problem.size, None))

    def ours(function):
        def run(seed):
            found = function(matrix, num_probes=PROBES, seed=seed)
            return Answer(float(np.sum(found.value)), found.num_matvecs)

        return lambda: run

    def primate():
        from primate.trace import hutch

        def run(seed):
            value = hutch(matrix, batch=block, converge="count", count=PROBES, seed=seed)
            return Answer(value, -(-PROBES // block) * block)

        return run

    def skerch():
        import torch
        from skerch.algorithms import hutch

        operator = torch.sparse_csr_tensor(
            *(torch.from_numpy(x) for x in (matrix.indptr, matrix.indices, matrix.data)),
            size=matrix.shape,
        )

        def run(seed):
            found = hutch(operator, "cpu", torch.float64, PROBES, seed=seed, meas_blocksize=block)
            return Answer(float(found["tr"]), PROBES)

        return run

    def imate():
        import imate

        options = {"min_num_samples": PROBES, "max_num_samples": PROBES, "error_rtol": 1e-30}

        def run(seed):
            value = imate.trace(
                matrix,
                method="slq",
                seed=seed,
                num_threads=machine.threads,
                lanczos_degree=2,
                **options,
            )
            return Answer(value, 2 * PROBES)

        return run

    work = roofline.csr_matvec(matrix, block).times
    return contest.contest(
        report,
        f"Trace by {PROBES} sign probes, 3-D Laplacian + ramp, n = {problem.size}, one thread",
        [
            Entry("matfree", "trace", ours(mf.trace), work),
            Entry("matfree", "diagonal, its sum", ours(mf.diagonal), work),
            Entry("scikit-primate", "hutch", primate, work),
            Entry("skerch", "hutch, with the diagonal", skerch, work),
            Entry("imate", "trace, slq with 2 steps (its only method)", imate),
            Entry("traceax", "HutchinsonEstimator, with its own threads", _traceax(matrix), work),
        ],
        lambda value: abs(value / exact - 1),
        machine,
        rounds,
    )


def _traceax(matrix):
    """traceax's estimator with Gaussian probes; its sign probes fail in double precision."""

    def prepare():
        import jax
        import lineax
        import traceax
        from jax.experimental import sparse

        jax.config.update("jax_enable_x64", True)
        stored = sparse.BCOO.from_scipy_sparse(matrix)
        shape = jax.ShapeDtypeStruct((matrix.shape[0],), stored.dtype)
        operator = lineax.FunctionLinearOperator(lambda x: stored @ x, shape, lineax.symmetric_tag)
        estimator = traceax.HutchinsonEstimator(traceax.NormalSampler())
        compiled = jax.jit(lambda key: estimator.estimate(key, operator, PROBES)[0])

        def run(seed):
            return Answer(float(compiled(jax.random.key(seed))), PROBES)

        run(0)  # compiles, and is not timed
        return run

    return prepare


def xtrace(report, problem, machine, rounds):
    """Estimators that deflate the largest eigenvalues, with the same number of matvecs."""
    matrix, exact = problem.matrix, problem.sum(lambda x: x)
    half, third = XTRACE_MATVECS // 2, XTRACE_MATVECS // 3

    def ours(method):
        def run(seed):
            found = mf.trace(matrix, method=method, max_matvecs=XTRACE_MATVECS, seed=seed)
            return Answer(found.value, found.num_matvecs)

        return lambda: run

    def on_torch():
        import torch

        tensor = torch.from_numpy(matrix)  # multiplied by torch's BLAS, as in skerch

        def run(seed):
            found = mf.trace(tensor, method="xtrace", max_matvecs=XTRACE_MATVECS, seed=seed)
            return Answer(float(found.value), found.num_matvecs)

        return run

    def skerch():
        import torch
        from skerch.algorithms import xhutchpp

        operator = torch.from_numpy(matrix)

        def run(seed):
            found = xhutchpp(
                operator,
                "cpu",
                torch.float64,
                x_dims=half,
                seed=seed,
                meas_blocksize=half,
                return_diag=False,
            )
            return Answer(float(found["tr"]), XTRACE_MATVECS)

        return run

    def primate_xtrace():
        from primate.trace import xtrace

        def run(seed):
            return Answer(_first_estimate(xtrace, matrix, half, seed), XTRACE_MATVECS)

        return run

    def primate_hutchpp():
        from primate.trace import hutchpp

        def run(seed):
            return Answer(hutchpp(matrix, m=third, mode="full", seed=seed), 3 * (third + third % 3))

        return run

    n = problem.size
    work = roofline.Work(8 * n * n / half + 16 * n, 2 * n * n + 4 * half * n).times
    return contest.contest(
        report,
        f"Trace of a dense matrix with eigenvalues 1/i^2, n = {n}, {XTRACE_MATVECS} matvecs, "
        "one thread",
        [
            *[
                Entry("matfree", method, ours(method), work)
                for method in ("xtrace", "hutch++", "xnystrace")
            ],
            Entry("matfree", "xtrace, of a torch tensor", on_torch, work),
            Entry("skerch", "xhutchpp, XTrace's form", skerch, work),
            Entry("scikit-primate", "xtrace, stopped after one batch", primate_xtrace, work),
            Entry("scikit-primate", "hutchpp", primate_hutchpp, work),
        ],
        lambda value: abs(value / exact - 1),
        machine,
        rounds,
    )


class _StopLoopError(Exception):
    """Raised from a callback to stop a loop that has no other stopping option."""


def _first_estimate(function, matrix, batch, seed):
    """The estimate after one batch; primate overwrites its ``converge`` argument before use."""
    seen = []

    def stop_after_first(result):
        seen.append(result.estimate)
        raise _StopLoopError

    try:
        function(matrix, batch=batch, seed=seed, callback=stop_after_first)
    except _StopLoopError:
        return float(seen[0])
    raise ValueError("the callback was not called")
