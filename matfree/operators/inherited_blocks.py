"""Block methods that a LinearOperator of SciPy or CuPy has only by inheritance.

Their base class implements ``matmat`` by calls of ``matvec`` with columns of shape (n, 1). A
function that is written for vectors of shape (n,), such as a filter along the last axis, silently
gives wrong results for these. Sums, products, multiples, powers, adjoints and transposes pass
blocks on to their operands, so that one operand without a ``matmat`` suffices. Such operators
are therefore applied to one vector of shape (n,) at a time.
"""

from __future__ import annotations

from typing import Any, Literal

BlockMethod = Literal["matmat", "rmatmat"]

_OPPOSITE: dict[BlockMethod, BlockMethod] = {"matmat": "rmatmat", "rmatmat": "matmat"}

_SWAPPING = ("_AdjointLinearOperator", "_TransposedLinearOperator")
"""Classes that apply the adjoint of their operand."""


def takes_blocks(obj: Any, direction: BlockMethod) -> bool:
    """Whether ``obj.matmat`` or ``obj.rmatmat`` is more than a loop over (n, 1) columns.

    Parameters
    ----------
    obj : object
    direction : {"matmat", "rmatmat"}

    Returns
    -------
    bool
        True for every object that has the method and is not a LinearOperator of SciPy or CuPy.
    """
    if not hasattr(obj, direction):
        return False
    base = _base_class(obj)
    if base is None or getattr(type(obj), direction) is not getattr(base, direction):
        return True  # another class, or a public method of its own
    if type(obj).__name__ == "_CustomLinearOperator":  # given by functions, which may be None
        return vars(obj).get(f"_CustomLinearOperator__{direction}_impl") is not None
    operands = [x for x in getattr(obj, "args", ()) if isinstance(x, base)]
    if operands:
        swapped = type(obj).__name__ in _SWAPPING
        inner = _OPPOSITE[direction] if swapped else direction
        return all(takes_blocks(operand, inner) for operand in operands)
    if _overrides(obj, base, f"_{direction}"):
        return True
    # A class that defines only its adjoint as an operator applies that one.
    own_adjoint = direction == "rmatmat" and _overrides(obj, base, "_adjoint")
    return own_adjoint and takes_blocks(obj.H, "matmat")


def _base_class(obj: Any) -> type | None:
    """SciPy's or CuPy's LinearOperator, if it is a base class of the object's class.

    It is recognized by its name, because importing either library is expensive or may fail.
    """
    for base in type(obj).__mro__:
        library = base.__module__.partition(".")[0]
        if base.__name__ == "LinearOperator" and library in ("scipy", "cupyx"):
            return base
    return None


def _overrides(obj: Any, base: type, method: str) -> bool:
    return getattr(type(obj), method, None) is not getattr(base, method, None)
