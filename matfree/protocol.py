"""The two contracts that every algorithm of matfree is written against.

A randomized algorithm needs to know two things about a matrix:

* what it does to a vector. This is a :class:`LinearOperator`: ``shape``, ``dtype`` and
  ``matvec``, with nothing to inherit from and nothing to register;
* where its vectors live. This is a :class:`matfree.VectorSpace`: an abstract class with one
  abstract method, ``all_reduce``, the sum over everything that holds rows of a vector.
  Inner products, norms, Gram matrices, random probes and orthonormal bases follow from it.

Every algorithm of the library runs on an implementation of these two. Nothing else is assumed:
no array type, no device, and not even that one process holds a whole vector. An operator that
declares no ``space`` gets the space of whole vectors of its data type and device.

Shapes and layout
-----------------
A vector is an array of shape (n,). A block of k vectors is an array of shape (n, k) with one
vector per column, in C order, so that multiplication by a sparse matrix reads the matrix once for
all k columns. If vectors are sharded over several processes, every array holds the rows of its own
process only, and only the space knows about the others.

The rule
--------
Algorithms combine columns with small matrices and with elementwise arithmetic, and they sum
over rows *only* through the space. A space whose ``all_reduce`` sums over processes therefore
runs every algorithm unchanged on vectors that no single machine could hold.

Processes that share vectors, or a matrix, make the same calls in the same order. They agree
on everything that is not a sum over rows, such as a seed, through ``all_gather_object``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

T = TypeVar("T")

Array: TypeAlias = Any
"""An array of any library that the Python array API standard covers."""

HostArray: TypeAlias = np.ndarray[Any, Any]
"""A NumPy array of numbers that are small enough to be processed on the host."""

DType: TypeAlias = Any
"""A data type of the array's own library."""

ProbeKind: TypeAlias = Literal["rademacher", "gaussian", "sphere", "z4"]
"""The distribution of random probes w; every kind has E[w w^H] = I. See ``matfree.probes``."""

LanczosStep: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array] | None]
"""A fused step of the Lanczos recurrence. See ``LinearOperator``."""

QuadraticForms: TypeAlias = Callable[[Array], Array | None]
"""The numbers x_j^H A x_j for the columns of a block. See ``LinearOperator``."""

Seed: TypeAlias = Any
"""An ``int`` in [0, 2**64), None for fresh entropy, or a ``numpy.random.Generator``."""


@runtime_checkable
class LinearOperator(Protocol):
    """A linear map that is known only by its action on vectors.

    Three members are required. The operators of SciPy, CuPy and PyLops have them, and a class
    of your own needs three lines.

    The following members are optional. They are looked up with ``getattr``:

    ``matmat(X)``
        The map applied to a block (n, k). Without it, columns are passed to ``matvec`` one
        at a time.
    ``rmatvec(x)``, ``rmatmat(X)``
        The adjoint A^H applied to a vector or to a block.
    ``lanczos_step(V, previous, beta, scale)``
        R = A U - previous diag(beta) - U diag(alpha) for the unit vectors U = V diag(scale),
        returned as (R, alpha, norms) with alpha_j = <u_j, A u_j - beta_j previous_j> and the
        2-norms of the columns of R, both in double precision. One pass over memory can then
        do the work of several. R may overwrite ``previous``. The method returns None for a
        block for which it is not faster than ``matmat``.
    ``quadratic_forms(X)``
        The numbers x_j^H A x_j, (k,) in double precision, if they cost less than A X. The
        method returns None for a block for which they do not.
    ``space``
        The :class:`matfree.VectorSpace` of its vectors. Without it, the space follows from
        ``dtype`` and ``device``. Anything else than a ``VectorSpace`` is a TypeError.

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
        """(m, n) of the whole operator, even if its vectors are sharded."""

    @property
    def dtype(self) -> DType:
        """The data type of A @ x for a real x: floating point, real or complex."""

    def matvec(self, x: Array, /) -> Array:
        """A @ x for x of shape (n,). It must not modify x."""


class Peers(Protocol):
    """The processes that make the same calls in the same order, including this one."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    def all_gather_object(self, local: Callable[[], T], /) -> list[T]:
        """Call ``local`` on every rank and return the results in rank order.

        An exception on one rank is raised on all of them. The results are small.
        """
