"""``matrix_function``: f(t A) as an operator, whose matvecs are computed by the Lanczos method."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from matfree.algorithms.functions.apply_function import apply_function
from matfree.algorithms.functions.function_of_nodes import FunctionOfNodes, as_times
from matfree.algorithms.spectra.spectral_functions import Function, FunctionName
from matfree.arguments import elementwise_values, require_tolerance, require_whole
from matfree.arrays import epsilon
from matfree.errors import OperatorError
from matfree.operators import Operator, aslinearoperator
from matfree.operators.algebra import Complexified
from matfree.operators.base import has_complex_vectors
from matfree.protocol import Array, HostArray

_SAMPLE = np.array([0.3, 1.0, 7.0])  # where f shows whether its values are complex


@final
class MatrixFunctionOperator(Operator):
    """f(t A), applied by :func:`matfree.apply_function`; see :func:`matfree.matrix_function`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> root = mf.matrix_function(np.diag([1.0, 4.0]), "sqrt")
    >>> (root @ np.ones(2)).round(9), root.num_matvecs
    (array([1., 2.]), 2)
    """

    def __init__(
        self, operator: Operator, f: Function | FunctionName, t: complex, options: dict[str, Any]
    ) -> None:
        super().__init__(operator.space)
        self.operator, self.f, self.t, self.options = operator, f, t, options
        eps = epsilon(operator.space.xp, operator.dtype)
        self._evaluate = FunctionOfNodes(f, np.asarray([t]), eps)
        self.num_matvecs = 0
        """The number of matvecs with A over all products so far."""
        self.largest_error = 0.0
        """The largest estimated error of a product so far, relative to its norm."""

    def _apply(self, X: Array) -> Array:
        return self._product(X, self.f, self.t)

    def _apply_adjoint(self, X: Array) -> Array:
        if not has_complex_vectors(self):  # f is real, and f(A) is symmetric
            return self._apply(X)
        return self._product(X, self._conjugate, 1.0)

    def _conjugate(self, nodes: HostArray) -> HostArray:
        """The conjugate of f(t x)."""
        return np.asarray(np.conj(self._evaluate(nodes)[0]))

    def _product(self, X: Array, f: Function | FunctionName, t: complex) -> Array:
        if not X.shape[1]:
            return self.space.zeros(0)
        found = apply_function(self.operator, f, X, t=t, **self.options)
        self.num_matvecs += found.num_matvecs
        self.largest_error = max(self.largest_error, found.history[-1][2] if found.history else 0.0)
        if found.values.dtype != self.dtype:
            raise OperatorError(
                f"{self!r} has complex values, but the operator is real ({self.dtype}); pass "
                "matfree.aslinearoperator(A) * (1 + 0j)."
            )
        return found.values

    def __repr__(self) -> str:
        name = self.f if isinstance(self.f, str) else getattr(self.f, "__name__", "f")
        return f"<{name} of {'' if self.t == 1 else f'{self.t} * '}{self.operator!r}>"


def matrix_function(
    A: Any,
    f: Function | FunctionName,
    *,
    t: complex = 1.0,
    rtol: float | None = None,
    max_matvecs: int | None = None,
    memory: int | None = None,
) -> MatrixFunctionOperator:
    r"""The operator :math:`f(t A)`, whose matvecs are computed by :func:`matfree.apply_function`.

    It can be used wherever an operator can: in :func:`matfree.trace`, :func:`matfree.diagonal`,
    :func:`matfree.eigsh`, and in the algebra of operators. For traces alone,
    :func:`matfree.trace_function` takes half as many matvecs or fewer.

    Parameters
    ----------
    A : (n, n) Hermitian operator, or anything ``aslinearoperator`` accepts
        Real symmetric or complex Hermitian.
    f : function of an array, or {"exp", "log", "sqrt", "inverse", "inverse sqrt"}
        As for :func:`matfree.apply_function`. The result is Hermitian if f has real values. If f
        has complex values, so have the vectors of the result.
    t : number
        Real or complex.
    rtol : float, optional
        The tolerance on the estimated error of every product, relative to its norm; by default
        1e-10, or 1000 eps of the data type if that is larger. Algorithms that compare matvecs with
        each other, such as ``eigsh``, need it well below their own tolerance.
    max_matvecs : int, optional
        The largest number of matvecs with A for one product with a block of vectors.
    memory : int, optional
        The memory of one product in bytes, as for :func:`matfree.apply_function`.

    Returns
    -------
    MatrixFunctionOperator
        An operator of shape (n, n). Its attributes ``num_matvecs`` and ``largest_error`` are the
        number of matvecs with A and the largest relative error of a product so far.

    Raises
    ------
    OperatorError
        A is not square.
    ValueError
        An argument is out of range, or f is no known name. From a product: f is not defined on the
        spectrum.
    NotHermitianError, NonFiniteError
        From a product: as for :func:`matfree.apply_function`.

    Warns
    -----
    ConvergenceWarning
        From a product: its error is not within the tolerance. The product is returned.

    Cost
    ----
    Nothing until the first product, which costs one ``apply_function``. Memory likewise.

    References
    ----------
    As for :func:`matfree.apply_function`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag([1.0, 4.0, 9.0, 16.0])
    >>> root = mf.matrix_function(A, "sqrt")
    >>> round(mf.trace(root, num_probes=4, seed=0).value, 9)
    10.0
    """
    operator = aslinearoperator(A)
    if operator.shape[0] != operator.shape[1]:
        raise OperatorError(
            f"only a square operator has functions: got shape {operator.shape}; A.H @ A with "
            "A = matfree.aslinearoperator(A) is square."
        )
    require_whole("max_matvecs", max_matvecs)
    require_tolerance("rtol", rtol)
    times = as_times(t)
    if times.ndim:
        raise ValueError(f"t must be one number for an operator: got {t!r}.")
    eps = epsilon(operator.space.xp, operator.dtype)
    functions = FunctionOfNodes(f, times.reshape(1), eps)
    if _has_complex_values(functions) and not has_complex_vectors(operator):
        operator = Complexified(operator)
    options = {
        "rtol": max(1e-10, 1e3 * eps) if rtol is None else rtol,
        "max_matvecs": max_matvecs,
        "memory": memory,
    }
    return MatrixFunctionOperator(operator, f, times.item(), options)


def _has_complex_values(functions: FunctionOfNodes) -> bool:
    """Whether f has complex values at a few positive numbers, as far as it is defined there."""
    f, t = functions.functions[0].f, functions.t[0]
    try:
        return np.iscomplexobj(elementwise_values(f, t * _SAMPLE))
    except (TypeError, ValueError):
        return np.iscomplexobj(functions.t)
