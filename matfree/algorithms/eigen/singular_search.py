r"""The run of ``svds``: rounds of eigenvectors of A^H A, with values and residuals from A itself.

The eigenvalues of G = A^H A are the squares of the singular values. Those below eps sigma_1^2
are lost in rounding errors, so that half of the digits of sigma are lost. Residuals also become
less accurate: a unit vector v with ||G v - sigma^2 v|| = r satisfies

.. math:: A v = \sigma u, \qquad \|A^H u - \sigma v\| = r / \sigma,

which exceeds r / sigma_1 if sigma is small. Therefore G only provides the space of the vectors,
and a Rayleigh-Ritz step computes everything else from A. With an orthonormal basis V, the
factorization A V = Q C and the SVD C = X S Y^H of the small matrix C, the triplets are
(Q X, S, V Y), and

.. math:: A V Y = Q X S

holds up to rounding errors.

One round resolves the singular values down to a fraction of its largest one. They are then
deflated,

.. math:: A \leftarrow (I - U U^H) A (I - V V^H),

and the next round resolves further ones relative to the largest that remains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.algorithms.eigen.arguments import EigenStep, Tolerance, krylov_matvecs
from matfree.algorithms.eigen.eigsh import find_eigenpairs
from matfree.algorithms.eigen.orthogonal_complement import complete_basis, project_onto_complement
from matfree.algorithms.eigen.small_svd import block_svd
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import epsilon, rounding, to_host
from matfree.errors import Interrupted, NotHermitianError, OperatorError
from matfree.operators import FunctionOperator, Operator
from matfree.protocol import Array, HostArray
from matfree.results import SingularResult, StoppingReason
from matfree.results.files import archive

_SPAN = 100.0
"""The ratio of the largest to the smallest singular value that one round resolves, if the
precision permits."""

_NOISE = 2.0
"""The smallest tolerance for an eigenpair of A^H A, in multiples of eps."""


def round_matvecs(left: int, k: int, width: int, shape: tuple[int, int]) -> int:
    """The smallest number of matvecs of a round for ``left`` triplets in blocks of this width."""
    return 2 * krylov_matvecs(left, width, min(shape)) + 2 * k


@final
class SingularSearch:
    """The singular triplets found so far, and the rounds that improve them.

    An operator with fewer rows than columns is replaced by its adjoint, so that A^H A is the
    smaller one of the two squares.

    Parameters
    ----------
    operator : Operator, (m, n) of any shape
    scale : float
        The operator is divided by this number, so that its norm is of the order of 1.
    k, seed, callback : as for ``svds``
    tolerance : Tolerance
    budget, spent : int
        The largest number of matvecs with A and A^H, and how many were spent before.
    options : keywords of ``eigsh`` for every round
    checkpoint : the file of the first round, or None
    """

    def __init__(
        self,
        operator: Operator,
        *,
        scale: float,
        k: int,
        tolerance: Tolerance,
        budget: int,
        spent: int,
        seed: int,
        options: dict[str, Any],
        callback: Callable[[EigenStep], bool | None] | None,
        checkpoint: Path | None,
    ) -> None:
        scaled = operator * (1 / scale)
        self.wide = operator.shape[0] < operator.shape[1]
        scaled = scaled.H if self.wide else scaled
        self.scale, self.spent = scale, spent
        self.forward = CountedOperator(scaled, square=False)
        self.backward = CountedOperator(scaled.H, square=False)
        self.source, self.target = scaled.domain, scaled.space
        self.k, self.budget, self.seed = k, budget, seed
        self.tolerance, self.rtol = tolerance, tolerance.rtol
        self.options, self.callback, self.checkpoint = options, callback, checkpoint
        self.values: HostArray = np.zeros(0)
        self.residuals: HostArray = np.zeros(0)
        self.U, self.V = self.target.zeros(0), self.source.zeros(0)
        self.num_locked = 0
        self.norm = 0.0
        self.num_rounds = 0
        self.verified = True
        self.reason: str = StoppingReason.BUDGET

    @property
    def num_matvecs(self) -> int:
        """The number of matvecs with A and with A^H."""
        return self.spent + self.forward.num_matvecs + self.backward.num_matvecs

    @property
    def converged(self) -> HostArray:
        """(k,) bool: which triplets are within the tolerance."""
        return np.asarray(self.residuals <= self.rtol * self.norm)

    def complete(self, start: Array | None) -> SingularResult:
        """Run all rounds and return the triplets."""
        self._run_rounds(start)
        if self.reason == StoppingReason.ROUNDING and self.converged.all():
            self.reason = StoppingReason.UNVERIFIED
        return self.result()

    def interrupted(self) -> SingularResult | None:
        """The triplets when the user interrupts the run; None if there are none yet."""
        if not len(self.values):
            return None
        self.reason, self.verified = StoppingReason.INTERRUPTED, False
        return self.result()

    def _run_rounds(self, start: Array | None) -> None:
        """Run rounds until all triplets converge or no further progress is possible."""
        while self.num_locked < self.k:
            before, inner = self.num_locked, self._inner_tolerance
            stopped = self._round(start, inner)
            self._lock(inner)
            if self.num_locked == self.k:
                break
            start = self.V[:, self.num_locked :]
            left, shape = self.k - self.num_locked, self.forward.operator.shape
            least = round_matvecs(left, self.k, start.shape[1], shape)
            spent = self.num_matvecs + least > self.budget
            if self.num_locked == before and not stopped and not spent:
                self.reason = StoppingReason.ROUNDING
            if stopped or spent or self.num_locked == before:
                return
        self.reason = StoppingReason.VERIFIED if self.verified else StoppingReason.RESIDUALS

    @property
    def _inner_tolerance(self) -> float:
        """The tolerance of a round for eigenpairs of A^H A, relative to the largest one left."""
        largest = 1.0  # singular value that is not locked yet, relative to the largest of all
        if self.num_rounds and self.norm > 0:
            largest = max(float(self.values[self.num_locked]) / self.norm, self.rtol)
        noise = _NOISE * epsilon(self.source.xp, self.source.dtype)
        return min(1e-2, max(self.rtol / _SPAN, noise) / largest)

    def _round(self, start: Array | None, rtol: float) -> bool:
        """Improve the triplets that are not locked; return whether the run must stop."""
        # A^H A costs two matvecs; the residuals of A are paid in advance.
        budget = (self.budget - self.num_matvecs - 2 * self.k) // 2
        path = self.checkpoint
        if path is not None and self.num_rounds:
            path = archive.sibling(path, f".round{self.num_rounds + 1}")
        A = CountedOperator(self._squared())
        try:
            pairs = find_eigenpairs(
                A,
                self.k - self.num_locked,
                which="LA",
                tolerance=Tolerance.of(A, rtol),
                max_matvecs=budget,
                recompute=False,
                start=start,
                seed=self.seed,
                callback=None if self.callback is None else self._report,
                checkpoint=path,
                **self.options,
            )
        except Interrupted as stop:
            self._rayleigh_ritz(stop.result.vectors)
            raise
        except NotHermitianError as cause:
            if self.num_rounds:  # only rounding errors are left, which are not symmetric
                self.verified, self.reason = False, StoppingReason.ROUNDING
                return True
            raise OperatorError(
                f"the adjoint of {self.forward.operator!r} contradicts its matvecs: A^H A is not "
                "Hermitian; fix rmatvec, and test it with matfree.check_operator."
            ) from cause
        self.num_rounds += 1
        self.verified = self.verified and pairs.verified
        self._rayleigh_ritz(pairs.vectors)
        stopped = pairs.reason == StoppingReason.CALLBACK
        if stopped:
            self.reason = pairs.reason
        return stopped

    def _lock(self, inner: float) -> None:
        """Lock the leading triplets that this round resolved.

        Their residuals are within the tolerance, and their values are not too small: a round
        with tolerance ``inner`` does not distinguish smaller squares, and may have missed other
        singular values among them.
        """
        if self.norm == 0:
            self.num_locked = self.k
            return
        top = float(self.values[self.num_locked])
        # A triplet may miss rtol by rounding, which must not keep the others from their rounds.
        within = max(self.rtol, rounding(self.source.xp, self.source.dtype)) * self.norm
        least = 0.0 if top <= within else inner * top**2 / within
        resolved = (self.residuals <= within) & (self.values >= min(least, top))
        resolved[: self.num_locked] = True
        self.num_locked = self.k if resolved.all() else int(np.argmin(resolved))

    def _squared(self) -> FunctionOperator:
        """A^H A projected onto the complement of the locked triplets, with counted matvecs."""
        U, V = self.U[:, : self.num_locked], self.V[:, : self.num_locked]

        def matmat(X: Array) -> Array:
            if not self.num_locked:
                return self.backward(self.forward(X))
            X = project_onto_complement(self.source, V, X)
            Y = project_onto_complement(self.target, U, self.forward(X))
            return project_onto_complement(
                self.source, V, self.backward(self._without_rounding(X, Y))
            )

        return FunctionOperator(
            lambda x: matmat(x[:, None])[:, 0],
            space=self.source,
            matmat=matmat,
            name=f"A^H A of {self.forward.operator!r}",
        )

    def _without_rounding(self, X: Array, Y: Array) -> Array:
        """Replace columns of Y = A X that are only rounding errors of size eps ||A|| by zero."""
        space = self.target
        floor = rounding(space.xp, space.dtype) * self.norm
        significant = space.norms(Y) > floor * self.source.norms(X)
        return Y * space.xp.astype(significant, space.dtype)[None, :]

    def _rayleigh_ritz(self, fresh: Array) -> None:
        """Rayleigh-Ritz on the locked and the new right vectors, with residuals of both sides."""
        source, target = self.source, self.target
        locked = self.V[:, : self.num_locked]
        fresh = source.orthonormalize(fresh, against=locked)
        V = complete_basis(source, source.xp.concat((locked, fresh), axis=1), self.k, self.seed)
        AV = self.forward(V)
        U, values, Y = block_svd(self.forward, AV)
        self.V, AV = V @ Y, AV @ Y
        # U omits directions of rounding errors, whose values are 0, with any u.
        self.values = np.concatenate((values, np.zeros(self.k - len(values))))
        self.U = complete_basis(target, U, self.k, self.seed)
        AU = self.backward(self.U)
        ahead = target.norms(AV - self.U * target.asarray(self.values)[None, :])
        back = source.norms(AU - self.V * source.asarray(self.values)[None, :])
        self.residuals = np.maximum(to_host(ahead), to_host(back))
        self.backward.require_finite(self.residuals)
        self.norm = max(self.norm, float(self.values[0]))

    def _report(self, step: EigenStep) -> bool | None:
        """Call the user's callback with singular values and predicted residuals of A."""
        assert self.callback is not None
        sigma = np.sqrt(np.maximum(step.values, 0.0))
        largest = max(float(sigma.max()), self.norm)
        unit, locked = largest or 1.0, self.num_locked
        floor = max(largest * self.rtol, np.finfo(float).tiny)
        predicted = step.residuals * sigma.max() ** 2 / np.maximum(sigma, floor)  # r / sigma
        values = np.concatenate((self.values[:locked], sigma))
        residuals = np.concatenate((self.residuals[:locked], predicted)) / unit
        return self.callback(EigenStep(self.num_matvecs, self.scale * values, residuals))

    def result(self) -> SingularResult:
        """The triplets of the given operator, without scaling and with the sides in order."""
        relative = self.residuals / self.norm if self.norm > 0 else self.residuals
        left, right = (self.V, self.U) if self.wide else (self.U, self.V)
        rows = self.target.row_range, self.source.row_range
        rows = rows[::-1] if self.wide else rows
        return SingularResult(
            left=left,
            values=self.scale * self.values,
            right=right,
            residuals=relative,
            converged=self.converged,
            norm=self.scale * self.norm,
            method="block Lanczos on A^H A, Rayleigh-Ritz on A",
            num_matvecs=self.num_matvecs,
            reason=self.tolerance.reason(self.reason, relative),
            seed=self.seed,
            verified=self.verified and self.num_locked == self.k,
            left_rows=rows[0],
            right_rows=rows[1],
        )
