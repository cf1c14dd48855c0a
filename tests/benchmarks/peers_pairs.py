"""Ten eigenpairs of the 2-D Laplacian, most of whose eigenvalues are double."""

import sys
from pathlib import Path

import numpy as np
import scipy.sparse.linalg

sys.path.insert(0, str(Path(__file__).parents[1]))

import contest
import roofline
from contest import Answer, Entry
from support.matrices import laplacian_2d, laplacian_2d_spectrum

import matfree as mf

PAIRS = 10
RTOL = 1e-6
BUDGET = 20_000
TIGHTER = 1e-8  # ARPACK, with one start vector, then finds both copies of every eigenvalue
LOBPCG_VECTORS = 15  # ten pairs, and a few vectors that accelerate convergence


class Counted:
    """A matrix as a SciPy operator that counts matvecs."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.operator = scipy.sparse.linalg.LinearOperator(
            matrix.shape, matvec=self.apply, matmat=self.apply, dtype=matrix.dtype
        )

    def apply(self, X):
        self.count += 1 if X.ndim == 1 else X.shape[1]
        return self.matrix @ X


def laplacian(report, side, machine, rounds):
    """The largest ten pairs to a residual of RTOL, relative to the largest eigenvalue."""
    matrix, exact = laplacian_2d(side), laplacian_2d_spectrum(side)[::-1][:PAIRS]
    n, basis = matrix.shape[0], 4 * PAIRS + 8

    def ours(**options):
        def run(seed):
            found = mf.eigsh(
                matrix, PAIRS, which="LA", rtol=RTOL, max_matvecs=BUDGET, seed=seed, **options
            )
            return Answer(found.values, found.num_matvecs)

        return lambda: run

    def scipy_eigsh(ncv, tol=RTOL):
        def run(seed):
            counted = Counted(matrix)
            start = np.random.default_rng(seed).standard_normal(n)
            values = scipy.sparse.linalg.eigsh(
                counted.operator, PAIRS, which="LA", tol=tol, v0=start, ncv=ncv
            )[0]
            return Answer(values, counted.count)

        return lambda: run

    def lobpcg(seed):
        counted = Counted(matrix)
        start = np.random.default_rng(seed).standard_normal((n, LOBPCG_VECTORS))
        values = scipy.sparse.linalg.lobpcg(
            counted.operator, start, tol=RTOL * exact[0], maxiter=500, largest=True
        )[0]
        return Answer(values, counted.count)

    def error(values):
        return float(np.max(np.abs(np.sort(values)[::-1][:PAIRS] / exact - 1)))

    def of(block, vectors):
        """Work for a basis that grows from the retained pairs to its maximum size."""
        return roofline.restarted_step(matrix, block, (PAIRS + vectors) / 2).times

    return contest.contest(
        report,
        f"Ten largest eigenpairs of the 2-D Laplacian, n = {n}, residuals to {RTOL:g} of the norm, "
        f"{machine.threads} thread",
        [
            Entry("matfree", "eigsh, blocks of 2, verified", ours(), of(2, basis)),
            Entry("matfree", "eigsh, verify=False", ours(verify=False), of(2, basis)),
            Entry(
                "matfree",
                "eigsh, block_size=1, verify=False",
                ours(verify=False, block_size=1),
                of(1, basis),
            ),
            Entry("scipy", "eigsh (ARPACK), its basis of 21", scipy_eigsh(None), of(1, 21)),
            Entry("scipy", f"eigsh, ncv={basis} as ours", scipy_eigsh(basis), of(1, basis)),
            Entry(
                "scipy",
                f"eigsh, ncv={basis}, tol={TIGHTER:g}: every copy",
                scipy_eigsh(basis, TIGHTER),
                of(1, basis),
            ),
            Entry("scipy", f"lobpcg, {LOBPCG_VECTORS} vectors", lambda: lobpcg),
        ],
        error,
        machine,
        rounds,
    )
