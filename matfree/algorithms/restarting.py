r"""Thick-restart block Lanczos: the engine under ``eigsh``.

The state is a Krylov decomposition

    A V = V H + Q S^H,        [V Q] orthonormal,  H = V^H A V,  S = V^H A Q.

One expansion appends Q to V, multiplies it, and orthogonalises the product against
everything. When V is full, a restart keeps the best Ritz vectors: V <- V Y,
H <- diag(theta), S <- Y^H S, and the decomposition still holds.

References
----------
K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue
problems, doi:10.1137/S0895479898334605.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, final

import numpy as np

from matfree import probes
from matfree.algorithms.products import HostArray, Products
from matfree.arrays import rounding, to_host
from matfree.protocol import Array

Which: TypeAlias = Literal["LM", "LA", "SA", "BE"]


def order(values: HostArray, which: Which, k: int) -> HostArray:
    """Indices of the k wanted values, best first; for both ends, alternating from the top."""
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    ascending = np.argsort(values, kind="stable")
    if which == "SA":
        return ascending[:k]
    descending = ascending[::-1]
    if which == "LA":
        return descending[:k]
    k = min(k, len(values))  # or the two ends would overlap
    high, low = descending[: (k + 1) // 2], ascending[: k // 2]
    both = np.empty(len(high) + len(low), dtype=int)
    both[0::2], both[1::2] = high, low
    return both


@final
class KrylovDecomposition:
    """A V = V H + Q S^H on the orthogonal complement of vectors already locked.

    Parameters
    ----------
    product : the operator, counted
    start : (rows, b), the start block
    capacity : int
        Columns of V at most.
    seed : int
        Of the vectors that replace a block's lost directions.
    first_refill : int
        The number of the first of them.
    locked : (rows, j) with orthonormal columns, optional
        Vectors that the whole decomposition stays orthogonal to.
    """

    def __init__(
        self,
        product: Products,
        start: Array,
        capacity: int,
        *,
        seed: int,
        first_refill: int = 0,
        locked: Array | None = None,
    ) -> None:
        self.product, self.space, self.seed = product, product.space, seed
        self.locked = self.space.zeros(0) if locked is None else locked
        self.V = self.space.zeros(capacity)
        self.size = 0
        self.H: HostArray = np.zeros((0, 0))
        self.norm = 0.0
        self.num_steps, self.num_refills = 0, first_refill
        self.Q = self._filled(self.space.orthonormalize(start, against=self.locked), start.shape[1])
        self.S: HostArray = np.zeros((0, self.Q.shape[1]))

    @property
    def room(self) -> bool:
        """Whether another block fits into V."""
        return bool(self.size + self.Q.shape[1] <= self.V.shape[1])

    @property
    def exhausted(self) -> bool:
        """Whether V spans the whole complement, so that nothing is left to add."""
        return bool(self.Q.shape[1] == 0)

    def expand(self) -> None:
        """Append Q to V, multiply it, and make the product's remainder the next Q."""
        space, begin, width = self.space, self.size, self.Q.shape[1]
        self.V[:, begin : begin + width] = self.Q
        self.size = begin + width
        W = self._without(self.locked, self.product(self.Q))[0]
        V = self.V[:, : self.size]
        W, first = self._without(V, W)
        W, second = self._without(V, W)
        C = to_host(first + second)
        self.product.require_finite(C)
        self._grow(C)
        floor = rounding(space.xp, space.dtype) * self.norm
        taken = space.xp.concat((self.locked, V), axis=1)
        Q = space.orthonormalize(W, against=taken, floor=floor)
        B = to_host(space.gram(Q, W))
        self.Q = self._filled(Q, width, taken)
        self.S = np.zeros((self.size, self.Q.shape[1]), dtype=B.dtype)
        self.S[begin:, : B.shape[0]] = B.conj().T
        self.norm = max(self.norm, _norm(B))
        self.num_steps += 1

    def ritz(self) -> tuple[HostArray, HostArray, HostArray]:
        """Ritz values ascending, coordinates (size, size), and residual norms."""
        values, Y = np.linalg.eigh(self.H)
        return values, Y, np.linalg.norm(self.S.conj().T @ Y, axis=0)

    def vectors(self, Y: HostArray) -> Array:
        """The vectors with coordinates Y, (rows, columns of Y)."""
        return self.V[:, : Y.shape[0]] @ self.space.asarray(Y)

    def restart(self, values: HostArray, Y: HostArray) -> None:
        """Keep the Ritz pairs given; the decomposition goes on from them."""
        kept = len(values)
        self.V[:, :kept] = self.vectors(Y)
        self.size, self.H = kept, np.diag(values).astype(self.H.dtype)
        self.S = Y.conj().T @ self.S

    def _without(self, basis: Array, W: Array) -> tuple[Array, Array]:
        C = self.space.gram(basis, W)
        return W - basis @ self.space.xp.astype(C, self.space.dtype), C

    def _filled(self, Q: Array, width: int, taken: Array | None = None) -> Array:
        """Q with lost directions replaced by random ones in the complement of everything.

        A lost direction means an invariant subspace was found: its rows of B stay zero, and
        the random direction starts the search for what that subspace cannot see.
        """
        space = self.space
        taken = self.locked if taken is None else taken
        for _ in range(2):  # a random direction is inside ``taken`` only where that is all
            missing = min(width, space.size - taken.shape[1]) - Q.shape[1]
            if missing <= 0:
                break
            fresh = space.probes(
                missing,
                seed=self.seed,
                start=self.num_refills,
                kind="gaussian",
                stream=probes.REFILL,
            )
            self.num_refills += missing
            everything = space.xp.concat((taken, Q), axis=1)
            Q = space.xp.concat((Q, space.orthonormalize(fresh, against=everything)), axis=1)
        return Q

    def _grow(self, C: HostArray) -> None:
        """H with the new columns C = [V Q]^H A Q; what C repeats must agree with S."""
        known = self.S.shape[0]
        corner = C[known:, :]
        self.norm = max(self.norm, _norm(C))
        defect = max(_norm(C[:known, :] - self.S), _norm(corner - corner.conj().T))
        self.product.require_hermitian(defect / self.norm if self.norm > 0 else 0.0)
        grown: HostArray = np.zeros((self.size, self.size), dtype=np.result_type(self.H, C))
        grown[:known, :known] = self.H
        grown[:, known:] = C
        grown[known:, :] = C.conj().T
        grown[known:, known:] = (corner + corner.conj().T) / 2
        self.H = grown


def _norm(M: HostArray) -> float:
    return float(np.linalg.norm(M, ord=2)) if M.size else 0.0
