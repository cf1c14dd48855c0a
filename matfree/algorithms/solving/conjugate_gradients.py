r"""Block conjugate gradients of variable width, with residuals that never grow.

All right-hand sides share one Krylov space. With an orthonormal basis Q of the residuals,
R = Q C, and directions S, one step is

.. math::

    \alpha = (S^H A S)^{-1} Q^H P Q, \quad X \leftarrow X + S \alpha C, \quad
    R' = Q - A S \alpha, \quad S \leftarrow P Q' + S (Q^H P Q)^{-1} R'^H P Q',

where Q' is a basis of R' C and P the preconditioner. A direction of R' C that is negligible for
every right-hand side that has not converged is left out of Q', so that the width of the
block, and with it the cost of a step, decreases while columns converge. For one right-hand side
this is the method of conjugate gradients.

The residuals of conjugate gradients oscillate. The solution that is returned moves towards each new
iterate only as far as its residual decreases (minimal residual smoothing).

References
----------
D. P. O'Leary (1980), The block conjugate gradient algorithm and related methods,
doi:10.1016/0024-3795(80)90247-5. A. A. Dubrulle (2001), Retooling the method of block conjugate
gradients, ETNA 12, 216-233. L. Zhou, H. F. Walker (1994), Residual smoothing techniques for
iterative methods, doi:10.1137/0915019.
"""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.solver import Precondition, Solver
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray

_NEGLIGIBLE = 0.1
"""The size, relative to the targets, of all residuals together that are left out of the basis."""

_RESOLVED = 1e-12
"""The ratio of eigenvalues of a Gram matrix below which directions are not resolved."""


