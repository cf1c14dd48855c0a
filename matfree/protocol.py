"""The two contracts that everything in matfree is written against.

A randomized algorithm needs to know only two things about a matrix:

* what it does to a vector: that is a :class:`LinearOperator`;
* where its vectors live: that is a :class:`VectorSpace`.

Whoever implements the two gets every algorithm of the library. Nothing else is
assumed: no array type, no device, not even that one process holds a whole vector.

Shapes and layout
-----------------
A vector is an array of shape (n,); a block of k vectors is an array of shape (n, k),
one vector a column, in C order (so that a sparse product reads the matrix once for all
k). Where a vector is cut into pieces held by several processes, an array holds the rows
of this process only, and only :class:`VectorSpace` knows about the others.

The rule
--------
Algorithms combine columns with small matrices and with elementwise arithmetic, and they
add up over rows *only* through the space. A space whose reductions sum over processes
therefore runs every algorithm unchanged on vectors that no single machine could hold.

Processes that share vectors, or a matrix, make the same calls in the same order. What is no sum
over rows, such as the seed they draw from, they agree about through ``exchange``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

T = TypeVar("T")

Array: TypeAlias = Any
"""An array of any library that the Python array API standard covers."""

HostArray: TypeAlias = np.ndarray[Any, Any]
"""A NumPy array of small numbers that the host works with."""

DType: TypeAlias = Any
"""A data type of the array's own library."""

ProbeKind: TypeAlias = Literal["rademacher", "gaussian", "sphere", "z4"]
"""The distribution of random probes; every kind has E[w w^H] = I. See ``probes``."""

LanczosStep: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array] | None]
"""A step of the Lanczos recurrence in one go. See ``LinearOperator``."""

QuadraticForms: TypeAlias = Callable[[Array], Array | None]
"""The numbers x_j^H A x_j of a block. See ``LinearOperator``."""

Seed: TypeAlias = Any
"""An ``int`` in [0, 2**64), None for fresh entropy, or a ``numpy.random.Generator``."""


@runtime_checkable
class LinearOperator(Protocol):
    """A linear map known only by what it does to vectors.

    Three members are required. SciPy's, CuPy's and PyLops' operators have them as they
    are, and so does any class of yours with three lines.

    These are used where they exist, and found by ``getattr``:

    ``matmat(X)``
        The map applied to a block (n, k); otherwise columns go through ``matvec`` one by
        one.
    ``rmatvec(x)``, ``rmatmat(X)``
        The adjoint A^H applied to a vector, a block.
    ``lanczos_step(V, previous, beta, scale)``
        R = A U - previous diag(beta) - U diag(alpha) for the unit vectors U = V diag(scale),
        returned as (R, alpha, norms) with alpha_j = <u_j, A u_j - beta_j previous_j> and the
        2-norms of R's columns, both in double precision. One pass over memory can do the
        work of several; R may be written over ``previous``. It returns None for a block that
        ``matmat`` serves as well.
    ``quadratic_forms(X)``
        The numbers x_j^H A x_j, (k,) in double precision, where they cost less than A X
        itself; None for a block where they do not.
    ``space``
        The :class:`VectorSpace` of its vectors; otherwise it is told from the data type
        and the device.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> class Doubling:
    ...     shape, dtype = (4, 4), np.float64
    ...     def matvec(self, x):
    ...         return 2 * x
    >>> isinstance(Doubling(), mf.LinearOperator), mf.trace(Doubling(), num_probes=2, seed=0).value
    (True, 8.0)
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the whole operator, however its vectors are cut."""

    @property
    def dtype(self) -> DType:
        """The data type of A @ x for a real x: floating point, real or complex."""

    def matvec(self, x: Array, /) -> Array:
        """A @ x for x of shape (n,). It must not write into x."""


class VectorSpace(Protocol):
    """Where vectors live, and the only sums over their rows that algorithms may use.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> space: mf.VectorSpace = mf.space_like(np.zeros(1, dtype=np.float32), 1000)
    >>> W = space.probes(2, seed=0)
    >>> space.gram(W, W).diagonal(), space.norms(W) ** 2  # in double precision
    (array([1000., 1000.]), array([1000., 1000.]))
    """

    @property
    def size(self) -> int:
        """The length n of a vector, counted over everything that holds rows."""

    @property
    def rows(self) -> range:
        """The coordinates that this process holds; range(n) where nothing is cut."""

    @property
    def rank(self) -> int:
        """The number of this process among those that make the same calls; 0 where it is alone."""

    @property
    def xp(self) -> Any:
        """The array namespace, as the array API standard defines it."""

    @property
    def dtype(self) -> DType:
        """The data type of the vectors: real or complex floating point."""

    @property
    def device(self) -> Any:
        """The device that holds them."""

    def zeros(self, k: int, /) -> Array:
        """A block of k zero vectors, (rows, k)."""

    def probes(
        self,
        num_probes: int,
        *,
        seed: int,
        start: int = 0,
        kind: ProbeKind = "rademacher",
        stream: int = 0,
    ) -> Array:
        """Probes number start, start + 1, ... as a block (rows, num_probes)."""

    def gram(self, X: Array, Y: Array, /) -> Array:
        """X^H Y, (j, k), summed in double precision over everything that holds rows."""

    def dots(self, X: Array, Y: Array, /) -> Array:
        """The inner products x_j^H y_j of two blocks column by column, (k,), likewise."""

    def norms(self, X: Array, /) -> Array:
        """The 2-norms of the columns of X, (k,) real, likewise."""

    def exchange(self, local: Callable[[], T], /) -> list[T]:
        """What a function returns in every process, by rank; an error in one ends them all."""

    def orthonormalize(
        self, X: Array, /, *, against: Array | None = None, floor: float = 0.0
    ) -> Array:
        """An orthonormal basis (rows, r) of what X adds to ``against``, r its rank."""


class Peers(Protocol):
    """Processes that make the same calls in the same order, this one among them."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    def exchange(self, local: Callable[[], T], /) -> list[T]:
        """What a function returns in every process, by rank; small things."""
