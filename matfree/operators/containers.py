"""Matrices in containers of other libraries: tables, labelled arrays, sparse arrays, lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from matfree.arrays import describe
from matfree.errors import OperatorError

_TABLES = ("pandas", "xarray", "polars")
"""Libraries whose objects are converted to NumPy arrays by ``to_numpy()``."""


def unwrapped(obj: Any) -> Any:
    """The array or sparse matrix inside a container, or the object itself.

    Parameters
    ----------
    obj : object
        ``numpy.matrix``, a DataFrame of pandas or polars, a DataArray of xarray, an array of
        PyData sparse, or a nested list of numbers.

    Raises
    ------
    OperatorError
        The object is a masked array, whose masked entries have no value, or a nested list that
        is not a matrix of numbers.
    """
    if isinstance(obj, list | tuple):
        return _from_lists(obj)
    if type(obj).__module__.partition(".")[0] == "sparse":
        # Of the formats of PyData sparse, DOK is converted by way of COO.
        coordinates = obj if hasattr(obj, "to_scipy_sparse") else obj.asformat("coo")
        return coordinates.to_scipy_sparse() if coordinates.ndim == 2 else coordinates.todense()
    return as_plain_array(obj)


def as_plain_array(obj: Any) -> Any:
    """The NumPy array in a ``numpy.matrix``, a table or a labelled array; else the object."""
    if isinstance(obj, np.ma.MaskedArray):
        raise OperatorError(
            f"a masked array has entries without a value: got {describe(obj)}; pass "
            "matrix.filled(0.0), or another value for the masked entries."
        )
    if isinstance(obj, np.matrix):
        return np.asarray(obj)
    library = type(obj).__module__.partition(".")[0]
    return obj.to_numpy() if library in _TABLES and hasattr(obj, "to_numpy") else obj


def _from_lists(rows: Any) -> Any:
    """The matrix given by its rows, each a sequence of numbers."""
    if rows and not isinstance(rows[0], list | tuple | np.ndarray):
        raise OperatorError(
            f"a list is a matrix if its items are rows of numbers: got a {type(rows).__name__} of "
            f"{type(rows[0]).__name__}; pass a 2-D array."
        )
    try:
        matrix = np.array(rows)
    except ValueError as cause:
        raise OperatorError(
            f"the rows of a nested list must have equal lengths to form a matrix ({cause})."
        ) from cause
    return matrix
