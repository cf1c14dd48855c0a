"""``aslinearoperator``: the conversion function for every kind of matrix."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

import array_api_compat

from matfree.arrays import describe
from matfree.operators.algebra import Operator
from matfree.operators.base import spaces_like
from matfree.operators.containers import unwrapped
from matfree.operators.declared import declared_shape, from_declaration
from matfree.operators.dense import DenseOperator
from matfree.operators.function import FunctionOperator
from matfree.operators.memmap_file import MemmapFile
from matfree.operators.streamed import SlabOperator
from matfree.protocol import Array

ADAPTER_GROUP = "matfree.adapters"
"""The group of the packaging entry points of adapters, ``root_module = package:function``.

The function takes an object and returns an Operator, or None if it does not recognize the
object. It is loaded when the first object whose type is defined in ``root_module`` is
passed to :func:`aslinearoperator`.
"""


def aslinearoperator(
    obj: Any, *, shape: tuple[int, int] | None = None, like: Array | None = None
) -> Operator:
    """Convert any object that acts like a matrix to a matfree operator.

    Parameters
    ----------
    obj : object
        The first of the following that applies:

        * a matfree operator, which is returned unchanged;
        * ``numpy.matrix``, a DataFrame of pandas or polars, a DataArray of xarray, an array of
          PyData sparse, or a nested list, in the form of an array or a sparse matrix;
        * an object of a library with an installed adapter: sparse matrices and
          LinearOperators of SciPy and CuPy, torch tensors, Dask arrays;
        * a ``numpy.memmap``, which is streamed by :class:`SlabOperator` whatever its size
          (pass ``numpy.array(matrix)`` to hold it in memory);
        * a 2-D array of any library of the array API standard;
        * an object with ``shape`` (or ``size``, if it is square), ``dtype`` and ``matvec``,
          and possibly the optional members of :class:`matfree.LinearOperator`;
        * an object with ``shape`` and ``@``;
        * an object with ``shape``, ``dtype`` and ``obj[a:b]``, such as an h5py dataset or a
          zarr array, which is streamed by :class:`SlabOperator`;
        * a function x -> A @ x, together with ``shape`` and ``like``.
    shape : (m, n), optional
        The shape of the operator, for a function.
    like : array, optional
        An example vector that fixes the array library, the data type and the device, for a
        function or an object that does not declare them.

    Returns
    -------
    Operator
        The results of the object's matvecs are checked, and a block is passed to ``matvec`` one
        column at a time if there is no ``matmat``.

    Raises
    ------
    TypeError
        The object is none of the above, or declares a ``space`` that does not derive from
        :class:`matfree.VectorSpace`.
    OperatorError
        The shape, data type or space that the object declares cannot be used, or the object is
        a masked array.

    Cost
    ----
    No matvec and no copy, except that sparse matrices are converted to CSR.

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
        _adapters_of(
            like
        )  # loads adapters, which may have compiled probe generators for this library
    obj = unwrapped(obj)
    # Adapters come first: torch tensors and CuPy arrays also satisfy the rules below, but need
    # their own checks of layout and device, and sparse matrices their own kernels.
    adapted = _from_adapter(obj)
    if adapted is not None:
        return adapted
    if MemmapFile.of(obj) is not None:
        return SlabOperator(obj)
    if array_api_compat.is_array_api_obj(obj):
        return DenseOperator(obj)
    declares_shape = declared_shape(obj) is not None
    if declares_shape and (hasattr(obj, "matvec") or hasattr(obj, "__matmul__")):
        return from_declaration(obj, like=like)
    if declares_shape and hasattr(obj, "dtype") and hasattr(obj, "__getitem__"):
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
    """The operator that an adapter makes of the object; None if no adapter recognizes it."""
    for adapt in _adapters_of(obj):
        operator = adapt(obj)
        if operator is not None:
            return operator  # type: ignore[no-any-return]  # the entry point's contract
    return None


def _adapters_of(obj: Any) -> tuple[Any, ...]:
    """The adapters for the libraries that define the object's type and its base classes."""
    roots = dict.fromkeys(base.__module__.partition(".")[0] for base in type(obj).__mro__)
    return tuple(adapt for root in roots for adapt in _adapters(root))


@cache
def _adapters(root: str) -> tuple[Any, ...]:
    """The adapters that are registered for a top-level module, loaded when first needed."""
    return tuple(point.load() for point in entry_points(group=ADAPTER_GROUP, name=root))


def _from_function(function: Any, shape: tuple[int, int] | None, like: Array | None) -> Operator:
    if shape is None or like is None:
        missing = "shape=(n, n)" if shape is None else "like=an example vector"
        raise TypeError(
            f"a function needs shape=(m, n) and like=an example vector (for the array library, "
            f"dtype and device): {missing} is missing."
        )
    if len(shape) != 2:
        raise ValueError(f"shape must be (m, n): got {shape}.")
    space, domain = spaces_like(like, shape)
    return FunctionOperator(
        function, space=space, domain=domain, name=getattr(function, "__name__", "function")
    )
