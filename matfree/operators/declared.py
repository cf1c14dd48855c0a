"""Operators of other libraries and of users, known by the members that they declare."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from matfree.arrays import describe
from matfree.errors import OperatorError
from matfree.operators.base import spaces_like
from matfree.operators.function import FunctionOperator
from matfree.operators.inherited_blocks import takes_blocks
from matfree.protocol import Array
from matfree.spaces import VectorSpace, require_space


def from_declaration(obj: Any, *, like: Array | None = None) -> FunctionOperator:
    """An object with ``shape``, ``dtype`` and ``matvec``, or with ``shape`` and ``@``.

    Parameters
    ----------
    obj : object
    like : array, optional
        An example vector, if the declared dtype and device do not determine the array library.

    Raises
    ------
    OperatorError
        The shape is not (m, n), or nothing determines the library or precision of the vectors.
    """
    shape = declared_shape(obj)
    if shape is None or len(shape) != 2:
        raise OperatorError(
            f"an operator has shape (m, n): {describe(obj)} has {shape}; apply the members "
            "of a batched operator one at a time."
        )
    if getattr(obj, "space", None) is not None:
        space, domain = _declared_spaces(obj, shape)
    else:
        space, domain = spaces_like(_example(obj) if like is None else like, shape)
    name = type(obj).__name__
    matvec = getattr(obj, "matvec", None)
    if matvec is None:  # only @, which takes blocks as well as vectors
        apply = obj.__matmul__
        return FunctionOperator(apply, space=space, domain=domain, matmat=apply, name=name)
    return FunctionOperator(
        matvec,
        space=space,
        domain=domain,
        matmat=obj.matmat if takes_blocks(obj, "matmat") else None,
        rmatvec=getattr(obj, "rmatvec", None),
        rmatmat=obj.rmatmat if takes_blocks(obj, "rmatmat") else None,
        lanczos_step=getattr(obj, "lanczos_step", None),
        quadratic_forms=getattr(obj, "quadratic_forms", None),
        name=name,
    )


def declared_shape(obj: Any) -> tuple[int, ...] | None:
    """The shape that an object declares; a square one may declare only its ``size``."""
    if hasattr(obj, "shape"):
        return tuple(obj.shape)
    size = getattr(obj, "size", None)
    return (size, size) if isinstance(size, int) and hasattr(obj, "matvec") else None


def _declared_spaces(obj: Any, shape: tuple[int, ...]) -> tuple[VectorSpace, VectorSpace]:
    """The spaces of A @ x and of x that an operator declares, which must be usable."""
    name = type(obj).__name__
    space = require_space(obj.space, f"the space of {name}")
    domain = space
    if shape[0] != shape[1]:
        domain = require_space(getattr(obj, "domain", None), f"the domain of {name}")
    if (space.size, domain.size) != shape:
        raise OperatorError(
            f"{describe(obj)} has shape {shape}, but its spaces have sizes "
            f"({space.size}, {domain.size}); declare spaces of these sizes."
        )
    return space, domain


def _example(obj: Any) -> Array:
    """An empty array of the library that defines the declared data type."""
    dtype, device = getattr(obj, "dtype", None), getattr(obj, "device", None)
    if dtype is None:
        raise OperatorError(
            f"{describe(obj)} declares no dtype, so the library and precision of its vectors are "
            "unknown; declare a dtype, or pass like=an example vector."
        )
    if isinstance(dtype, np.dtype | type | str):  # np.float64, float, "float64"
        return np.empty(0, dtype=dtype)
    # A library whose data type exists has been imported, so there is no need to import it here.
    library = sys.modules.get(type(dtype).__module__.partition(".")[0])
    if library is not None and hasattr(library, "empty") and device is not None:
        return library.empty(0, dtype=dtype, device=device)
    missing = "device" if hasattr(library, "empty") else "array library"
    raise OperatorError(
        f"the {missing} of the vectors of {describe(obj)} (dtype {dtype}) is unknown; "
        "pass like=an example vector."
    )
