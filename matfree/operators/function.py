"""Operators given by functions, whose results are checked.

A function may modify its argument, return the same buffer every time, or return a list, an
array of the wrong shape or of another library, or NaN. All of this is detected here. The
expensive checks are made for the first matvecs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import array_api_compat

from matfree.arrays import describe, is_complex
from matfree.errors import NonFiniteError, OperatorError
from matfree.operators.algebra import Operator
from matfree.protocol import Array, LanczosStep, QuadraticForms
from matfree.spaces import VectorSpace

Apply = Callable[[Array], Array]


@final
class FunctionOperator(Operator):
    """An operator given by functions.

    Parameters
    ----------
    matvec : function
        It maps x of shape (n,) to A @ x of shape (m,).
    space : VectorSpace
        The space of A @ x.
    domain : VectorSpace, optional
        The space of x; ``space`` by default, which makes the operator square.
    matmat : function, optional
        It maps X of shape (n, k) to A @ X. Without it, ``matvec`` is called for each column.
    rmatvec, rmatmat : functions, optional
        The same for the adjoint A^H.
    lanczos_step : function, optional
        A fused step of the Lanczos recurrence; see ``LinearOperator``.
    quadratic_forms : function, optional
        It maps X of shape (n, k) to the numbers x_j^H A x_j, if they cost less than A X.
    name : str
        The operator's name in error messages and in ``repr``.

    Raises
    ------
    TypeError
        ``space`` or ``domain`` does not derive from :class:`matfree.VectorSpace`.
    OperatorError
        From a matvec: the function returned something that is not A @ x by its shape, library
        or data type.
    NonFiniteError
        From a matvec: the result contains NaN or infinity.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> space = mf.space_like(np.zeros(1), 3)
    >>> A = mf.FunctionOperator(np.cumsum, space=space, name="running sum")
    >>> A, A @ np.ones(3)
    (<3x3 operator running sum of dtype float64>, array([1., 2., 3.]))
    """

    def __init__(
        self,
        matvec: Apply,
        *,
        space: VectorSpace,
        domain: VectorSpace | None = None,
        matmat: Apply | None = None,
        rmatvec: Apply | None = None,
        rmatmat: Apply | None = None,
        lanczos_step: LanczosStep | None = None,
        quadratic_forms: QuadraticForms | None = None,
        name: str = "function",
    ) -> None:
        super().__init__(space, domain)
        self.name = name
        self.lanczos_step, self.quadratic_forms = lanczos_step, quadratic_forms
        self._forward = _CheckedMap(f"{name}(x)", matvec, matmat, self.domain, self.space)
        self._adjoint: _CheckedMap | None = None
        if rmatvec is not None or rmatmat is not None:
            self._adjoint = _CheckedMap(f"{name}^H(x)", rmatvec, rmatmat, self.space, self.domain)

    def _apply(self, X: Array) -> Array:
        return self._forward(X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self._by_adjoint(lambda adjoint: adjoint(X))

    def _apply_to_vector(self, x: Array) -> Array:
        return self._forward.columns(x)

    def _apply_adjoint_to_vector(self, x: Array) -> Array:
        return self._by_adjoint(lambda adjoint: adjoint.columns(x))

    def _by_adjoint(self, apply: Callable[[_CheckedMap], Array]) -> Array:
        """A result of the adjoint; an operator of SciPy may refuse it only when it is called."""
        if self._adjoint is None:
            raise self._no_adjoint()
        try:
            return apply(self._adjoint)
        except NotImplementedError as cause:
            raise self._no_adjoint() from cause

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows}x{columns} operator {self.name} of dtype {self.dtype}>"


class _CheckedMap:
    """A map given by functions, A or A^H, and what its first calls revealed about them."""

    def __init__(
        self,
        name: str,
        on_vector: Apply | None,
        on_block: Apply | None,
        source: VectorSpace,
        target: VectorSpace,
    ) -> None:
        self.name, self.source, self.target = name, source, target
        self.on_vector, self.on_block = on_vector, on_block
        self.num_matvecs = 0
        self.modifies_argument = False
        self.reuses_result = False
        self._first_result: tuple[Array, Array] | None = None  # the returned array and its copy

    def __call__(self, X: Array) -> Array:
        return self.columns(X) if self.on_block is None else self._block(X)

    def columns(self, X: Array) -> Array:
        """The map applied to one column at a time, if there is a function for vectors."""
        if self.on_vector is None:
            return self._block(X)
        xp, columns = self.target.xp, []
        on_host = str(getattr(X, "device", "cpu")) == "cpu"
        for j in range(X.shape[1]):
            x = xp.asarray(X[:, j], copy=True)  # contiguous, and the function may modify it
            y = self._received(self.on_vector(x), (len(self.target.rows),))
            if self.num_matvecs == 0 or on_host:  # on a device, every check synchronizes
                self._require_finite(y)
            self.num_matvecs += 1
            columns.append(xp.asarray(y, copy=True))  # the function may reuse its result
        if not columns:
            return self.target.zeros(0)
        return xp.stack(columns, axis=1)

    def _block(self, X: Array) -> Array:
        assert self.on_block is not None
        xp, first = self.target.xp, self.num_matvecs == 0
        sent = xp.asarray(X, copy=True) if first or self.modifies_argument else X
        raw = self.on_block(sent)
        Y = self._received(raw, (len(self.target.rows), X.shape[1]))
        if first:
            self._require_finite(Y)
            self.modifies_argument = not bool(xp.all(sent == X))
            self._first_result = (Y, xp.asarray(Y, copy=True))
        elif self._first_result is not None:
            # If the second call changed the array that the first one returned, then the function
            # returns the same buffer every time, and each result has to be copied.
            returned, copy = self._first_result
            self.reuses_result = not bool(xp.all(returned == copy))
            self._first_result = None
        self.num_matvecs += X.shape[1]
        if first and self._first_result is not None:
            return self._first_result[1]
        return xp.asarray(Y, copy=True) if self.reuses_result else Y

    def _received(self, y: Any, shape: tuple[int, ...]) -> Array:
        """The result in the shape and precision of the target space, or an error."""
        xp, dtype = self.target.xp, self.target.dtype
        if isinstance(y, Sequence):
            y = xp.asarray(y, dtype=dtype, device=self.target.device)
        if not array_api_compat.is_array_api_obj(y):
            raise OperatorError(f"{self.name} must return an array: got {describe(y)}.")
        if array_api_compat.array_namespace(y) is not xp:
            raise OperatorError(
                f"{self.name} must return an array of {xp.__name__}, the library of its "
                f"argument: got {describe(y)}; convert the result, or pass like=an array of that "
                "library."
            )
        if tuple(y.shape) not in (shape, (*shape, 1)):
            raise OperatorError(
                f"{self.name} must return shape {shape} for an operator of shape "
                f"({self.target.size}, {self.source.size}): got {tuple(y.shape)}; check the "
                "declared shape of the operator."
            )
        if getattr(y, "requires_grad", False):
            y = y.detach()  # otherwise the autograd graph would grow with every matvec
        if y.dtype != dtype:
            if is_complex(xp, y.dtype) and not is_complex(xp, dtype):
                raise OperatorError(
                    f"{self.name} returned {y.dtype} for an operator of dtype {dtype}; "
                    "declare a complex dtype (like=a complex array)."
                )
            y = xp.astype(y, dtype)
        return xp.reshape(y, shape)

    def _require_finite(self, y: Array) -> None:
        finite = self.target.xp.isfinite(y)
        if not bool(self.target.xp.all(finite)):
            bad = int(self.target.xp.sum(self.target.xp.astype(~finite, self.target.xp.int64)))
            raise NonFiniteError(
                f"matvec {self.num_matvecs + 1} of {self.name} contains NaN or infinity in {bad} "
                "entries; fix the operator first."
            )
