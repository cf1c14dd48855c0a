"""The exceptions and warnings of the library, and the function that issues warnings.

A failure to converge is not an exception. It is a result, accompanied by a ConvergenceWarning.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

_SKIPPED = ("matfree", "torch", "contextlib")
"""Packages whose frames a warning does not point at. torch and contextlib are among them, because
they call our hooks and context managers on behalf of the user's code."""


class MatfreeError(Exception):
    """The base class of the exceptions that matfree defines.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> try:
    ...     mf.trace(np.full((3, 3), np.nan), num_probes=2, seed=0)
    ... except mf.MatfreeError as error:
    ...     print(type(error).__name__)
    NonFiniteError
    """


class OperatorError(MatfreeError, ValueError):
    """An operator, or one of its matvecs, is inconsistent with its declared shape or dtype.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.aslinearoperator(lambda x: x[:2], shape=(3, 3), like=np.zeros(1))
    >>> try:
    ...     mf.trace(A, num_probes=2, seed=0)
    ... except mf.OperatorError as error:
    ...     print(str(error).split(": ")[1])
    got (2,); check the declared shape of the operator.
    """


class NonFiniteError(OperatorError, FloatingPointError):
    """A matvec of an operator contains NaN or infinity.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> try:
    ...     mf.eigsh(np.full((3, 3), np.nan), 1, seed=0)
    ... except mf.NonFiniteError as error:
    ...     print("NaN or infinity" in str(error))
    True
    """


class NoAdjointError(OperatorError, NotImplementedError):
    """The adjoint of an operator is needed, but only the operator itself is known.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.aslinearoperator(np.diff, shape=(4, 5), like=np.zeros(1))
    >>> try:
    ...     A.rmatvec(np.ones(4))
    ... except mf.NoAdjointError as error:
    ...     print(str(error).split(";")[0])
    <4x5 operator diff of dtype float64> has no adjoint
    """


class NotHermitianError(OperatorError):
    """An algorithm for Hermitian operators was applied to one that is not Hermitian.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> try:
    ...     mf.spectral_density(np.array([[0.0, 1.0], [-1.0, 0.0]]), seed=0)
    ... except mf.NotHermitianError as error:
    ...     print(str(error).split(":")[0])
    the operator is not Hermitian
    """

    num_matvecs = 0
    """The number of matvecs until it was found."""


class SolveError(MatfreeError, ArithmeticError):
    """A product with an inverse did not reach its tolerance; ``solution`` is the best found.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> inverse = mf.inverse(np.diag([1.0, 0.0]))
    >>> try:
    ...     inverse @ np.ones(2)
    ... except mf.SolveError as error:
    ...     print(error.solution.values)
    [[1.]
     [1.]]
    """

    def __init__(self, message: str, solution: Any) -> None:
        super().__init__(message)
        self.solution = solution


class Interrupted(KeyboardInterrupt):
    """A run was interrupted by Ctrl-C; ``result`` is the result of what it had completed.

    It is a KeyboardInterrupt, so that Ctrl-C stops a script as usual. In a notebook,
    ``sys.last_value.result`` is the estimate from the matvecs completed so far.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> def impatient(estimate):
    ...     raise KeyboardInterrupt
    >>> try:
    ...     mf.trace(np.diag([1.0, 2.0]), num_probes=99, block_size=4, seed=0, callback=impatient)
    ... except mf.Interrupted as stop:
    ...     print(stop.result.value, stop.result.num_probes)
    3.0 4
    """

    def __init__(self, result: Any) -> None:
        super().__init__(f"interrupted; .result is what was completed: {result!r}")
        self.result = result


class ConvergenceWarning(RuntimeWarning):
    """The budget was used up before the tolerance was met; the result is the best one found.

    Examples
    --------
    >>> import matfree as mf, numpy as np, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", mf.ConvergenceWarning)
    ...     try:
    ...         mf.trace(np.ones((50, 50)), rtol=1e-3, max_matvecs=20, seed=0)
    ...     except mf.ConvergenceWarning as warning:
    ...         print("hutchinson stopped" in str(warning))
    True
    """


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the user's code, whatever the depth of the call stack.

    The warning is attributed to the innermost frame outside matfree and its adapters, or to the
    outermost frame if there is no other. In Python 3.11, ``warnings.warn`` itself cannot skip
    frames by file name.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("the budget is used up", ConvergenceWarning)
    >>> caught[0].filename == __file__, str(caught[0].message)
    (False, 'the budget is used up')
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_skipped(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_skipped(module: str) -> bool:
    package = module.partition(".")[0]
    return package in _SKIPPED or package.startswith("matfree_")
