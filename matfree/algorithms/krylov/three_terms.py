r"""One step of the three-term recurrence, with the fewest passes over memory.

With the newest vectors V, those before them, and W = A V, a step computes

.. math:: R = W - V_{\mathrm{previous}} \, \mathrm{diag}(\beta) - V \, \mathrm{diag}(\alpha)

in the order of Paige (1972): the beta term is subtracted first, alpha is computed from the
remainder. This order loses the least accuracy in finite precision.

References
----------
C. C. Paige (1972), Computational variants of the Lanczos method for the eigenproblem,
doi:10.1093/imamat/10.3.373.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from matfree.arrays import real_part
from matfree.protocol import Array
from matfree.spaces import VectorSpace


@final
class ScaledBlock:
    """Vectors stored as a block and one factor per column, multiplied on first use.

    An operator with a ``lanczos_step`` accepts the factors as they are, because dividing a block
    by the norms of its columns would be one more pass over memory.

    Parameters
    ----------
    space : VectorSpace
    block : (rows, k)
    scale : (k,) in double precision, optional
        The factors; 1 by default.
    """

    def __init__(self, space: VectorSpace, block: Array, scale: Array | None = None) -> None:
        self.space, self.block, self._scale = space, block, scale

    @property
    def scale(self) -> Array:
        """The factors, (k,) in double precision."""
        if self._scale is not None:
            return self._scale
        return _zero_per_column(self.space, self.block) + 1.0

    def vectors(self) -> Array:
        """The vectors, (rows, k); the block is multiplied by its factors in place."""
        if self._scale is not None:
            for rows, factor in _slabs_with_factors(self.space, self.block, self._scale):
                slab = self.block[rows, :]
                slab *= factor
            self._scale = None
        return self.block


def three_term_step(
    space: VectorSpace,
    W: Array,
    V: Array,
    previous: Array,
    alpha: Array | None,
    beta: Array | None,
    step: int,
) -> tuple[Array, Array, Array, Array]:
    """One step of the recurrence without reorthogonalization.

    Parameters
    ----------
    space : VectorSpace
    W : (rows, k)
        A @ V, which is not modified.
    V, previous : (rows, k)
        The newest Lanczos vectors and those before. ``previous`` is overwritten by R, because
        one more block would cost more than the arithmetic.
    alpha, beta : (k,) or None
        The diagonal entries of T for the vectors before, and the off-diagonal entries between the
        two; None in the first step.
    step : int
        The number of V, from 0.

    Returns
    -------
    R : (rows, k)
    alpha : (k,)
    norms : (k,), those of R
    defect : (k,)
        |<v_1, A v_2> - <A v_1, v_2>| in the second step, which detects an operator that is not
        Hermitian for the cost of two inner products; 0 in other steps.
    """
    xp = space.xp
    defect = None
    if step == 1:
        # A v_1 = alpha_1 v_1 + beta_1 v_2. If v_1 is an eigenvector, then v_2 consists of rounding
        # errors and is not orthogonal to it.
        forward = space.dots(previous, W)
        overlap = space.dots(previous, V)
        defect = xp.abs(
            forward - overlap * xp.astype(alpha, overlap.dtype) - xp.astype(beta, forward.dtype)
        )
    if beta is None:
        beta = _zero_per_column(space, V)
    squares = dots = space.partial_dots(V[:0, :], V[:0, :])  # 0: this process may have no rows
    # Sums over rows are computed while a slab is in the cache.
    for rows, factor in _slabs_with_factors(space, V, -beta):
        R = previous[rows, :]  # a view
        R *= factor
        R += W[rows, :]
        dots = dots + space.partial_dots(V[rows, :], R)
    alpha = space.all_reduce(dots)
    for rows, factor in _slabs_with_factors(space, V, alpha):
        R = previous[rows, :]
        R -= V[rows, :] * factor
        squares = squares + space.partial_dots(R, R)
    norms = xp.sqrt(space.all_reduce(real_part(xp, squares)))
    return previous, alpha, norms, xp.zeros_like(norms) if defect is None else defect


def project_out_columns(space: VectorSpace, R: Array, V: Array) -> Array:
    """Project every column of V out of the same column of R in place; the components, (k,)."""
    components = space.dots(V, R)
    R -= V * space.xp.astype(components, space.dtype)[None, :]
    return components


def reciprocal_of_beta(space: VectorSpace, beta: Array, alive: Array) -> Array:
    """1 / beta, (k,), and 0 for a run that ended, whose beta is a rounding error."""
    xp = space.xp
    inverse = 1.0 / xp.where(alive, beta, xp.ones_like(beta))
    return xp.where(alive, inverse, xp.zeros_like(beta))


def _zero_per_column(space: VectorSpace, X: Array) -> Array:
    """Zeros, (k,), in the data type of norms."""
    no_rows = X[:0, :]
    return real_part(space.xp, space.partial_dots(no_rows, no_rows))


def _slabs_with_factors(
    space: VectorSpace, X: Array, factors: Array
) -> Iterator[tuple[slice, Array]]:
    """Slices of rows that fit the cache, each with the factors of the columns.

    The factors are repeated in every row of a slab. Arrays of equal shape are multiplied in one
    sweep, whereas a broadcast row of few numbers is processed anew for every row.
    """
    repeated = None
    for rows in space.slabs(X.shape[1]):
        height = rows.stop - rows.start
        if repeated is None:
            row = space.xp.astype(factors, space.dtype)[None, :]
            repeated = space.xp.zeros_like(X[rows, :]) + row
        yield rows, repeated[:height, :]
