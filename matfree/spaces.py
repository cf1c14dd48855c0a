"""Vector spaces: the data type and device of vectors, and the sums over their rows.

:class:`VectorSpace` is the contract. A subclass implements ``all_reduce``, the sum over all
processes that hold rows, and inherits the rest: :mod:`matfree.reductions` derives ``gram``,
``dots`` and ``norms`` from it. In :class:`ArraySpace` every vector is one whole array, so that
``all_reduce`` returns its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import array_api_compat

from matfree import probes
from matfree.arrays import describe, slabs, vector_dtype
from matfree.errors import OperatorError
from matfree.orthonormal import orthonormal_range
from matfree.probe_kinds import draw
from matfree.protocol import Array, DType, Peers, ProbeKind, T
from matfree.reductions import Reductions


class VectorSpace(Reductions):
    """The space of vectors of length ``size``, of which this process holds ``rows``.

    This is the contract that every algorithm is written against. To run the library on
    vectors of your own kind, derive a class from it and implement ``all_reduce``.

    Parameters
    ----------
    xp : array namespace
    size : int
        The length n of a vector, including the rows of other processes.
    dtype : real or complex floating-point data type of ``xp``
    device : device of ``xp``
    rows : range, optional
        The coordinates held by this process, with step 1; all of them by default.
    peers : Peers, optional
        The processes that make the same calls, this one included; None if it is alone. It is
        required if vectors are sharded.

    Examples
    --------
    >>> import array_api_compat, matfree as mf, numpy as np
    >>> class Counting(mf.VectorSpace):  # holds all rows, so that there is nothing to add
    ...     num_sums = 0
    ...     def all_reduce(self, partial):
    ...         self.num_sums += 1
    ...         return partial
    >>> xp = array_api_compat.array_namespace(np.zeros(1))
    >>> space = Counting(xp, 100, np.dtype(float), "cpu")
    >>> A = mf.FunctionOperator(lambda x: 3 * x, space=space)
    >>> mf.trace(A, num_probes=8, seed=0).value, space.num_sums
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
        super().__init__(xp, size, dtype, device, range(size) if rows is None else rows)
        self.is_sharded = rows is not None
        """Whether vectors are sharded over processes; every process has the same answer."""
        self.peers = peers

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "add_up" in vars(cls) and "all_reduce" not in vars(cls):
            cls.all_reduce = cls.add_up  # type: ignore[method-assign, assignment]  # its former name

    def add_up(self, partial: Array) -> Array:
        """An alias of ``all_reduce``, kept for subclasses written before it had this name."""
        return self.all_reduce(partial)

    @property
    def rank(self) -> int:
        """The rank of this process among its peers; 0 if it is alone."""
        return 0 if self.peers is None else self.peers.rank

    @property
    def row_range(self) -> tuple[int, int, int] | None:
        """(start, stop, n) of the local rows, for results; None if vectors are whole."""
        return (self.rows.start, self.rows.stop, self.size) if self.is_sharded else None

    def all_gather_object(self, local: Callable[[], T]) -> list[T]:
        """Call ``local`` on every rank and return the results in rank order.

        An exception on one rank is raised on all of them. The results are small; sums over
        rows go through ``all_reduce``.
        """
        if self.peers is None:
            if len(self.rows) < self.size:
                raise TypeError(
                    f"this {type(self).__name__} holds rows {self.rows.start} to {self.rows.stop} "
                    f"of {self.size} and has no peers; pass peers=, an object with rank and "
                    "all_gather_object(local), so that all processes can agree on a seed."
                )
            return [local()]
        gather = getattr(self.peers, "all_gather_object", None) or self.peers.exchange  # type: ignore[attr-defined]  # its former name
        return gather(local)  # type: ignore[no-any-return]

    exchange = all_gather_object  # its former name

    def zeros(self, k: int) -> Array:
        """A block of k zero vectors, (rows, k)."""
        return self.xp.zeros((len(self.rows), k), dtype=self.dtype, device=self.device)

    def columns(self, k: int) -> Array:
        """A block of k zero vectors, (rows, k), in which every column is contiguous."""
        return self.xp.zeros((k, len(self.rows)), dtype=self.dtype, device=self.device).T

    def slabs(self, k: int) -> Iterator[slice]:
        """The local rows in slices that fit a cache, for blocks of k columns."""
        return slabs(len(self.rows), k * self.xp.finfo(self.dtype).bits // 8, self.device)

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
        """Random probes with E[w w^H] = I, as a function only of (seed, stream, probe, row).

        Parameters
        ----------
        num_probes : int
        seed : int in [0, 2**64)
        start : int
            The index of the first probe of the block.
        kind : {"rademacher", "gaussian", "sphere", "z4"}
            Random signs; N(0, 1) entries (complex ones of variance 1 for a complex space);
            Gaussian vectors scaled to norm sqrt(n); fourth roots of unity (complex spaces).
        stream : int in [0, 2**16)
            Separates the probes, start vectors and sketches of one seed.

        Returns
        -------
        (rows, num_probes) in C order, of this space's dtype and device.
        """
        return draw(self, kind, range(start, start + num_probes), seed=seed, stream=stream)

    def orthonormalize(
        self, X: Array, *, against: Array | None = None, floor: float = 0.0
    ) -> Array:
        """An orthonormal basis Q of the range of X, computed from Gram matrices only.

        A Gram matrix squares the condition number, so that it resolves only the directions of X
        with singular values above about eps^(1/3) times the largest. A sweep orthonormalizes
        these to working precision and projects them out of X; the next sweep continues with the
        remainder.

        Parameters
        ----------
        X : (rows, k)
        against : (rows, j) with orthonormal columns, optional
            A basis to which Q is orthogonal: Q then spans the range of (I - P) X, where P is
            the projector onto the range of ``against``.
        floor : float
            Directions of X shorter than this length are regarded as rounding errors. X need not
            show how large its rounding errors are: the residual A V - V H may be tiny, but has
            errors of size eps ||A||.

        Returns
        -------
        (rows, r) with Q^H Q = I. The rank r is the number of directions of X, or of (I - P) X,
        that are longer than ``floor`` and than 32 eps times the longest column of X; shorter
        ones are rounding errors. r = 0 for a zero block. Without ``floor``, the scale of X does
        not matter.

        Cost
        ----
        One sweep if the columns of X are far from linearly dependent, up to four otherwise, of
        two Gram matrices each. ``against`` is read twice, and twice more in every further sweep
        or if most of X lies in its range. Memory: 5 blocks including X and the result, and no
        copy of ``against``. Each sweep copies k x k numbers to the host.
        """
        return orthonormal_range(self, X, against=against, floor=floor)


RowSpace = VectorSpace
"""An alias of :class:`VectorSpace`, its former name."""


@final
class ArraySpace(VectorSpace):
    """The space of whole vectors, each in one array on one device.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> space = mf.space_like(np.zeros(1), 3)
    >>> type(space).__name__, space.size, space.orthonormalize(np.ones((3, 2))).shape
    ('ArraySpace', 3, (3, 1))
    """

    def all_reduce(self, partial: Array) -> Array:
        """The partial sum itself, because all rows are local."""
        return partial


def space_like(example: Array, size: int, *, peers: Peers | None = None) -> ArraySpace:
    """The space of whole vectors of length ``size`` with the library and dtype of an example array.

    Integers and booleans are replaced by the library's double precision, and 16-bit floating
    point by 32-bit, because sums over rows would lose all accuracy in less. NumPy's long double
    is replaced by double, and foreign byte order by the native one.

    Parameters
    ----------
    example : array
        It determines the array library, the data type and the device.
    size : int
    peers : Peers, optional
        The processes that make the same calls, each with whole vectors.

    Raises
    ------
    OperatorError
        The example is a Dask array.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> mf.space_like(np.zeros(1), 5).probes(1, seed=0)[:, 0]
    array([-1.,  1., -1.,  1., -1.])
    """
    if array_api_compat.is_dask_array(example):
        raise OperatorError(
            "vectors cannot be Dask arrays, because their graph would grow with every step; pass "
            "only the matrix as a Dask array, whose vectors are NumPy arrays."
        )
    xp = array_api_compat.array_namespace(example)
    dtype = vector_dtype(xp, example.dtype)
    return ArraySpace(xp, size, dtype, array_api_compat.device(example), peers=peers)


def require_space(space: Any, name: str = "space") -> VectorSpace:
    """Return ``space`` if it is a vector space that algorithms can use.

    Raises
    ------
    TypeError
        It is not a :class:`VectorSpace`.
    """
    if not isinstance(space, VectorSpace):
        raise TypeError(
            f"{name} must derive from matfree.VectorSpace, which asks for one method, "
            "all_reduce(partial), the sum over all processes that hold rows: "
            f"got {describe(space)}."
        )
    return space
