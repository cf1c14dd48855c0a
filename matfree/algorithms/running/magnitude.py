r"""Operators whose squares leave the range of floating-point numbers.

All algorithms square the entries of their vectors. For an operator with entries near 1e200 or
1e-200 the squares overflow, or vanish without a sign of it. A public function that is given such an
operator divides it by a power of 4, which is exact, starts again, and multiplies its result by that
power:

.. math:: \operatorname{tr} A = 4^m \operatorname{tr}(4^{-m} A).

The first block of matvecs shows the magnitude. It is used again, so that none is lost.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, final

from matfree.arrays import to_host
from matfree.errors import ConvergenceWarning, Interrupted, OperatorError, warn
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array, DType
from matfree.results import EigenResult

PublicFunction = TypeVar("PublicFunction", bound=Callable[..., Any])


@final
class MagnitudeError(OperatorError):
    """The squares of an operator's entries leave the range of its data type.

    The public functions catch it. Elsewhere it is a refusal.

    Parameters
    ----------
    operator : Operator
    size : float
        The largest absolute entry of a block of matvecs, or of the matrix.
    block : (X, A X), optional
        The block of matvecs.
    """

    def __init__(self, operator: Operator, size: float, block: tuple[Array, Array] | None) -> None:
        # 2^-1020 and 2^1020 are normal numbers in double precision.
        self.exponent = max(-1020, min(1020, 2 * round(math.log2(size) / 2)))
        self.block = block
        super().__init__(
            f"the entries of {operator!r} are of the order of {size:.0e}, and their squares leave "
            f"the range of {operator.dtype}; pass matfree.aslinearoperator(A) * "
            f"2.0**{-self.exponent}, and multiply the result by 2.0**{self.exponent}."
        )


def require_in_range(operator: Operator, X: Array, Y: Array, *, margin: float = 1.0) -> float:
    """Raise MagnitudeError if the entries of Y = A X are too large or too small for squares.

    Parameters
    ----------
    operator : Operator
    X, Y : (n, k) and (m, k)
    margin : float
        The range is narrower by this factor, in powers of 2.

    Returns
    -------
    float
        The largest absolute entry of Y, which may be NaN or infinite.
    """
    space = operator.space
    xp, size = space.xp, 0.0
    if math.prod(Y.shape):
        size = float(to_host(xp.reshape(xp.max(xp.abs(Y)), (1,)))[0])
    if space.is_sharded:  # all processes have to make the same decision
        size = float(to_host(space.all_reduce(xp.asarray([size], device=space.device)))[0])
    _require_size(operator, size, (X, Y), margin)
    return size


def require_entries_in_range(operator: Operator, largest: float) -> None:
    """The same for the largest absolute entry of a stored matrix."""
    _require_size(operator, largest, None)


def _require_size(
    operator: Operator, size: float, block: tuple[Array, Array] | None, margin: float = 1.0
) -> None:
    limit = _limit(operator.space.xp, operator.dtype) / margin
    if 0 < size < math.inf and abs(math.log2(size)) > limit:  # NaN and infinity are found later
        raise MagnitudeError(operator, size, block)


def _limit(xp: Any, dtype: DType) -> float:
    """The power of 2 up to which, and down to whose reciprocal, no scaling is necessary."""
    # 2^237 in double precision, so that sums of fourth powers are finite, and 2^40 in single
    # precision, in which only squares are summed.
    return 0.22 * math.log2(float(xp.finfo(dtype).max)) + 12


@final
class RangeChecked(Operator):
    """A, whose first block of matvecs shows whether A^H A is in range."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.space, operator.domain)
        self.operator, self.checked = operator, False

    def _apply(self, X: Array) -> Array:
        return self._in_range(self.operator, X, self.operator.matmat(X))

    def _apply_adjoint(self, X: Array) -> Array:
        return self._in_range(self.operator.H, X, self.operator.rmatmat(X))

    def _in_range(self, operator: Operator, X: Array, Y: Array) -> Array:
        if not self.checked:
            require_in_range(operator, X, Y, margin=2.4)
        self.checked = True
        return Y


