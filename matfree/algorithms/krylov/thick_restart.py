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

from typing import ClassVar, final

import numpy as np

from matfree import probes
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import Which, order, slices
from matfree.arrays import rounding, to_host
from matfree.orthonormal import orthonormal_range, project_out, subtract
from matfree.protocol import Array, HostArray

_ROWS_PER_ROTATION = 1 << 12
"""Rows of V turned together at a restart: turned at once, V would be there nearly twice."""


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

    saved = ("kept", "size", "H", "norm", "num_steps", "num_refills", "Q", "S")
    by_row: ClassVar = {"kept": 0, "Q": 0}

    def __init__(
        self,
        A: CountedOperator,
        start: Array,
        capacity: int,
        *,
        seed: int,
        first_refill: int = 0,
        locked: Array | None = None,
    ) -> None:
        self.A, self.space, self.seed = A, A.space, seed
        self.capacity, width = capacity, start.shape[1]
        self.num_locked = 0 if locked is None else int(locked.shape[1])
        # [locked V] in one block, so that projecting off both needs no copy of either; vector
        # behind vector, which products with one or two others read fastest.
        self.basis = self.space.columns(self.num_locked + capacity + width)
        if locked is not None:
            self.basis[:, : self.num_locked] = locked
        self.size = 0
        self.H: HostArray = np.zeros((0, 0))
        self.norm = 0.0
        self.num_steps, self.num_refills = 0, first_refill
        self.Q = self._fill_block(
            self.space.orthonormalize(start, against=self.orthogonal_to), width
        )
        self.S: HostArray = np.zeros((0, self.Q.shape[1]))

    @property
    def orthogonal_to(self) -> Array:
        """[locked V]: all that new vectors must be orthogonal to."""
        return self.basis[:, : self.num_locked + self.size]

    @property
    def V(self) -> Array:
        """The Lanczos vectors so far, (rows, size)."""
        return self.orthogonal_to[:, self.num_locked :]

    @property
    def kept(self) -> Array:
        """V, as a checkpoint stores it and puts it back."""
        return self.V

    @kept.setter
    def kept(self, X: Array) -> None:
        self.basis[:, self.num_locked : self.num_locked + X.shape[1]] = X

    @property
    def room(self) -> bool:
        """Whether another block fits into V."""
        return bool(self.size + self.Q.shape[1] <= self.capacity)

    @property
    def exhausted(self) -> bool:
        """Whether V spans the whole complement, so that nothing is left to add."""
        return bool(self.Q.shape[1] == 0)

    def expand(self) -> None:
        """Append Q to V, multiply it, and make the product's remainder the next Q."""
        space, begin, width = self.space, self.size, self.Q.shape[1]
        W = space.xp.asarray(self.A(self.Q), copy=True)  # ours to write on
        self.size += self._put(self.Q)
        C, removed = self._project_out(W)
        self.A.require_finite(C)
        self._grow(C)
        floor = rounding(space.xp, space.dtype) * self.norm
        Q = orthonormal_range(space, W, against=self.orthogonal_to, floor=floor, removed=removed)
        B = to_host(space.gram(Q, W))
        self.Q = self._fill_block(Q, width)
        self.S = np.zeros((self.size, self.Q.shape[1]), dtype=B.dtype)
        self.S[begin:, : B.shape[0]] = B.conj().T
        self.norm = max(self.norm, _norm(B))
        self.num_steps += 1

    def _project_out(self, W: Array) -> tuple[HostArray, HostArray]:
        """W = A Q without what lies in V; C = V^H A Q, and how much the last pass took off.

        Nearly all of that is known: S, most of whose rows are zero, and Q's own part, by the
        recurrence of Lanczos. What is then left in V is rounding, which is taken off together
        with what locked vectors, not quite eigenvectors, have got.
        """
        space, known = self.space, self.S.shape[0]
        coupled = np.flatnonzero(self.S.any(axis=1))
        first = int(coupled[0]) if len(coupled) else known
        own = space.gram(self.Q, W)
        expected = space.xp.asarray(self.S[first:, :], dtype=own.dtype, device=space.device)
        subtract(space, W, self.V[:, first:], space.xp.concat((expected, own)))
        left = project_out(space, W, self.orthogonal_to)
        both = to_host(space.xp.concat((left, own)))
        num_taken = left.shape[0]
        removed = np.linalg.norm(both[:num_taken, :], axis=0)
        C = both[self.num_locked : num_taken, :]
        C[:known, :] += self.S
        C[known:, :] += both[num_taken:, :]
        return C, removed

    def ritz(self) -> tuple[HostArray, HostArray, HostArray]:
        """Ritz values ascending, coordinates (size, size), and residual norms."""
        values, Y = np.linalg.eigh(self.H)
        return values, Y, np.linalg.norm(self.S.conj().T @ Y, axis=0)

    def vectors(self, Y: HostArray) -> Array:
        """The vectors with coordinates Y, (rows, columns of Y)."""
        return self.V[:, : Y.shape[0]] @ self.space.asarray(Y)

    def restart(self, values: HostArray, Y: HostArray) -> None:
        """Keep the Ritz pairs given; the decomposition goes on from them."""
        kept, begin, V, Y_T = len(values), self.num_locked, self.V, self.space.asarray(Y.T)
        for rows in slices(
            V.shape[0], _ROWS_PER_ROTATION
        ):  # vector behind vector, as the basis lies
            self.basis[rows, begin : begin + kept] = (Y_T @ V[rows, :].T).T
        self.size, self.H = kept, np.diag(values).astype(self.H.dtype)
        self.S = Y.conj().T @ self.S

    def restart_if_full(self, values: HostArray, Y: HostArray, which: Which, k: int) -> bool:
        """Keep the k wanted Ritz pairs and a third of the rest's room, best first, where V is full.

        Half takes about as many products, and its passes over V are longer; a quarter takes more.
        """
        if self.room:
            return False
        most = self.capacity - self.Q.shape[1]
        keep = order(values, which, min(most, k + (self.capacity - k) // 3))
        self.restart(values[keep], Y[:, keep])
        return True

    def _put(self, Q: Array) -> int:
        """Write Q behind what is taken; how many columns that are."""
        end = self.orthogonal_to.shape[1]
        self.basis[:, end : end + Q.shape[1]] = Q
        return int(Q.shape[1])

    def _fill_block(self, Q: Array, width: int) -> Array:
        """Q with lost directions replaced by random ones in the complement of everything.

        A lost direction means an invariant subspace was found: its rows of B stay zero, and
        the random direction starts the search for what that subspace cannot see.
        """
        space, num_taken = self.space, self.orthogonal_to.shape[1]
        for _ in range(2):  # a random direction is inside ``taken`` only where that is all
            missing = min(width, space.size - num_taken) - Q.shape[1]
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
            everything = self.basis[:, : num_taken + self._put(Q)]
            Q = space.xp.concat((Q, space.orthonormalize(fresh, against=everything)), axis=1)
        return Q

    def _grow(self, C: HostArray) -> None:
        """H with the new columns C = [V Q]^H A Q; what C repeats must agree with S."""
        known = self.S.shape[0]
        corner = C[known:, :]
        self.norm = max(self.norm, _norm(C))
        defect = float(np.linalg.norm(C[:known, :] - self.S))  # what C repeats
        defect = max(defect, float(np.linalg.norm(corner - corner.conj().T)))
        self.A.require_hermitian(defect / self.norm if self.norm > 0 else 0.0)
        grown: HostArray = np.zeros((self.size, self.size), dtype=np.result_type(self.H, C))
        grown[:known, :known] = self.H
        grown[:, known:] = C
        grown[known:, :] = C.conj().T
        grown[known:, known:] = (corner + corner.conj().T) / 2
        self.H = grown


def _norm(M: HostArray) -> float:
    """The 2-norm; of one row or column, without its singular value decomposition."""
    return float(np.linalg.norm(M, ord=2 if min(M.shape) > 1 else None)) if M.size else 0.0
