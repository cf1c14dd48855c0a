"""What can go wrong, as types a caller may want to catch.

Not converging is not among them: it is a result, and comes with a ConvergenceWarning.
"""

from __future__ import annotations

from typing import Any


class MatfreeError(Exception):
    """The root of every error that matfree raises on purpose."""


class OperatorError(MatfreeError, ValueError):
    """An operator gave back something that its own shape or dtype does not promise."""


class NonFiniteError(OperatorError, FloatingPointError):
    """An operator's product holds NaN or infinity."""


class NotHermitianError(OperatorError):
    """A method for Hermitian operators met one that is not."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a long run; ``result`` holds everything that was finished by then.

    It is a KeyboardInterrupt, so a script stops as it always did. In a notebook,
    ``sys.last_value.result`` is the estimate from the products already made.
    """

    def __init__(self, result: Any) -> None:
        super().__init__(f"interrupted; what was finished is in .result: {result!r}")
        self.result = result


class ConvergenceWarning(RuntimeWarning):
    """A budget ended before the tolerance was met; the best answer so far came back."""
