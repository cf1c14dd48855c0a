"""The options of ``solve`` and ``inverse``, with their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.solving.solver import SolveStep
from matfree.arguments import require_tolerance, require_whole
from matfree.errors import OperatorError
from matfree.operators import Operator
from matfree.protocol import Seed

SolveMethod: TypeAlias = Literal["auto", "cg", "minres", "lsmr"]

_BLOCK_SIZE = 32
"""The default number of right-hand sides that are solved together."""


@final
@dataclass(frozen=True)
class SolveOptions:
    """The options of a solve; see :func:`matfree.solve`."""

    shift: complex = 0.0
    method: SolveMethod = "auto"
    preconditioner: Any = None
    rank: int | None = None
    rtol: float = 1e-6
    atol: float = 0.0
    lower: float | None = None
    block_size: int | None = None
    max_matvecs: int | None = None
    seed: Seed = None
    progress: bool = False
    callback: Callable[[SolveStep], bool | None] | None = None
    checkpoint: PathLike | None = None

    def require_valid(self, operator: Operator) -> None:
        """Raise ValueError for an option that is out of range, or does not fit the operator."""
        for name in ("block_size", "max_matvecs", "rank"):
            require_whole(name, getattr(self, name))
        for name in ("rtol", "atol"):
            require_tolerance(name, getattr(self, name))
        if self.rtol is None or self.atol is None or not (self.rtol or self.atol):
            raise ValueError(
                f"rtol or atol must be positive: got rtol={self.rtol} and atol={self.atol}; a "
                "residual of zero cannot be reached, so pass rtol=1e-12 or so."
            )
        if self.method not in get_args(SolveMethod):
            raise ValueError(
                f'method must be "auto", "cg", "minres" or "lsmr": got {self.method!r}.'
            )
        for name, number in (("shift", self.shift), ("lower", self.lower)):
            kinds = (int, float, np.number, complex)[: 3 + (name == "shift")]
            finite = isinstance(number, kinds) and bool(np.isfinite(number))
            if (number is not None and not finite) or (number is None and name == "shift"):
                raise ValueError(f"{name} must be a finite number: got {number!r}.")
        self._require_fit(operator)

    def _require_fit(self, operator: Operator) -> None:
        rows, columns = operator.shape
        if rows == 0 or columns == 0:
            raise OperatorError(f"the operator must not be empty: got shape ({rows}, {columns}).")
        if rows != columns and self.method in ("cg", "minres"):
            raise OperatorError(
                f'method="{self.method}" needs a square operator: got shape ({rows}, {columns}); '
                'pass method="lsmr" for the least-squares solution.'
            )
        if rows != columns and self.shift:
            raise OperatorError(
                f"a shift needs a square operator: got shape ({rows}, {columns}); for damped least "
                "squares, solve the normal equations: solve(A.H @ A, A.H @ B, shift=...)."
            )
        if rows != columns and self.lower is not None:
            raise OperatorError(
                f"lower is a bound on eigenvalues: got shape ({rows}, {columns}); pass lower=None."
            )
        if np.imag(self.shift) and self.method in ("cg", "minres"):
            raise OperatorError(
                f'method="{self.method}" needs a real shift: got {self.shift}, for which A + shift '
                'I is not Hermitian; pass method="lsmr".'
            )
        named = isinstance(self.preconditioner, str)
        if (named and self.preconditioner != "nystrom") or (self.rank is not None and not named):
            raise ValueError(
                'preconditioner must be "nystrom", which takes rank=, an operator, or None: got '
                f"preconditioner={self.preconditioner!r} with rank={self.rank}."
            )
        if self.rank is not None and self.rank > rows:
            raise ValueError(f"rank must be in [1, n]: got {self.rank} for n = {rows}.")
        if self.preconditioner is not None and self.method_for(operator) == "lsmr":
            raise ValueError(
                "preconditioner must be None for LSMR, which is the method for operators that are "
                'rectangular or not Hermitian; pass method="minres" if A is Hermitian.'
            )

    def method_for(self, operator: Operator) -> SolveMethod:
        """The method, which is LSMR for operators that cannot be Hermitian."""
        rows, columns = operator.shape
        if self.method == "auto" and (rows != columns or np.imag(self.shift)):
            return "lsmr"
        return self.method

    def width(self, num_columns: int) -> int:
        """The number of right-hand sides that are solved together."""
        return min(num_columns, self.block_size or _BLOCK_SIZE)

    def budget(self, operator: Operator, num_columns: int) -> int:
        """The largest number of matvecs."""
        size = max(operator.shape)
        return self.max_matvecs or num_columns * min(10_000, max(1000, 10 * size))

    @property
    def wants_nystrom(self) -> bool:
        """Whether the Nystrom preconditioner is asked for by its name."""
        return isinstance(self.preconditioner, str)

    @property
    def real_shift(self) -> complex:
        """The shift, as a real number if it is real."""
        return self.shift if np.imag(self.shift) else float(np.real(self.shift))

    def divided(self, factor: float) -> SolveOptions:
        """The options for the system divided by a factor."""
        values = vars(self) | {
            "shift": self.shift / factor,
            "lower": None if self.lower is None else self.lower / factor,
        }
        return SolveOptions(**values)

    @property
    def smallest(self) -> float | None:
        """A positive lower bound of the eigenvalues of A + shift I, if there is one."""
        if self.lower is None or np.imag(self.shift):
            return None
        bound = float(self.lower) + float(np.real(self.shift))
        return bound if 0 < bound < math.inf else None
