"""The preconditioners of ``solve``: operators that approximate the inverse."""

from __future__ import annotations

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.solve_options import SolveOptions
from matfree.algorithms.solving.solver import Precondition
from matfree.errors import OperatorError
from matfree.operators import aslinearoperator
from matfree.operators.base import require_compatible


def preconditioner_for(A: CountedOperator, options: SolveOptions) -> Precondition | None:
    """The map R -> P R of the preconditioner that the options ask for.

    Raises
    ------
    OperatorError
        The preconditioner has another shape or other vectors than A.
    """
    if options.preconditioner is None:
        return None
    P = aslinearoperator(options.preconditioner)
    if P.shape != A.operator.shape:
        raise OperatorError(
            f"preconditioner must have the shape {A.operator.shape} of the operator: got {P.shape}."
        )
    require_compatible(A.space, P.space)
    return P.matmat
