"""``check_operator``: tests whether an operator is linear, deterministic, consistent, Hermitian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from matfree import probes
from matfree.algorithms.running.magnitude import equivariant, require_in_range
from matfree.arguments import require_tolerance
from matfree.arrays import epsilon, to_host
from matfree.errors import NoAdjointError, NonFiniteError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array
from matfree.results import Record
from matfree.spaces import VectorSpace


@final
@dataclass(frozen=True, eq=False)
class OperatorReport(Record):
    """The defects that ``check_operator`` measured, relative to the norms of the matvecs.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> report = mf.check_operator(np.diag([1.0, 2.0, 3.0]))
    >>> report.ok, report.hermitian, report.determinism, report.num_matvecs
    (True, True, 0.0, 9)
    """

    operator: str
    """The ``repr`` of the operator."""
    tolerance: float
    """The largest defect that counts as rounding error."""
    linearity: float
    """||A (x + 2 y) - A x - 2 A y|| relative to the norms of the terms."""
    determinism: float
    """The norm of the difference of A x computed twice: the noise of the operator."""
    consistency: float
    """The norm of the difference between a block of matvecs and matvecs of its columns, for the
    operator and its adjoint, whose vectors and blocks may be computed by different functions."""
    symmetry: float | None
    """|x^H A y - conj(y^H A x)| relative to ||A x|| ||y||; None for a rectangular operator."""
    adjoint: float | None
    """|y^H A x - conj(x^H A^H y)| relative to ||A x|| ||y||; None without an adjoint."""
    num_matvecs: int
    """The number of matvecs used, including those of the adjoint."""

    @property
    def hermitian(self) -> bool:
        """Whether the operator is Hermitian for the random vectors of the test."""
        return self.symmetry is not None and self.symmetry <= self.tolerance

    @property
    def ok(self) -> bool:
        """Whether the operator is linear, deterministic and consistent, with a correct adjoint."""
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
            ("adjoint correct", verdict(self.adjoint, "no adjoint given")),
            ("tolerance", f"{self.tolerance:.1e}"),
            ("cost", f"{self.num_matvecs} matvecs"),
        ]


@equivariant(degree=0)
def check_operator(A: Any, *, seed: int = 0, tolerance: float | None = None) -> OperatorReport:
    """Test the properties of an operator that algorithms rely on, with random vectors.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts; it may be rectangular
    seed : int
        The seed of the random vectors.
    tolerance : float, optional
        The largest relative defect that counts as rounding error; eps^(2/3) by default
        (4e-11 in float64, 2e-5 in float32).

    Returns
    -------
    OperatorReport
        It prints as a table. ``ok`` and ``hermitian`` summarize it.

    Raises
    ------
    ValueError
        ``tolerance`` is negative, not finite or not a number.
    OperatorError, NonFiniteError
        The result of a matvec contradicts the declared shape or dtype, or is not finite.

    Cost
    ----
    7 matvecs, and 2 with the adjoint if it is known.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> report = mf.check_operator(np.array([[0.0, 1.0], [-1.0, 0.0]]))
    >>> report.ok, report.hermitian
    (True, False)
    """
    require_tolerance("tolerance", tolerance)
    operator = aslinearoperator(A)
    space = operator.domain
    eps = epsilon(operator.space.xp, operator.dtype)
    X = space.probes(2, seed=seed, kind="gaussian", stream=probes.CHECK)
    x, y = X[:, :1], X[:, 1:]
    # Gaussian vectors: for an unsymmetric A, x^H A y = conj(y^H A x) has probability zero.
    AX = operator.matmat(X)
    require_in_range(operator, X, AX)
    again = operator.matmat(X)
    combined = operator.matmat(x + 2 * y)
    columns = [operator.matvec(X[:, j])[:, None] for j in range(2)]
    _require_finite_blocks(operator, operator.space, AX, again, combined, *columns)
    Ax, Ay = AX[:, :1], AX[:, 1:]
    symmetry = None
    if operator.shape[0] == operator.shape[1]:
        symmetry = _mismatch(operator, x, Ay, y, Ax)
    adjoint, split, count = _adjoint_defects(operator, x, Ax, seed)
    return OperatorReport(
        operator=repr(operator),
        tolerance=eps ** (2 / 3) if tolerance is None else tolerance,
        linearity=_distance(operator.space, combined, Ax + 2 * Ay),
        determinism=_distance(operator.space, again, AX),
        consistency=max(
            split, *(_distance(operator.space, c, AX[:, j : j + 1]) for j, c in enumerate(columns))
        ),
        symmetry=symmetry,
        adjoint=adjoint,
        num_matvecs=7 + count,  # twice X, x + 2 y, and the two columns of X
    )


def asymmetry(operator: Operator, *, seed: int = 0) -> float:
    """|x^H A y - conj(y^H A x)| for random x and y, relative to the norms of A x and A y.

    Cost
    ----
    2 matvecs, as one block.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree.checks import asymmetry
    >>> A = mf.aslinearoperator(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> asymmetry(A) < 1e-14
    True
    """
    # The stream CHECK keeps these vectors independent of the probes of an estimate with this seed.
    X = operator.domain.probes(2, seed=seed, kind="gaussian", stream=probes.CHECK)
    Y = operator.matmat(X)
    return _mismatch(operator, X[:, :1], Y[:, 1:], X[:, 1:], Y[:, :1])


def _adjoint_defects(
    operator: Operator, x: Array, Ax: Array, seed: int
) -> tuple[float | None, float, int]:
    """The defects ``adjoint`` and ``consistency`` of the adjoint, and the number of matvecs."""
    z = operator.space.probes(1, seed=seed, start=2, kind="gaussian", stream=probes.CHECK)
    try:
        Az = operator.rmatmat(z)
        single = operator.rmatvec(z[:, 0])[:, None]
    except NoAdjointError:
        return None, 0.0, 0
    _require_finite_blocks(operator, operator.domain, Az, single)
    forward = to_host(operator.space.dots(z, Ax))[0]
    backward = to_host(operator.domain.dots(x, Az))[0]
    size = to_host(operator.space.norms(z) * operator.space.norms(Ax))[0]
    defect = _relative(abs(forward - np.conj(backward)), size)
    return defect, _distance(operator.domain, single, Az), 2


def _mismatch(operator: Operator, x: Array, Ay: Array, y: Array, Ax: Array) -> float:
    space = operator.space
    gap = abs(to_host(space.dots(x, Ay))[0] - np.conj(to_host(space.dots(y, Ax))[0]))
    sizes = space.norms(Ax) * space.norms(y) + space.norms(Ay) * space.norms(x)
    return _relative(gap, to_host(sizes)[0])


def _require_finite_blocks(operator: Operator, space: VectorSpace, *blocks: Array) -> None:
    xp = space.xp
    wrong = [xp.sum(xp.astype(~xp.isfinite(block), xp.float32)) for block in blocks]
    if to_host(space.all_reduce(xp.stack(wrong))).any():
        raise NonFiniteError(
            f"a matvec of {operator!r} contains NaN or infinity; fix the operator first."
        )


def _distance(space: VectorSpace, left: Array, right: Array) -> float:
    norms = space.norms
    gap, size = to_host(norms(left - right)).max(), to_host(norms(left) + norms(right)).max()
    return _relative(gap, size)


def _relative(gap: Any, size: Any) -> float:
    return float(gap / size) if size > 0 else float(gap)