@final
class ConjugateGradients(Solver):
    """The state of block conjugate gradients; see the module.

    Parameters
    ----------
    A, R, norms, targets
        As for :class:`Solver`.
    precondition : function, optional
    """

    name = "conjugate gradients"
    # What is left out of the basis adds up to a tenth: the root of 0.98^2 + 0.1^2 is below 1.
    margin = 0.98
    saved = (
        *("X", "best", "smoothed", "Q", "S", "C", "gamma", "left_out", "residuals"),
        *("norm", "num_steps", "is_exhausted", "curvature", "largest_curvature"),
    )
    by_row: ClassVar = dict.fromkeys(("X", "best", "smoothed", "Q", "S"), 0)

    def __init__(
        self,
        A: CountedOperator,
        R: Array,
        norms: HostArray,
        targets: HostArray,
        precondition: Precondition | None = None,
    ) -> None:
        super().__init__(A, R, norms, targets)
        self.space, self.precondition = A.space, precondition
        self.X = self.space.zeros(R.shape[1])
        self.best = self.space.zeros(R.shape[1])
        self.smoothed = self.space.xp.asarray(R, copy=True)
        self.left_out = np.zeros(R.shape[1])
        """(k,) float64: the squared norms of what was left out of Q C."""
        self.curvature = np.inf
        """The smallest x^H A x / x^H x of a direction x, relative to the largest."""
        self.largest_curvature = 0.0
        self._previous: tuple[Array, Array] | None = None
        self.C: HostArray = np.eye(R.shape[1])
        self.gamma: HostArray = np.zeros((0, 0))
        self.S = self.Q = self.space.zeros(0)
        self._choose_basis(R)

    @property
    def cost(self) -> int:
        return int(self.S.shape[1])

    @property
    def is_indefinite(self) -> bool:
        """Whether a direction of negative curvature was found, which rounding does not explain."""
        return self.curvature < -self.rounding

    @property
    def is_singular(self) -> bool:
        """Whether the curvature of a direction vanishes up to rounding."""
        return not self.is_indefinite and self.curvature <= self.eps

    def solution(self) -> Array:
        return self.best

    def advance(self) -> None:
        space, S = self.space, self.S
        AS = self.A(S)
        partials = space.partial_gram(S, S), space.partial_gram(S, AS)
        N, H = np.hsplit(to_host(space.all_reduce(space.xp.concat(partials, axis=1))), 2)
        self.A.require_finite(N, H)
        self._require_hermitian(S, AS, H)
        if not self._has_positive_curvature(N, H):
            self.is_exhausted = True
            return
        alpha = np.linalg.solve((H + H.conj().T) / 2, self.gamma)
        self.X += S @ space.asarray(alpha @ self.C)
        self.Q = R = self.Q - AS @ space.asarray(alpha)
        del AS  # the memory is needed for the residuals
        self._smooth(R @ space.asarray(self.C))
        self.num_steps += 1
        if not self.is_finished:
            self._choose_basis(R)

    def _smooth(self, R: Array) -> None:
        """Move the returned solution towards X, whose residuals are R, to the least residual."""
        space = self.space
        D = R - self.smoothed
        pairs = (self.smoothed, self.smoothed), (self.smoothed, D), (D, D), (R, R)
        partials = space.xp.stack([space.partial_dots(*pair) for pair in pairs])
        old, inner, squares, new = to_host(space.all_reduce(partials)).real
        self.A.require_finite(inner, squares, new)
        new = np.sqrt(new + self.left_out)
        moves = -inner / np.where(squares > 0, squares, 1.0)
        # If the residual decreases much, the formula cancels, and smoothing gains nothing.
        moves = np.where(new <= 0.1 * self.residuals, 1.0, np.clip(moves, 0.0, 1.0))
        moves = np.where(self.reached, 0.0, moves)  # their residuals are no longer in Q C
        reduced = old + moves * (2 * inner + moves * squares)
        norms = np.where(moves == 1.0, new, np.sqrt(np.maximum(reduced, 0.0)))
        factors = space.asarray(moves)[None, :]
        self.smoothed += D * factors
        self.best += (self.X - self.best) * factors
        self.residuals = np.where(self.reached, self.residuals, norms)

    def _choose_basis(self, R: Array) -> None:
        """Choose Q in the range of the block R, of which R C are the residuals, and S."""
        space = self.space
        Z = R if self.precondition is None else self.precondition(R)
        partials = [space.partial_gram(R, X) for X in (R, Z)[: 1 + (Z is not R)]]
        grams = to_host(space.all_reduce(space.xp.concat(partials, axis=1)))
        self.A.require_finite(grams)
        E, G = grams[:, : R.shape[1]], grams[:, -R.shape[1] :]
        T = self._coordinates(E)
        Q = R @ space.asarray(T)
        Z = Q if self.precondition is None else Z @ space.asarray(T)
        S = Z
        if self.S.shape[1]:
            S = Z + self.S @ space.asarray(np.linalg.solve(self.gamma, G @ T))
        gamma = T.conj().T @ G @ T
        self.Q, self.S, self.gamma = Q, S, (gamma + gamma.conj().T) / 2
        if not S.shape[1]:
            self.is_exhausted = True
        elif np.linalg.eigvalsh(self.gamma)[0] <= 0:
            raise ValueError(
                "preconditioner must be Hermitian and positive definite: r^H P r is not positive "
                "for a residual r; pass an approximation P of the inverse with this property."
            )

    def _coordinates(self, E: HostArray) -> HostArray:
        """T such that the columns of R T are orthonormal, for the Gram matrix E of R.

        They are the singular vectors of the residuals R C, scaled by their targets, of columns
        that have not converged. The negligible ones are left out.
        """
        values, vectors = np.linalg.eigh((E + E.conj().T) / 2)
        keep = values > _RESOLVED * values[-1]
        roots, vectors = np.sqrt(values[keep]), vectors[:, keep]
        F = roots[:, None] * (vectors.conj().T @ self.C)
        open_columns = ~self.reached
        scales = np.where(open_columns, 1 / self.targets, 0.0)
        P, sizes, _ = np.linalg.svd(F * scales, full_matrices=False)
        # Later directions may be left out while all of them together stay negligible.
        room = _NEGLIGIBLE**2 - float(np.max(self.left_out * scales**2))
        tails = np.cumsum(sizes[::-1] ** 2)[::-1]
        P = P[:, tails > max(room, 0.0)]
        self.C = P.conj().T @ F
        lost = np.linalg.norm(F - P @ self.C, axis=0) ** 2
        self.left_out = self.left_out + np.where(open_columns, lost, 0.0)
        return np.asarray((vectors / roots) @ P)

    def _has_positive_curvature(self, N: HostArray, H: HostArray) -> bool:
        """Whether H = S^H A S is positive definite beyond rounding, for N = S^H S."""
        lengths = np.sqrt(np.diag(N).real)
        scaled = ((H + H.conj().T) / 2) / np.outer(lengths, lengths)
        self.least_quotient = min(self.least_quotient, float(np.diag(scaled).real.min()))
        quotients = np.abs(np.diag(scaled).real)
        self.largest_curvature = max(self.largest_curvature, float(quotients.max()))
        self.norm = max(self.norm, self.largest_curvature)
        values, vectors = np.linalg.eigh(scaled)
        if self.largest_curvature == 0:
            self.curvature = 0.0
            return False
        x = vectors[:, 0]
        size = float(np.vdot(x, (N / np.outer(lengths, lengths)) @ x).real)
        if values[0] > self.eps * self.largest_curvature:
            return True
        if size <= 1e-6:  # linearly dependent directions: the residuals are computed again
            return False
        self.curvature = float(values[0]) / size / self.largest_curvature
        return False

    def _require_hermitian(self, S: Array, AS: Array, H: HostArray) -> None:
        """Compare inner products of the first directions with the images of each other."""
        previous, self._previous = self._previous, None
        if self.num_steps > 1:
            return
        lengths, sizes = (to_host(self.space.norms(X)) for X in (S, AS))
        self.norm = max(self.norm, float((sizes / lengths).max()))
        defect = np.abs((H - H.conj().T) / np.outer(lengths, lengths)).max()
        if previous is None:
            self._previous = S, AS
        else:
            before, image = previous
            cross = to_host(self.space.gram(before, AS))
            cross -= to_host(self.space.gram(S, image)).conj().T
            scales = np.outer(to_host(self.space.norms(before)), lengths)
            defect = max(defect, np.abs(cross / scales).max())
        if self.norm > 0:
            self.A.require_hermitian(float(defect) / self.norm)
