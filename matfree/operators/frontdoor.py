"""The only front door: anything that acts like a matrix becomes an operator of ours."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import array_api_compat
import numpy as np

from matfree.arrays import describe
from matfree.errors import OperatorError
from matfree.operators.algebra import Operator
from matfree.operators.dense import DenseOperator
from matfree.operators.function import FunctionOperator
from matfree.operators.memmap_file import MappedFile
from matfree.operators.streamed import SlabOperator
from matfree.protocol import Array, DType
from matfree.spaces import VectorSpace, require_space, space_like

ADAPTER_GROUP = "matfree.adapters"
"""Entry points ``root_module = package:function``; the function takes an object and
returns an Operator, or None where it does not know it."""


def aslinearoperator(
    obj: Any, *, shape: tuple[int, int] | None = None, like: Array | None = None
) -> Operator:
    """Anything that acts like a matrix, as an operator of ours.

    Parameters
    ----------
    obj : object
        In this order: an operator of ours; an object of a library that an installed
        adapter knows (SciPy's sparse matrices and LinearOperators, torch tensors, CuPy's);
        a ``numpy.memmap``, streamed by :class:`SlabOperator` whatever its size (make it
        ``numpy.array(matrix)`` to have it in memory); a 2-D array of any array-API library;
        anything with ``shape`` (or, where it is square, a ``size``), ``dtype`` and
        ``matvec``; anything with ``shape`` and ``@``; anything with ``shape``, ``dtype`` and
        ``obj[a:b]`` (an h5py dataset, a zarr array), streamed as well; a function, with
        ``shape`` and ``like``.
    shape : (m, n), optional
        For a function: the operator's shape.
    like : array, optional
        An example array that fixes the library, dtype and device of the vectors, where
        the object does not tell.

    Returns
    -------
    Operator
        With ``matvec``, ``matmat``, ``@``, ``+``, ``.H``, ``to_dense`` ...; its products
        are checked, and columns are sent one by one where there is no ``matmat``.

    Raises
    ------
    TypeError
        The object is none of these.
    OperatorError
        It is one of them, but something about it cannot be right.

    Cost
    ----
    No product and no copy.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> second_difference = lambda x: 2 * x - np.roll(x, 1) - np.roll(x, -1)
    >>> A = mf.aslinearoperator(second_difference, shape=(8, 8), like=np.zeros(1))
    >>> A @ np.arange(8.0)
    array([-8.,  0.,  0.,  0.,  0.,  0.,  0.,  8.])
    """
    if isinstance(obj, Operator):
        return obj
    if like is not None:
        _adapters_of(like)  # loaded: they may have kernels for this library's probes
    adapted = _from_adapter(obj)
    if adapted is not None:
        return adapted
    if MappedFile.under(obj) is not None:
        return SlabOperator(obj)
    if array_api_compat.is_array_api_obj(obj):
        return DenseOperator(_require_matrix(obj))
    declared = _declared_shape(obj)
    if declared is not None and (hasattr(obj, "matvec") or hasattr(obj, "__matmul__")):
        return _from_duck(obj, declared, like)
    if declared is not None and hasattr(obj, "dtype") and hasattr(obj, "__getitem__"):
        return SlabOperator(obj)
    if callable(obj):
        return _from_function(obj, shape, like)
    raise TypeError(
        f"cannot use {describe(obj)} as a linear operator. Accepted are: a matfree operator; "
        "a SciPy or CuPy sparse matrix or LinearOperator; a torch tensor; a 2-D array; an "
        "object with shape, dtype and matvec; an object with shape and @; an object with shape, "
        "dtype and obj[a:b], such as an h5py dataset; a function f(x), with shape=(n, n) and "
        "like=an example vector."
    )


def _from_adapter(obj: Any) -> Operator | None:
    """Ask the adapters of the libraries that the object's type and its bases come from."""
    for adapt in _adapters_of(obj):
        operator = adapt(obj)
        if operator is not None:
            return operator  # type: ignore[no-any-return]  # the entry point's contract
    return None


