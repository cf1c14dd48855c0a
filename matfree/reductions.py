"""Sums over the rows of vectors, in double precision, over all processes that hold rows.

:class:`Reductions` derives inner products, norms and Gram matrices from one abstract method,
``all_reduce``. It is the base class of :class:`matfree.VectorSpace`, and all that the
construction of random probes and of orthonormal bases needs to know of a space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import numpy as np

from matfree.arrays import conjugate, is_complex, real_part, slabs, widest
from matfree.protocol import Array, DType


class Reductions(ABC):
    """Sums over rows for vectors of length ``size`` of which this process holds ``rows``.

    Parameters
    ----------
    xp : array namespace
    size : int
        The length n of a vector, including the rows of other processes.
    dtype : real or complex floating-point data type of ``xp``
    device : device of ``xp``
    rows : range
        The coordinates held by this process, with step 1.
    """

    def __init__(self, xp: Any, size: int, dtype: DType, device: Any, rows: range) -> None:
        self.xp, self.size, self.dtype, self.device, self.rows = xp, size, dtype, device, rows

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with the array namespace by its name: modules cannot be pickled."""
        return {**vars(self), "xp": self.xp.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, xp=import_module(state["xp"]))

    @abstractmethod
    def all_reduce(self, partial: Array) -> Array:
        """The sum of ``partial`` over all processes that hold rows, returned on every rank.

        Parameters
        ----------
        partial : array of any shape
            The sum over the rows that this process holds. It must not be modified.
        """

    def asarray(self, x: Any) -> Array:
        """Small host numbers as an array of this space's library, dtype and device."""
        host = np.asarray(x)
        if not is_complex(self.xp, self.dtype):
            host = np.real(host)
        return self.xp.asarray(host, dtype=self.dtype, device=self.device)

    def gram(self, X: Array, Y: Array) -> Array:
        """X^H Y, (j, k), accumulated in double precision for every dtype of the vectors."""
        return self.all_reduce(self.partial_gram(X, Y))

    def partial_gram(self, X: Array, Y: Array) -> Array:
        """The sums of :meth:`gram` over the given rows only, (j, k), without ``all_reduce``."""
        xp, wide = self.xp, widest(self.xp, self.dtype, self.device)
        width = (X.shape[1] + Y.shape[1]) * xp.finfo(wide).bits // 16  # bytes, averaged over both
        total = xp.zeros((X.shape[1], Y.shape[1]), dtype=wide, device=self.device)
        for slab in slabs(X.shape[0], width, self.device):  # faster than one product, too
            x, y = X[slab, :], Y[slab, :]
            if X.dtype != wide:
                x, y = xp.astype(x, wide), xp.astype(y, wide)
            total += _adjoint_times(xp, x, y)
        return total

    def dots(self, X: Array, Y: Array) -> Array:
        """The inner products x_j^H y_j of matching columns, (k,), in double precision."""
        return self.all_reduce(self.partial_dots(X, Y))

    def partial_dots(self, X: Array, Y: Array) -> Array:
        """The sums of :meth:`dots` over the given rows only, (k,), without ``all_reduce``."""
        xp, wide = self.xp, widest(self.xp, self.dtype, self.device)
        total = xp.zeros((1, X.shape[1]), dtype=wide, device=self.device)
        for slab in slabs(X.shape[0], X.shape[1] * xp.finfo(wide).bits // 8, self.device):
            x, y = X[slab, :], Y[slab, :]
            if X.dtype != wide:  # before multiplying, because squares may overflow in float32
                x, y = xp.astype(x, wide), xp.astype(y, wide)
            terms = conjugate(xp, x) * y
            # Libraries sum contiguous numbers pairwise, but not along the first axis, where a
            # matrix product is both faster and at least as accurate.
            if X.shape[1] == 1:
                total += xp.sum(terms)
            else:
                total += xp.ones((1, x.shape[0]), dtype=wide, device=self.device) @ terms
        return total[0, :]

    def norms(self, X: Array) -> Array:
        """The 2-norms of the columns of X, (k,) real, in double precision."""
        return self.xp.sqrt(real_part(self.xp, self.dots(X, X)))


def _adjoint_times(xp: Any, X: Array, Y: Array) -> Array:
    """X^H Y; of two complex blocks the narrower one is conjugated."""
    if not is_complex(xp, X.dtype):
        return X.T @ Y
    if X.shape[1] <= Y.shape[1]:
        return xp.conj(X).T @ Y
    return xp.conj(X.T @ xp.conj(Y))
