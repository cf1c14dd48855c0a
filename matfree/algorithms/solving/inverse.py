"""``inverse``: the inverse of an operator as an operator, whose matvecs solve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, final, get_args

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.preconditioners import NystromPreconditioner
from matfree.algorithms.solving.solve_options import SolveMethod, SolveOptions
from matfree.algorithms.solving.solver import has_adjoint
from matfree.algorithms.solving.systems import failure, find_solution
from matfree.arrays import epsilon
from matfree.errors import ConvergenceWarning, OperatorError, SolveError, warn
from matfree.operators import Operator, aslinearoperator
from matfree.operators.base import has_complex_vectors
from matfree.probes import agreed_seed
from matfree.protocol import Array, Seed

_EXPECTED_VECTORS = 32
"""The number of vectors that an inverse is expected to multiply, at least."""

OnFailure = Literal["error", "warn"]


@final
class InverseOperator(Operator):
    """(A + shift I)^-1, applied by :func:`matfree.solve`; see :func:`matfree.inverse`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> inverse = mf.inverse(np.diag([1.0, 2.0]))
    >>> (inverse @ np.ones(2)).round(6), inverse.num_matvecs
    (array([1. , 0.5]), 3)
    """

    def __init__(self, operator: Operator, options: SolveOptions, on_failure: OnFailure) -> None:
        super().__init__(operator.space)
        self.operator, self.options, self.on_failure = operator, options, on_failure
        self._nystrom: Operator | None = None
        self.num_matvecs = 0
        """The number of matvecs with A and with A^H over all products so far."""
        self.num_solves = 0
        """The number of right-hand sides that were solved so far."""
        self.largest_residual = 0.0
        """The largest relative residual of all products so far."""

    def _apply(self, X: Array) -> Array:
        return self._solve(self.operator, X, self.options)

    def _apply_adjoint(self, X: Array) -> Array:
        # Without an adjoint, A has to be Hermitian, which the solver checks.
        adjoint = self.operator.H if has_adjoint(self.operator) else self.operator
        return self._solve(adjoint, X, replace(self.options, shift=np.conj(self.options.shift)))

    def _solve(self, operator: Operator, X: Array, options: SolveOptions) -> Array:
        if not X.shape[1]:
            return self.space.zeros(0)
        if options.wants_nystrom:
            options = self._with_preconditioner(options, X.shape[1])
        solution = find_solution(operator, X, options)
        self.num_matvecs += solution.num_matvecs
        self.num_solves += X.shape[1]
        self.largest_residual = max(self.largest_residual, float(solution.residuals.max()))
        if not solution.converged.all():
            message = f"a product with {self!r}: {failure(solution, options)}"
            if self.on_failure == "error":
                raise SolveError(message, solution)
            warn(message, ConvergenceWarning)
        return solution.values

    def _with_preconditioner(self, options: SolveOptions, k: int) -> SolveOptions:
        """The options with the Nystrom preconditioner, which is computed once."""
        if self._nystrom is None:
            A = CountedOperator(self.operator)
            # Further products will follow this one.
            k = max(k, _EXPECTED_VECTORS)
            seed = agreed_seed(options.seed, self.space.all_gather_object)
            found = NystromPreconditioner.make(A, self.operator, options, k, seed)
            found.find()
            self._nystrom = found.operator_form()
            self.num_matvecs += A.num_matvecs
        return replace(options, preconditioner=self._nystrom, rank=None)

    def __repr__(self) -> str:
        shift = f", shift={self.options.shift}" if self.options.shift else ""
        return f"<inverse of {self.operator!r}{shift}>"


def inverse(
    A: Any,
    *,
    shift: complex = 0.0,
    method: SolveMethod = "auto",
    preconditioner: Any = None,
    rank: int | None = None,
    rtol: float | None = None,
    lower: float | None = None,
    block_size: int | None = None,
    max_matvecs: int | None = None,
    on_failure: OnFailure = "error",
    seed: Seed = None,
) -> InverseOperator:
    r"""The operator :math:`(A + \sigma I)^{-1}`, whose matvecs are computed by iteration.

    It can be used wherever an operator can: in :func:`matfree.trace`, :func:`matfree.diagonal`,
    :func:`matfree.eigsh`, and in the algebra of operators. A block of vectors is solved together.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
        (n, n), real or complex, and not singular after the shift.
    shift, method, preconditioner, rank, lower, block_size, seed
        As for :func:`matfree.solve`. A Nystrom preconditioner is computed for the first product.
    rtol : float, optional
        The bound on the residuals of every product relative to the vector that is multiplied; by
        default 1e-10, or 1000 eps of the data type if that is larger. Algorithms that compare
        matvecs with each other, such as ``eigsh``, need it well below their own tolerance.
    max_matvecs : int, optional
        The largest number of matvecs with A for one product with a block; see
        :func:`matfree.solve` for the default.
    on_failure : {"error", "warn"}
        Whether a product that does not reach ``rtol`` is an error or a warning.

    Returns
    -------
    InverseOperator
        An operator of shape (n, n). Its attributes ``num_matvecs``, ``num_solves`` and
        ``largest_residual`` count the matvecs with A, the vectors that were solved for, and the
        largest relative residual so far.

    Raises
    ------
    OperatorError
        A is not square.
    ValueError
        An argument is out of range.
    SolveError
        From a product: its tolerance was not reached. ``solution`` holds what was found.
    NotHermitianError, NonFiniteError
        From a product: as for :func:`matfree.solve`.

    Cost
    ----
    Nothing until the first product, which costs one ``solve``. Memory as for ``solve``.

    References
    ----------
    As for :func:`matfree.solve`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> inverse = mf.inverse(np.diag([1.0, 2.0, 4.0, 8.0]))
    >>> round(mf.trace(inverse, num_probes=4, seed=0).value, 9)
    1.875
    """
    operator = aslinearoperator(A)
    if operator.shape[0] != operator.shape[1]:
        raise OperatorError(
            f"only a square operator has an inverse: got shape {operator.shape}; matfree.solve "
            "computes least-squares solutions."
        )
    if on_failure not in get_args(OnFailure):
        raise ValueError(f'on_failure must be "error" or "warn": got {on_failure!r}.')
    if rtol is None:
        rtol = max(1e-10, 1e3 * epsilon(operator.space.xp, operator.dtype))
    options = SolveOptions(
        shift=shift,
        method=method,
        preconditioner=preconditioner,
        rank=rank,
        rtol=rtol,
        lower=lower,
        block_size=block_size,
        max_matvecs=max_matvecs,
        seed=seed,
    )
    if np.imag(shift) and not has_complex_vectors(operator):
        raise OperatorError(
            f"a complex shift needs complex vectors: got shift={shift} for an operator of dtype "
            f"{operator.dtype}; pass matfree.aslinearoperator(A) * (1 + 0j)."
        )
    options.require_valid(operator)
    return InverseOperator(operator, options, on_failure)