def _adapters_of(obj: Any) -> tuple[Any, ...]:
    roots = dict.fromkeys(base.__module__.partition(".")[0] for base in type(obj).__mro__)
    return tuple(adapt for root in roots for adapt in _adapters(root))


@cache
def _adapters(root: str) -> tuple[Any, ...]:
    """The adapters that announced themselves for a foreign library, loaded at first need."""
    return tuple(point.load() for point in entry_points(group=ADAPTER_GROUP, name=root))


def _require_matrix(array: Array) -> Array:
    if array.ndim != 2:
        raise OperatorError(f"a matrix has 2 dimensions: got {describe(array)}.")
    return array


def _declared_shape(obj: Any) -> tuple[int, ...] | None:
    """What an object says of its shape; some square ones have a size instead."""
    if hasattr(obj, "shape"):
        return tuple(obj.shape)
    size = getattr(obj, "size", None)
    return (size, size) if isinstance(size, int) and hasattr(obj, "matvec") else None


def _from_duck(obj: Any, shape: tuple[int, ...], like: Array | None) -> Operator:
    """An object with shape and dtype and matvec, or with shape and @."""
    if len(shape) != 2:
        raise OperatorError(
            f"an operator has shape (m, n): {describe(obj)} has {shape}; apply the members "
            "of a batched operator one by one."
        )
    if getattr(obj, "space", None) is not None:
        space, domain = _declared_spaces(obj, shape)
    else:
        space, domain = (_space_of(obj, size, like) for size in shape)
        domain = space if shape[0] == shape[1] else domain
    name = type(obj).__name__
    matvec = getattr(obj, "matvec", None)
    if matvec is None:  # only @: blocks are the natural argument
        apply = obj.__matmul__
        return FunctionOperator(apply, space=space, domain=domain, matmat=apply, name=name)
    return FunctionOperator(
        matvec,
        space=space,
        domain=domain,
        matmat=getattr(obj, "matmat", None),
        rmatvec=getattr(obj, "rmatvec", None),
        rmatmat=getattr(obj, "rmatmat", None),
        lanczos_step=getattr(obj, "lanczos_step", None),
        quadratic_forms=getattr(obj, "quadratic_forms", None),
        name=name,
    )


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


def _space_of(obj: Any, size: int, like: Array | None) -> VectorSpace:
    """Library and device from, in order: ``like``, the dtype's library, the declaration."""
    if like is not None:
        return space_like(like, size)
    dtype, device = getattr(obj, "dtype", None), getattr(obj, "device", None)
    if dtype is None:
        raise OperatorError(
            f"{describe(obj)} declares no dtype, so nothing tells which library and precision "
            "its vectors have; pass like=an example vector."
        )
    return space_like(_example(obj, dtype, device), size)


def _example(obj: Any, dtype: DType, device: Any) -> Array:
    """An empty array of the library whose data type this is."""
    if isinstance(dtype, np.dtype | type | str):  # np.float64, float, "float64"
        return np.empty(0, dtype=dtype)
    library = sys.modules.get(type(dtype).__module__.partition(".")[0])
    if library is not None and hasattr(library, "empty") and device is not None:
        return library.empty(0, dtype=dtype, device=device)
    missing = "device" if hasattr(library, "empty") else "library"
    raise OperatorError(
        f"nothing tells the {missing} of the vectors of {describe(obj)} (dtype {dtype}); "
        "pass like=an example vector."
    )


def _from_function(function: Any, shape: tuple[int, int] | None, like: Array | None) -> Operator:
    if shape is None or like is None:
        missing = "shape=(n, n)" if shape is None else "like=an example vector"
        raise TypeError(
            f"a function needs shape=(m, n) and like=an example vector (for its library, dtype "
            f"and device): {missing} is missing."
        )
    if len(shape) != 2:
        raise ValueError(f"shape must be (m, n): got {shape}.")
    space = space_like(like, shape[0])
    domain = space if shape[0] == shape[1] else space_like(like, shape[1])
    return FunctionOperator(
        function, space=space, domain=domain, name=getattr(function, "__name__", "function")
    )
