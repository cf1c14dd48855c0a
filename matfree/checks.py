"""check_operator: is this thing linear, symmetric, deterministic, consistent?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from matfree import probes
from matfree.arrays import epsilon, to_host
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array
from matfree.results import Record


@final
@dataclass(frozen=True, eq=False)
class OperatorReport(Record):
    """What ``check_operator`` measured; every defect is relative to the products' size.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> report = mf.check_operator(np.diag([1.0, 2.0, 3.0]))
    >>> report.ok, report.hermitian, report.determinism, report.num_matvecs
    (True, True, 0.0, 8)
    """

    operator: str
    """The operator, as it prints."""
    tolerance: float
    """What a defect may be: a multiple of the data type's eps."""
    linearity: float
    """||A(x + 2y) - A x - 2 A y|| over the sizes of the three."""
    determinism: float
    """||A x - A x|| between two identical products: the operator's noise."""
    consistency: float
    """Between a block product and its columns, one by one."""
    symmetry: float | None
    """|x^H A y - conj(y^H A x)| over ||A x|| ||y||; None for a rectangular operator."""
    adjoint: float | None
    """|y^H A x - conj(x^H A^H y)|, likewise; None where there is no adjoint."""
    num_matvecs: int
    """Products made, the adjoint's included."""

    @property
    def hermitian(self) -> bool:
        """Whether the operator is Hermitian, as far as the products tell."""
        return self.symmetry is not None and self.symmetry <= self.tolerance

    @property
    def ok(self) -> bool:
        """Whether it is a linear operator at all: linear, deterministic and consistent."""
        defects = [self.linearity, self.determinism, self.consistency, self.adjoint or 0.0]
        return max(defects) <= self.tolerance

    def _rows(self) -> list[tuple[str, str]]:
        def verdict(defect: float | None, absent: str) -> str:
            if defect is None:
                return absent
            return f"{'yes' if defect <= self.tolerance else 'NO'}   (defect {defect:.1e})"

        return [
            ("operator", self.operator),
            ("linear", verdict(self.linearity, "")),
            ("deterministic", verdict(self.determinism, "")),
            ("block = columns", verdict(self.consistency, "")),
            ("Hermitian", verdict(self.symmetry, "not square")),
            ("adjoint right", verdict(self.adjoint, "no adjoint given")),
            ("tolerance", f"{self.tolerance:.1e}"),
            ("cost", f"{self.num_matvecs} products"),
        ]


def check_operator(A: Any, *, seed: int = 0, tolerance: float | None = None) -> OperatorReport:
    """Measure whether an operator keeps the promises that algorithms rely on.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts; it may be rectangular
    seed : int
        Of the random vectors.
    tolerance : float, optional
        The defect that counts as rounding, relative to the products; eps^(2/3) by default
        (4e-11 in float64, 2e-5 in float32).

    Returns
    -------
    OperatorReport
        Prints as a table; ``ok`` and ``hermitian`` are the verdicts.

    Raises
    ------
    OperatorError, NonFiniteError
        A product is not what the operator's shape and dtype promise.

    Cost
    ----
    9 products, and 1 with the adjoint.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> report = mf.check_operator(np.array([[0.0, 1.0], [-1.0, 0.0]]))
    >>> report.ok, report.hermitian
    (True, False)
    """
    operator = aslinearoperator(A)
    space = operator.domain
    eps = epsilon(operator.space.xp, operator.dtype)
    X = space.probes(2, seed=seed, kind="gaussian", stream=probes.CHECK)
    x, y = X[:, :1], X[:, 1:]
    AX = operator.matmat(X)  # 2 products
    again = operator.matmat(X)  # 4
    combined = operator.matmat(x + 2 * y)  # 5
    columns = [operator.matvec(X[:, j])[:, None] for j in range(2)]  # 7
    Ax, Ay = AX[:, :1], AX[:, 1:]
    symmetry = None
    if operator.shape[0] == operator.shape[1]:
        symmetry = _mismatch(operator, x, Ay, y, Ax)
    adjoint, count = _adjoint_defect(operator, x, Ax, seed)
    return OperatorReport(
        operator=repr(operator),
        tolerance=eps ** (2 / 3) if tolerance is None else tolerance,
        linearity=_distance(operator, combined, Ax + 2 * Ay),
        determinism=_distance(operator, again, AX),
        consistency=max(
            _distance(operator, column, AX[:, j : j + 1]) for j, column in enumerate(columns)
        ),
        symmetry=symmetry,
        adjoint=adjoint,
        num_matvecs=7 + count,
    )


def asymmetry(operator: Operator, *, seed: int = 0) -> float:
    """|x^H A y - conj(y^H A x)| for random x and y, relative to the products: one of a block.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree.checks import asymmetry
    >>> A = mf.aslinearoperator(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> asymmetry(A) < 1e-14
    True
    """
    X = operator.domain.probes(2, seed=seed, kind="gaussian", stream=probes.CHECK)
    Y = operator.matmat(X)
    return _mismatch(operator, X[:, :1], Y[:, 1:], X[:, 1:], Y[:, :1])


def _adjoint_defect(operator: Operator, x: Array, Ax: Array, seed: int) -> tuple[float | None, int]:
    z = operator.space.probes(1, seed=seed, start=2, kind="gaussian", stream=probes.CHECK)
    try:
        Az = operator.rmatmat(z)
    except NotImplementedError:
        return None, 0
    forward = to_host(operator.space.dots(z, Ax))[0]
    backward = to_host(operator.domain.dots(x, Az))[0]
    size = to_host(operator.space.norms(z) * operator.space.norms(Ax))[0]
    return _relative(abs(forward - np.conj(backward)), size), 1


def _mismatch(operator: Operator, x: Array, Ay: Array, y: Array, Ax: Array) -> float:
    space = operator.space
    gap = abs(to_host(space.dots(x, Ay))[0] - np.conj(to_host(space.dots(y, Ax))[0]))
    sizes = space.norms(Ax) * space.norms(y) + space.norms(Ay) * space.norms(x)
    return _relative(gap, to_host(sizes)[0])


def _distance(operator: Operator, left: Array, right: Array) -> float:
    norms = operator.space.norms
    gap, size = to_host(norms(left - right)).max(), to_host(norms(left) + norms(right)).max()
    return _relative(gap, size)


def _relative(gap: Any, size: Any) -> float:
    return float(gap / size) if size > 0 else float(gap)
