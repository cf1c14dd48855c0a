r"""The iterates of the Lanczos method for f(A) b, and an estimate of their errors.

The iterate after j steps is ||b|| V_j f(T_j) e_1. The bases are nested, so that the distance of two
iterates is that of their coordinates. If the m-th iterate is much closer to f(A) b than the j-th,

.. math:: \|f(A) b - x_j\| \approx \|x_m - x_j\|,

which is known. The error of the m-th iterate is extrapolated: the distances over several lags w
decrease by factors q, and

.. math:: \|f(A) b - x_m\| \lesssim \max_w \frac{q_w}{1 - q_w} \|x_m - x_{m-w}\|,
    \quad q_w = \frac{\|x_m - x_{m-w}\|}{\|x_m - x_{m-2w}\|}.

Extrapolation may be wrong by a large factor, above all where convergence is superlinear. Therefore
the iterate that is returned is not the last one, but the last one whose distance from it exceeds
the extrapolated error several times. The estimate of its error consists of that distance and a
multiple of the extrapolated error, of which the distance is the larger part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np

from matfree.protocol import HostArray
from matfree.results.tridiagonal import tridiagonal_eigenpairs

_MARGIN = 5.0
"""How many times the distance from the last iterate exceeds the extrapolated error of that."""

_SAFETY = 10.0
"""The multiple of the extrapolated error that belongs to the estimate."""

_LARGEST_RATIO = 1 - 1e-5  # the largest q, which bounds the extrapolated error by 1e5 distances

_LARGEST = 10.0  # the largest estimate, relative to the norms of the iterates

_NOISE_FACTOR_OF_DISTANCES = (
    16.0  # distances up to this multiple of the rounding errors are not extrapolated
)

_NODE_ROUNDING = 4.0  # units of rounding error of an eigenvalue of T
_SUMS_ROUNDING = 16.0  # and of the linear combination of the Lanczos vectors


class Choice(NamedTuple):
    """For each of T functions the iterate to return, with all norms relative to ||b||."""

    steps: HostArray
    """(T,) int, the number of Lanczos vectors of which the iterate consists."""
    norms: HostArray
    """(T,), the norms of the iterates."""
    errors: HostArray
    """(T,), their estimated errors, without rounding errors."""
    rounding: HostArray
    """(T,), estimates of the rounding errors."""


@final
class KrylovIterates:
    """The coordinates f_i(T_j) e_1 for the leading blocks T_j of one tridiagonal matrix.

    Parameters
    ----------
    alphas, betas : (m,) and (m - 1,)
        The diagonal and the off-diagonal of T.
    evaluate : function
        It maps the eigenvalues of a block, (j,), to the values of T functions, (T, j).
    eps : float
        The machine precision of the vectors.
    """

    def __init__(
        self,
        alphas: HostArray,
        betas: HostArray,
        evaluate: Callable[[HostArray], HostArray],
        eps: float,
    ) -> None:
        self.alphas, self.betas, self.evaluate, self.eps = alphas, betas, evaluate, eps
        self._known: dict[int, HostArray] = {}

    def coordinates(self, j: int) -> HostArray:
        """f_i(T_j) e_1, (j, T)."""
        if j not in self._known:
            nodes, U = self._eigenpairs(j)
            self._known[j] = U @ (self.evaluate(nodes) * U[0]).T
        return self._known[j]

    def _eigenpairs(self, j: int) -> tuple[HostArray, HostArray]:
        return tridiagonal_eigenpairs(self.alphas[:j], self.betas[: j - 1])

    def distance(self, j: int) -> HostArray:
        """The distance of the j-th iterate from the last one, (T,)."""
        difference = self.coordinates(len(self.alphas)).copy()
        difference[:j] -= self.coordinates(j)
        return _column_norms(difference)

    def choose(self, *, exact: bool) -> Choice:
        """The last iterates whose errors are known, with these errors.

        Parameters
        ----------
        exact : bool
            Whether the Krylov space is invariant, so that the last iterate has rounding errors
            only.
        """
        m = len(self.alphas)
        last = _column_norms(self.coordinates(m))
        steps, errors, norms = np.full(last.shape, m), np.zeros(last.shape), last.copy()
        rounding = self._rounding()
        if m == 1 and not exact:
            errors[:] = np.inf
        elif not exact:
            extrapolated = self._extrapolated(rounding)
            errors = self.distance(1) + _SAFETY * extrapolated
            errors = np.minimum(errors, _LARGEST * np.maximum(last, self._norm(1)))
            self._choose_known(extrapolated, steps, norms, errors)
        return Choice(steps, norms, errors, rounding)

    def _choose_known(
        self, extrapolated: HostArray, steps: HostArray, norms: HostArray, errors: HostArray
    ) -> None:
        """Replace last iterates by earlier ones whose distance from them is known well."""
        m, missing = len(self.alphas), np.ones(steps.shape, dtype=bool)
        for lag in _lags(m):
            distance = self.distance(m - lag)
            known = missing & (distance >= _MARGIN * extrapolated)
            errors[known] = (distance + _SAFETY * extrapolated)[known]
            steps[known], norms[known] = m - lag, self._norm(m - lag)[known]
            missing &= ~known
            if not missing.any():
                return

    def _norm(self, j: int) -> HostArray:
        return _column_norms(self.coordinates(j))

    def _extrapolated(self, rounding: HostArray) -> HostArray:
        """The errors of the last iterate by extrapolation, (T,), from what exceeds rounding."""
        m = len(self.alphas)
        found = np.zeros(self.coordinates(m).shape[1])
        if m < 3:
            return self.distance(1)
        for lag in {1, 2, 3, m // 8, m // 4, m // 3} & set(range(1, (m + 1) // 2)):
            near, far = self.distance(m - lag), self.distance(m - 2 * lag)
            near = np.where(near > _NOISE_FACTOR_OF_DISTANCES * rounding, near, 0.0)
            q = np.minimum(near / np.where(far > 0, far, 1.0), _LARGEST_RATIO)
            found = np.maximum(found, near * q / (1 - q))
        return found

    def _rounding(self) -> HostArray:
        """The change of the last iterate if the eigenvalues of T have rounding errors, (T,)."""
        nodes, U = self._eigenpairs(len(self.alphas))
        # Moved inwards, because f may be undefined outside the spectrum.
        middle, step = (nodes[0] + nodes[-1]) / 2, _NODE_ROUNDING * self.eps * np.abs(nodes).max()
        inwards = nodes + np.clip(middle - nodes, -step, step)
        values = self.evaluate(nodes)
        change = _column_norms(((self.evaluate(inwards) - values) * U[0]).T)
        return np.asarray(change + _SUMS_ROUNDING * self.eps * _column_norms((values * U[0]).T))


def _column_norms(Y: HostArray) -> HostArray:
    """The 2-norms of the columns, whose squares may leave the range of double precision."""
    scales = np.abs(Y).max(axis=0)
    scales = np.where(scales > 0, scales, 1.0)
    return np.asarray(scales * np.linalg.norm(Y / scales, axis=0))


def _lags(m: int) -> list[int]:
    """The lags of the candidates behind the last of m iterates, ascending."""
    fixed = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}
    relative = {m // 8, m // 6, m // 4, m // 3, m // 2, 2 * (m // 3), m - 1}
    return sorted((fixed | relative) & set(range(1, m)))
