"""What can go wrong, as types a caller may want to catch.

Not converging is not among them: it is a result, and comes with a ConvergenceWarning.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

_PASSED_OVER = ("matfree", "torch", "contextlib")
"""Packages whose frames a warning does not point at: a hook or a context manager of ours may be
called from torch or contextlib, which in turn were called from the user's line."""


class MatfreeError(Exception):
    """The root of every error that matfree raises on purpose.

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
    """An operator gave back something that its own shape or dtype does not promise.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.aslinearoperator(lambda x: x[:2], shape=(3, 3), like=np.zeros(1))
    >>> try:
    ...     mf.trace(A, num_probes=2, seed=0)
    ... except mf.OperatorError as error:
    ...     print(str(error).split(": ")[1])
    got (2,); check the shape the operator declares.
    """


class NonFiniteError(OperatorError, FloatingPointError):
    """An operator's product holds NaN or infinity.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> try:
    ...     mf.eigsh(np.full((3, 3), np.nan), 1, seed=0)
    ... except mf.NonFiniteError as error:
    ...     print(str(error).split("; ")[1])
    mend the operator before estimating anything of it.
    """


class NotHermitianError(OperatorError):
    """A method for Hermitian operators met one that is not.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> try:
    ...     mf.spectral_density(np.array([[0.0, 1.0], [-1.0, 0.0]]), seed=0)
    ... except mf.NotHermitianError as error:
    ...     print(str(error).split(":")[0])
    the operator is not Hermitian
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a long run; ``result`` holds everything that was finished by then.

    It is a KeyboardInterrupt, so a script stops as it always did. In a notebook,
    ``sys.last_value.result`` is the estimate from the products already made.

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
        super().__init__(f"interrupted; what was finished is in .result: {result!r}")
        self.result = result


class ConvergenceWarning(RuntimeWarning):
    """A budget ended before the tolerance was met; the best answer so far came back.

    Examples
    --------
    >>> import matfree as mf, numpy as np, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", mf.ConvergenceWarning)
    ...     try:
    ...         mf.trace(np.ones((50, 50)), rtol=1e-3, max_matvecs=20, seed=0)
    ...     except mf.ConvergenceWarning as warning:
    ...         print(str(warning).split(" with")[0])
    hutchinson stopped at its budget of 20 products
    """


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the line of the caller's code, at any depth of our own.

    That line is the innermost frame outside matfree and its adapters (in Python 3.11,
    ``warnings.warn`` cannot skip frames by file name). A thread whose frames are all ours is
    reported at its outermost frame.

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
    while frame.f_back is not None and _is_passed_over(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_passed_over(module: str) -> bool:
    package = module.partition(".")[0]
    return package in _PASSED_OVER or package.startswith("matfree_")
