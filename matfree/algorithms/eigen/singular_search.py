r"""The rounds behind ``svds``: eigenvectors of A^H A, and values from A itself.

The eigenvalues of G = A^H A are the squares of the singular values, and rounding hides what
is below eps sigma_1^2: half of the digits of sigma. G also trades accuracy, for a vector v
with ||G v - sigma^2 v|| = r gives

    A v = sigma u,        ||A^H u - sigma v|| = r / sigma,

more than r / sigma_1 where sigma is small. So G only points out where the vectors are. A
Rayleigh-Ritz step takes everything else from A: with orthonormal V, A V = Q C and the small
SVD C = X S Y^H, the triplets are Q X, S, V Y, and A V Y = Q X S holds to rounding.

A round resolves singular values within a factor of its largest; these are then taken out,

    A  <-  (I - U U^H) A (I - V V^H),

and the next round finds the rest, relative to what is the largest now.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.algorithms.eigen.eigen_search import EigenStep
from matfree.algorithms.eigen.eigsh import eigsh
from matfree.algorithms.eigen.orthogonal_complement import complete_basis, project_onto_complement
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import epsilon, rounding, to_host
from matfree.errors import ConvergenceWarning, Interrupted, NotHermitianError, OperatorError
from matfree.operators import FunctionOperator, Operator
from matfree.protocol import Array, HostArray
from matfree.results import SingularResult, StoppingReason

_SPAN = 100.0
"""How far below the largest a round looks for singular values, where the precision bears it."""

_NOISE = 20.0
"""The least residual asked of an eigenpair, in eps."""


@final
class SingularSearch:
    """The triplets found so far of an operator with m >= n, or of the adjoint of a wide one.

    Parameters
    ----------
    operator : (m, n), of any shape
    scale : float
        The operator is ``scale`` times one whose products are of moderate size.
    k, rtol, seed : as for ``svds``
    budget, spent : int
        Products of the operator and its adjoint: the most, and those made already.
    options : dict
        Of ``eigsh``, for every round.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        scale: float,
        k: int,
        rtol: float,
        budget: int,
        spent: int,
        seed: int,
        options: dict[str, Any],
        callback: Callable[[EigenStep], bool | None] | None,
        checkpoint: Path | None,
    ) -> None:
        even = operator * (1 / scale)
        self.wide = operator.shape[0] < operator.shape[1]
        even = even.H if self.wide else even
        self.scale, self.spent = scale, spent
        self.forward = CountedOperator(even, square=False)
        self.backward = CountedOperator(even.H, square=False)
        self.source, self.target = even.domain, even.space
        self.k, self.rtol, self.budget, self.seed = k, rtol, budget, seed
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
        """Products of A and of A^H."""
        return self.spent + self.forward.num_matvecs + self.backward.num_matvecs

    @property
    def converged(self) -> HostArray:
        """Which triplets are within the tolerance."""
        return np.asarray(self.residuals <= self.rtol * self.norm)

    def complete(self, start: Array | None) -> SingularResult:
        """Run rounds until everything is found or nothing more can be; the result."""
        self.search(start)
        return self.result()

    def interrupted(self) -> SingularResult | None:
        """The triplets when the user interrupts the search; None if there are none yet."""
        if not len(self.values):
            return None
        self.reason, self.verified = StoppingReason.INTERRUPTED, False
        return self.result()

    def search(self, start: Array | None) -> None:
        """Rounds until everything is found, or nothing more can be."""
        while self.num_locked < self.k:
            before, largest = self.num_locked, self._largest
            inner = min(1e-2, self._finest / largest)
            stopped = self._round(start, inner)
            self._lock(inner)
            if self.num_locked == self.k:
                break
            least = 4 * (self.k - self.num_locked) + 2 * self.k  # what another round costs
            spent = self.num_matvecs + least > self.budget
            if self.num_locked == before and not stopped and not spent:
                self.reason = StoppingReason.ROUNDING
            if stopped or spent or self.num_locked == before:
                return
            start = self.V[:, self.num_locked :]
        self.reason = StoppingReason.VERIFIED if self.verified else StoppingReason.RESIDUALS

    @property
    def _finest(self) -> float:
        """The residual of an eigenpair relative to sigma_1^2 to ask for in the first round."""
        noise = _NOISE * epsilon(self.source.xp, self.source.dtype)
        return max(self.rtol / _SPAN, noise)

    @property
    def _largest(self) -> float:
        """The largest singular value that is left, relative to the largest of all."""
        if self.num_rounds == 0 or self.norm == 0:
            return 1.0
        return max(float(self.values[self.num_locked]) / self.norm, self.rtol)

    def _round(self, start: Array | None, rtol: float) -> bool:
        """The triplets that are left, better than before; whether to stop with them."""
        left = self.k - self.num_locked
        budget = (self.budget - self.num_matvecs - 2 * self.k) // 2 - left
        path = self.checkpoint
        if path is not None and self.num_rounds:
            path = path.with_suffix(f".round{self.num_rounds + 1}.npz")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # residuals of A count
                pairs = eigsh(
                    self._squared(),
                    left,
                    which="LA",
                    rtol=rtol,
                    max_matvecs=max(1, budget),
                    start=start,
                    seed=self.seed,
                    callback=None if self.callback is None else self._report,
                    checkpoint=path,
                    **self.options,
                )
        except Interrupted as stop:
            self._take(stop.result.vectors)
            raise
        except NotHermitianError as cause:
            if self.num_rounds:  # what is left is rounding, which is not symmetric
                self.verified, self.reason = False, StoppingReason.ROUNDING
                return True
            raise OperatorError(
                f"the adjoint of {self.forward.operator!r} is not that of its products: A^H A "
                "is not Hermitian; mend rmatvec, and see matfree.check_operator."
            ) from cause
        self.num_rounds += 1
        self.verified = self.verified and pairs.verified
        self._take(pairs.vectors)
        stopped = pairs.reason == StoppingReason.CALLBACK
        if stopped:
            self.reason = pairs.reason
        return stopped

    def _lock(self, inner: float) -> None:
        """Take out what this round resolved: good residuals, and values not too small in it.

        A search to ``inner`` cannot tell squares apart that are smaller than that, and would
        have missed what is still to be found among them.
        """
        if self.norm == 0:
            self.num_locked = self.k
            return
        top = float(self.values[self.num_locked])
        least = 0.0 if top <= self.rtol * self.norm else inner * top**2 / (self.rtol * self.norm)
        fine = self.converged & (self.values >= min(least, top))
        fine[: self.num_locked] = True
        self.num_locked = self.k if fine.all() else int(np.argmin(fine))

    def _squared(self) -> FunctionOperator:
        """A^H A outside of what is locked, with the products of both counted."""
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
        """Products with zero in place of those that are nothing but rounding of A's largest."""
        space = self.target
        floor = rounding(space.xp, space.dtype) * self.norm
        real = space.norms(Y) > floor * self.source.norms(X)
        return Y * space.xp.astype(real, space.dtype)[None, :]

    def _take(self, fresh: Array) -> None:
        """Rayleigh-Ritz with the locked vectors and fresh ones, and the residuals of both sides."""
        source, target = self.source, self.target
        locked = self.V[:, : self.num_locked]
        fresh = source.orthonormalize(fresh, against=locked)
        V = complete_basis(source, source.xp.concat((locked, fresh), axis=1), self.k, self.seed)
        AV = self.forward(V)
        Q = target.orthonormalize(AV)
        C = to_host(target.gram(Q, AV))
        self.forward.require_finite(C, to_host(target.norms(AV)))
        X, values, Y = np.linalg.svd(C)
        Y = source.asarray(Y.conj().T)
        self.V, AV = V @ Y, AV @ Y
        # directions that Q leaves out are rounding: their values are 0, and any u will do
        self.values = np.concatenate((values, np.zeros(self.k - len(values))))
        self.U = complete_basis(target, Q @ target.asarray(X), self.k, self.seed)
        AU = self.backward(self.U)
        ahead = target.norms(AV - self.U * target.asarray(self.values)[None, :])
        back = source.norms(AU - self.V * source.asarray(self.values)[None, :])
        self.residuals = np.maximum(to_host(ahead), to_host(back))
        self.backward.require_finite(self.residuals)
        self.norm = max(self.norm, float(self.values[0]))

    def _report(self, step: EigenStep) -> bool | None:
        """What the callback of ``svds`` sees: singular values, and residuals of A."""
        assert self.callback is not None
        sigma = np.sqrt(np.maximum(step.values, 0.0))
        largest = max(float(sigma.max()), self.norm)
        floor = max(largest * self.rtol, np.finfo(float).tiny)
        residuals = step.residuals * sigma.max() ** 2 / np.maximum(sigma, floor) / (largest or 1.0)
        known = self.values[: self.num_locked], self.residuals[: self.num_locked] / (largest or 1.0)
        return self.callback(
            EigenStep(
                self.num_matvecs,
                self.scale * np.concatenate((known[0], sigma)),
                np.concatenate((known[1], residuals)),
            )
        )

    def result(self) -> SingularResult:
        """The triplets of the operator as it was given."""
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
            reason=self.reason,
            seed=self.seed,
            verified=self.verified and self.num_locked == self.k,
            left_rows=rows[0],
            right_rows=rows[1],
        )
