"""Where vectors live: sizes, types, probes, and sums over rows in double precision.

:class:`RowSpace` is everything a space can do, given one thing: how partial sums are
added up over whatever holds the rows. :class:`ArraySpace` holds all rows in one array,
so there is nothing to add. A space over several processes overrides ``add_up`` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, final

import array_api_compat
import numpy as np

from matfree import probes
from matfree.arrays import (
    conjugate,
    is_complex,
    is_floating,
    real_part,
    slabs,
    widest,
)
from matfree.errors import OperatorError
from matfree.orthonormal import orthonormal_range
from matfree.probe_kinds import draw
from matfree.protocol import Array, DType, Peers, ProbeKind

T = TypeVar("T")


class RowSpace(ABC):
    """Vectors of length ``size`` of which this process holds ``rows``.

    Parameters
    ----------
    xp : array namespace
    size : int
        The length of a vector, over everything that holds rows.
    dtype : real or complex floating-point data type of ``xp``
    device : device of ``xp``
    rows : range, optional
        The coordinates held here, step 1; all of them by default.
    peers : Peers, optional
        The processes that make the same calls, whether each holds its rows or all of them; none
        by default.

    Examples
    --------
    >>> import array_api_compat, matfree as mf, numpy as np
    >>> class Counting(mf.RowSpace):  # all rows are here; elsewhere a sum would be a message
    ...     sums = 0
    ...     def add_up(self, partial):
    ...         self.sums += 1
    ...         return partial
    >>> xp = array_api_compat.array_namespace(np.zeros(1))
    >>> space = Counting(xp, 100, np.dtype(float), "cpu")
    >>> A = mf.FunctionOperator(lambda x: 3 * x, space=space)
    >>> mf.trace(A, num_probes=8, seed=0).value, space.sums
    (300.0, 1)
    """

    def __init__(
        self,
        xp: Any,
        size: int,
        dtype: DType,
        device: Any,
        *,
        rows: range | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.xp, self.size, self.dtype, self.device = xp, size, dtype, device
        self.rows = range(size) if rows is None else rows
        self.cut = rows is not None
        """Whether vectors are cut among processes, all of which say the same here."""
        self.peers = peers

    @property
    def rank(self) -> int:
        """The number of this process among those that make the same calls; 0 where it is alone."""
        return 0 if self.peers is None else self.peers.rank

    @property
    def piece(self) -> tuple[int, int, int] | None:
        """(start, stop, n) of the rows held here, for results; None where vectors are whole."""
        return (self.rows.start, self.rows.stop, self.size) if self.cut else None

    def exchange(self, local: Callable[[], T]) -> list[T]:
        """What a function returns in every process, by rank: small things, no sums over rows."""
        return [local()] if self.peers is None else self.peers.exchange(local)

    @abstractmethod
    def add_up(self, partial: Array) -> Array:
        """The sum of ``partial`` over everything that holds rows, known to all of them."""

    def zeros(self, k: int) -> Array:
        """A block of k zero vectors, (rows, k)."""
        return self.xp.zeros((len(self.rows), k), dtype=self.dtype, device=self.device)

    def columns(self, k: int) -> Array:
        """The same with the numbers of each vector behind each other in memory."""
        return self.xp.zeros((k, len(self.rows)), dtype=self.dtype, device=self.device).T

    def slabs(self, k: int) -> Iterator[slice]:
        """The rows held here in slices that fit a cache, k columns wide."""
        return slabs(len(self.rows), k * self.xp.finfo(self.dtype).bits // 8, self.device)

    def asarray(self, x: Any) -> Array:
        """Small host numbers as an array of this space's library, dtype and device."""
        host = np.asarray(x)
        if not is_complex(self.xp, self.dtype):
            host = np.real(host)
        return self.xp.asarray(host, dtype=self.dtype, device=self.device)

    def unit_vectors(self, columns: range) -> Array:
        """The unit vectors e_i for i in ``columns``, (rows, len(columns))."""
        xp = self.xp
        row = xp.arange(self.rows.start, self.rows.stop, dtype=xp.int64, device=self.device)
        column = xp.arange(columns.start, columns.stop, dtype=xp.int64, device=self.device)
        return xp.astype(row[:, None] == column[None, :], self.dtype)

    def probes(
        self,
        num_probes: int,
        *,
        seed: int,
        start: int = 0,
        kind: ProbeKind = "rademacher",
        stream: int = probes.PROBES,
    ) -> Array:
        """Random probes with E[w w^H] = I: a function of (seed, stream, probe, row) alone.

        Parameters
        ----------
        num_probes : int
        seed : int in [0, 2**64)
        start : int
            The number of the first probe of the block.
        kind : {"rademacher", "gaussian", "sphere", "z4"}
            Random signs; N(0, 1) entries (complex ones for a complex space, of variance
            1); Gaussians scaled to norm sqrt(n); 4th roots of unity (complex spaces).
        stream : int in [0, 2**16)
            Keeps probes, start vectors and sketches of one seed apart.

        Returns
        -------
        (rows, num_probes) in C order, of this space's dtype and device.
        """
        return draw(self, kind, range(start, start + num_probes), seed=seed, stream=stream)

    def gram(self, X: Array, Y: Array) -> Array:
        """X^H Y, (j, k), accumulated in double precision whatever the vectors' type."""
        xp, wide = self.xp, widest(self.xp, self.dtype, self.device)
        width = (X.shape[1] + Y.shape[1]) * xp.finfo(wide).bits // 16  # of one, on average
        total = xp.zeros((X.shape[1], Y.shape[1]), dtype=wide, device=self.device)
        for slab in slabs(X.shape[0], width, self.device):  # products of tall blocks like it, too
            x, y = X[slab, :], Y[slab, :]
            if X.dtype != wide:
                x, y = xp.astype(x, wide), xp.astype(y, wide)
            total += _adjoint_times(xp, x, y)
        return self.add_up(total)

    def dots(self, X: Array, Y: Array) -> Array:
        """The inner products x_j^H y_j of two blocks column by column, (k,), in double."""
        return self.add_up(self.partial_dots(X, Y))

    def partial_dots(self, X: Array, Y: Array) -> Array:
        """The same over some rows held here, (k,); their sum goes through ``add_up``."""
        xp, wide = self.xp, widest(self.xp, self.dtype, self.device)
        total = xp.zeros((1, X.shape[1]), dtype=wide, device=self.device)
        for slab in slabs(X.shape[0], X.shape[1] * xp.finfo(wide).bits // 8, self.device):
            x, y = X[slab, :], Y[slab, :]
            if X.dtype != wide:  # before the product: squares leave the range of float32
                x, y = xp.astype(x, wide), xp.astype(y, wide)
            terms = conjugate(xp, x) * y
            if X.shape[1] == 1:  # numbers in a row, which a library's own sum takes pairwise
                total += xp.sum(terms)
            else:  # its sum over rows is not, and slower than a product
                total += xp.ones((1, x.shape[0]), dtype=wide, device=self.device) @ terms
        return total[0, :]

    def norms(self, X: Array) -> Array:
        """The 2-norms of the columns of X, (k,) real, in double."""
        return self.xp.sqrt(real_part(self.xp, self.dots(X, X)))

    def orthonormalize(
        self, X: Array, *, against: Array | None = None, floor: float = 0.0
    ) -> Array:
        r"""An orthonormal basis Q of the range of X, told from Gram matrices alone.

        Each sweep takes the directions that a Gram matrix resolves (it squares the
        condition number), makes them orthonormal to the last digit, and leaves the rest to
        the next sweep.

        Parameters
        ----------
        X : (rows, k)
        against : (rows, j) with orthonormal columns, optional
            Directions already taken: Q spans what X adds to them.
        floor : float
            The length at which a direction counts as rounding, where the caller knows of
            rounding that the block does not show: eps ||A|| for the residual A V - V H.

        Returns
        -------
        (rows, r) with Q^H Q = I, r the number of directions of X (of what it adds) longer
        than 32 eps of its longest column, where rounding begins; r = 0 for a zero block.
        Relative, so scale does not matter.

        Cost
        ----
        A sweep where the columns of X are far from dependent, up to four where they are not,
        of two Gram matrices each; ``against`` is read twice, and twice more for every sweep
        or where most of X lies in it. 5 blocks with X and the answer, and no copy of
        ``against``. Each sweep brings k x k numbers to the host.
        """
        return orthonormal_range(self, X, against=against, floor=floor)


@final
class ArraySpace(RowSpace):
    """Vectors held whole, each in one array on one device.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> space = mf.space_like(np.zeros(1), 3)
    >>> type(space).__name__, space.size, space.orthonormalize(np.ones((3, 2))).shape
    ('ArraySpace', 3, (3, 1))
    """

    def add_up(self, partial: Array) -> Array:
        """The partial sum itself: all rows are here."""
        return partial


def space_like(example: Array, size: int, *, peers: Peers | None = None) -> ArraySpace:
    """The space of vectors of length ``size`` that look like an example array.

    Integers and booleans stand for the library's double precision, and 16-bit floating
    point for 32-bit: sums over rows would lose everything in less.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> mf.space_like(np.zeros(1), 5).probes(1, seed=0)[:, 0]
    array([-1.,  1., -1.,  1., -1.])
    """
    if array_api_compat.is_dask_array(example):
        raise OperatorError(
            "vectors cannot be Dask arrays, whose graph grows with every step; give the matrix as "
            "a Dask array, and its vectors are NumPy's."
        )
    xp = array_api_compat.array_namespace(example)
    dtype = example.dtype
    if not is_floating(xp, dtype):
        dtype = xp.float64
    elif xp.finfo(dtype).bits < 32:
        dtype = xp.float32
    return ArraySpace(xp, size, dtype, array_api_compat.device(example), peers=peers)


def _adjoint_times(xp: Any, X: Array, Y: Array) -> Array:
    """X^H Y; for complex blocks the narrower of the two is the one conjugated."""
    if not is_complex(xp, X.dtype):
        return X.T @ Y
    if X.shape[1] <= Y.shape[1]:
        return xp.conj(X).T @ Y
    return xp.conj(X.T @ xp.conj(Y))
