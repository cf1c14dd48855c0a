"""The two contracts that every algorithm of matfree is written against.

matfree estimates traces, diagonals, spectral densities, eigenvalue counts, norms, eigenpairs and
singular triplets of matrices of which only matvecs are available, solves linear systems with them,
applies their functions to vectors, and approximates them by matrices of low rank, together with
error estimates. An algorithm needs to know two things about a matrix A:

* how to apply it. A :class:`LinearOperator` has ``shape``, ``dtype`` and ``matvec``. There is
  nothing to inherit from and nothing to register. Algorithms that need A = A^H check it;
* how to sum over the rows of its vectors. A :class:`matfree.VectorSpace` is an abstract class with
  one abstract method, ``all_reduce``, the sum of an array over all processes that hold rows. Inner
  products, norms and Gram matrices (in ``matfree/reductions.py``) and orthonormal bases follow
  from it.

Nothing else is assumed: no array type, no device, and not that one process holds a whole vector.
If several processes take part, a small third interface, :class:`Peers`, lets them agree on
everything that is not a sum over rows, such as a seed. They make the same calls in the same order.

Vectors and blocks
------------------
A vector is an array of shape (n,). A block of k vectors is an array of shape (n, k) with one
vector per column, in C order, so that multiplication by a sparse matrix reads the matrix once for
all k columns. If vectors are sharded over several processes, every array holds only the local
rows, and only the space knows about the others.

Algorithms combine columns by small matrices and elementwise arithmetic, and they sum over rows
*only* through the space. A space whose ``all_reduce`` sums over processes therefore runs every
algorithm unchanged on vectors that no single machine could hold.

Where things are
----------------
Each line may import the lines below it, never those above it::

    cli                          the command line
    checks                       check_operator, a test for operators of your own
    algorithms/                  spectra, traces, eigen, functions, solving, low_rank, krylov,
                                 running (see the import contracts for their order)
    operators/                   aslinearoperator, dense, sparse and streamed matrices, algebra
    spaces                       VectorSpace and ArraySpace
    orthonormal, probe_kinds     orthonormal bases and random vectors in a space
    probes                       the entries of random vectors, reproducible row by row
    results/                     the frozen records that algorithms return
    quadratures/                 error bounds of Gauss quadratures
    plotting/, arguments, arrays, digits, progress   plots, and helpers without a vector space
    protocol, errors             this module, and the exceptions

The adapters of SciPy, CuPy, Dask and PyTorch (``adapters/matfree_*``) import matfree, but matfree
never imports them; an entry point loads the adapter of an object's library.
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

    Three members are required: ``shape``, ``dtype`` and ``matvec``. The operators of SciPy, CuPy
    and PyLops have them. The following members are optional and looked up with ``getattr``:

    ``matmat(X)``
        The map applied to a block (n, k). Without it, columns are passed to ``matvec`` one
        at a time.
    ``rmatvec(x)``, ``rmatmat(X)``
        The adjoint A^H applied to a vector or to a block.
    ``lanczos_step(V, previous, beta, scale)``
        R = A U - previous diag(beta) - U diag(alpha) for the unit vectors U = V diag(scale),
        returned as (R, alpha, norms) with alpha_j = <u_j, A u_j - beta_j previous_j> and the
        2-norms of the columns of R, both in double precision. A fused kernel computes all of
        them in one pass over memory. R may overwrite ``previous``. The method returns None for a
        block for which it is not faster than ``matmat``.
    ``quadratic_forms(X)``
        The numbers x_j^H A x_j, (k,) in double precision. The method returns None for a block
        for which they do not cost less than A X.
    ``space``
        The :class:`matfree.VectorSpace` of A @ x. Without it, the space of whole vectors follows
        from ``dtype`` and ``device``. Any other type raises TypeError.
    ``domain``
        The :class:`matfree.VectorSpace` of x, required next to ``space`` if A is not square.
    ``device``
        The device of the vectors. It is required, without ``space``, if ``dtype`` belongs to
        a library such as torch, and not for NumPy's data types.

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
        """The index of this process, from 0."""

    def all_gather_object(self, local: Callable[[], T], /) -> list[T]:
        """Call ``local`` on every rank and return the results in rank order.

        An exception on one rank is raised on all of them. The results are small.
        """