@final
class Rescaled(Operator):
    """2^-exponent A, whose first block is taken from the matvecs that were computed before."""

    def __init__(self, operator: Operator, found: MagnitudeError) -> None:
        super().__init__(operator.space, operator.domain)
        self.operator, self.block, self.num_lost = operator, found.block, 0
        self.factor = 2.0**-found.exponent
        self.holds_entries = operator.holds_entries
        self.preferred_block_size = operator.preferred_block_size

    def __repr__(self) -> str:
        return repr(self.operator)

    def _apply(self, X: Array) -> Array:
        return self._known(X, self.operator.matmat) * self.factor

    def _apply_adjoint(self, X: Array) -> Array:
        return self._known(X, self.operator.rmatmat) * self.factor

    def _known(self, X: Array, apply: Callable[[Array], Array]) -> Array:
        """A X or A^H X. The second run makes the same first call as the run that was given up."""
        known, self.block = self.block, None
        if known is not None:
            if known[0].shape == X.shape and bool(self.space.xp.all(known[0] == X)):
                return known[1]
            self.num_lost = known[0].shape[1]  # unless it drew another seed
        return apply(X)


def equivariant(
    *names: str, degree: int = 1, compose: Callable[[Any, float], Any] | None = None
) -> Callable[[PublicFunction], PublicFunction]:
    """Let a public function accept operators of every magnitude.

    Parameters
    ----------
    *names : str
        The arguments with the unit of A. ``atol``, which has the unit of the result, and
        ``eigenpairs`` are known.
    degree : {0, 1}
        Whether the result is multiplied by c if A is.
    compose : function, optional
        It maps the argument f and c to x -> f(c x).
    """

    def decorate(estimator: PublicFunction) -> PublicFunction:
        @functools.wraps(estimator)
        def safe(A: Any, *args: Any, **options: Any) -> Any:
            try:
                return estimator(A, *args, **options)
            except MagnitudeError as found:
                failure = found
            arguments = dict(inspect.signature(estimator).bind(A, *args, **options).arguments)
            if compose is not None:
                arguments["f"] = compose(arguments["f"], 2.0**failure.exponent)
            return _again(estimator, failure, arguments, names, degree)

        return safe  # type: ignore[return-value]  # it has the same signature

    return decorate


def _again(
    estimator: Callable[..., Any],
    found: MagnitudeError,
    arguments: dict[str, Any],
    names: tuple[str, ...],
    degree: int,
) -> Any:
    """The result for an operator out of range, from a run with a multiple of it."""
    scale = 2.0**found.exponent
    unit = scale if degree else 1.0
    rescaled = Rescaled(aslinearoperator(arguments.pop(next(iter(arguments)))), found)
    if isinstance(arguments.get("eigenpairs"), EigenResult):
        names = (*names, "eigenpairs")
    for name in names:
        arguments[name] = times_unit(arguments.get(name), 1 / scale)
    if "atol" in arguments:
        arguments["atol"] = times_unit(arguments["atol"], 1 / unit)
    callback = arguments.get("callback")
    if callback is not None:
        arguments["callback"] = lambda state: callback(times_unit(state, unit))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = estimator(rescaled, **arguments)
        except Interrupted as stop:
            raise Interrupted(times_unit(stop.result, unit)) from stop
    for warning in caught:
        ours = issubclass(warning.category, ConvergenceWarning)
        about = f" These numbers are those of the operator divided by 2.0**{found.exponent}."
        warn(f"{warning.message}{about if ours else ''}", warning.category)
    return times_unit(_with_lost(result, rescaled.num_lost), unit)


def times_unit(value: Any, factor: float) -> Any:
    """A result, or an argument, multiplied by a factor; None stays None."""
    if value is None or factor == 1:
        return value
    if isinstance(value, dict):
        return {key: times_unit(part, factor) for key, part in value.items()}
    if hasattr(value, "times"):
        return value.times(factor)
    if isinstance(value, tuple):
        return tuple(times_unit(part, factor) for part in value)
    return value * factor


def _with_lost(result: Any, num_lost: int) -> Any:
    """A result that counts matvecs which were computed and not used."""
    if not num_lost:
        return result
    if isinstance(result, dict):
        return {key: _with_lost(part, num_lost) for key, part in result.items()}
    return replace(result, num_matvecs=result.num_matvecs + num_lost)
