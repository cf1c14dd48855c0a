r"""Thick-restart block Lanczos, on which ``eigsh`` is based.

The state is a Krylov decomposition

.. math::

    A V = V H + Q S^H, \qquad [V \; Q] \text{ orthonormal}, \qquad
    H = V^H A V, \quad S = V^H A Q.

One expansion appends Q to V, computes A Q, and orthogonalizes it against all columns. When V is
full, a restart replaces V by the best Ritz vectors V Y,

.. math:: V \leftarrow V Y, \qquad H \leftarrow \mathrm{diag}(\theta), \qquad S \leftarrow Y^H S,

and the decomposition still holds.

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

_ROWS_PER_UPDATE = 1 << 12
"""The rows of V that a restart replaces by those of V Y at a time, because a whole V Y would need
memory for V twice."""


@final
class KrylovDecomposition:
    """A V = V H + Q S^H in the orthogonal complement of locked vectors.

    Parameters
    ----------
    A : CountedOperator
    start : (rows, b)
        The start block. It need not be orthonormal.
    capacity : int
        The maximum number of columns of V.
    seed : int
        The seed of the random vectors that replace rank-deficient columns of a block.
    first_refill : int
        The index of the first of these random vectors.
    locked : (rows, j), orthonormal columns, optional
        Vectors to which the whole decomposition remains orthogonal.
    """

    # The state of a checkpoint; see matfree/algorithms/running/checkpoint.py for all three.
    saved = ("stored_vectors", "size", "H", "norm", "num_steps", "num_refills", "Q", "S")
    stored_as: ClassVar = {"stored_vectors": "kept"}
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
        # [locked V] is one block, so that projecting out both needs no copy of either. Columns are
        # contiguous, which is fastest for inner products with one or two other vectors.
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
        """[locked V], (rows, j + size): the vectors to which new ones must be orthogonal."""
        return self.basis[:, : self.num_locked + self.size]

    @property
    def V(self) -> Array:
        """The Lanczos vectors so far, (rows, size)."""
        return self.orthogonal_to[:, self.num_locked :]

    @property
    def stored_vectors(self) -> Array:
        """V, as a checkpoint stores and restores it."""
        return self.V

    @stored_vectors.setter
    def stored_vectors(self, X: Array) -> None:
        self.basis[:, self.num_locked : self.num_locked + X.shape[1]] = X

    @property
    def fits_another_block(self) -> bool:
        """Whether another block fits into V."""
        return bool(self.size + self.Q.shape[1] <= self.capacity)

    @property
    def exhausted(self) -> bool:
        """Whether V spans the whole complement, so that it cannot be expanded."""
        return bool(self.Q.shape[1] == 0)

    def expand(self) -> None:
        """Append Q to V, and orthonormalize the remainder of A Q to the next Q."""
        space, old_size, width = self.space, self.size, self.Q.shape[1]
        W = space.xp.asarray(self.A(self.Q), copy=True)  # modified in place below
        self.size += self._write_after_V(self.Q)
        C, removed = self._project_out(W)
        self.A.require_finite(C)
        self._grow(C)
        floor = rounding(space.xp, space.dtype) * self.norm
        Q = orthonormal_range(space, W, against=self.orthogonal_to, floor=floor, removed=removed)
        B = to_host(space.gram(Q, W))
        self.Q = self._fill_block(Q, width)
        self.S = np.zeros((self.size, self.Q.shape[1]), dtype=B.dtype)
        self.S[old_size:, : B.shape[0]] = B.conj().T
        self.norm = max(self.norm, _norm(B))
        self.num_steps += 1

    def _project_out(self, W: Array) -> tuple[HostArray, HostArray]:
        """Project the locked vectors and V out of W = A Q in place.

        By the Lanczos recurrence, the components along V before Q was appended are S, most of
        whose rows are zero, so that only those along Q are computed. A second pass over all
        columns removes rounding errors, and the components along locked vectors, which are
        eigenvectors only up to the tolerance.

        Returns
        -------
        C : (size, b), [V Q]^H A Q, where V does not contain Q
        removed : (b,), the norms of the components that the second pass subtracted
        """
        space, old_size = self.space, self.S.shape[0]
        coupled = np.flatnonzero(self.S.any(axis=1))
        first = int(coupled[0]) if len(coupled) else old_size
        own = space.gram(self.Q, W)
        expected = space.xp.asarray(self.S[first:, :], dtype=own.dtype, device=space.device)
        subtract(space, W, self.V[:, first:], space.xp.concat((expected, own)))
        second = project_out(space, W, self.orthogonal_to)
        both = to_host(space.xp.concat((second, own)))
        num_columns = second.shape[0]
        removed = np.linalg.norm(both[:num_columns, :], axis=0)
        C = both[self.num_locked : num_columns, :]
        C[:old_size, :] += self.S
        C[old_size:, :] += both[num_columns:, :]
        return C, removed

    def ritz(self) -> tuple[HostArray, HostArray, HostArray]:
        """Ritz values (size,) ascending, coordinates Y (size, size), and residual norms (size,)."""
        values, Y = np.linalg.eigh(self.H)
        return values, Y, np.linalg.norm(self.S.conj().T @ Y, axis=0)

    def vectors(self, Y: HostArray) -> Array:
        """The vectors V Y, (rows, columns of Y)."""
        return self.V[:, : Y.shape[0]] @ self.space.asarray(Y)

    def restart(self, values: HostArray, Y: HostArray) -> None:
        """Restart from Ritz pairs: ``values`` (j,) and their coordinates Y, (size, j)."""
        size, first, V, Y_T = len(values), self.num_locked, self.V, self.space.asarray(Y.T)
        for rows in slices(V.shape[0], _ROWS_PER_UPDATE):
            # Transposed, because the columns of the basis are contiguous.
            self.basis[rows, first : first + size] = (Y_T @ V[rows, :].T).T
        self.size, self.H = size, np.diag(values).astype(self.H.dtype)
        self.S = Y.conj().T @ self.S

    def restart_if_full(self, values: HostArray, Y: HostArray, which: Which, k: int) -> bool:
        """Restart if V is full, and return whether it was full.

        The k wanted Ritz pairs are retained, and the next best ones up to a third of the
        remaining capacity. With a half, the number of matvecs is about the same and passes over
        V are longer; with a quarter, more matvecs are needed.
        """
        if self.fits_another_block:
            return False
        most = self.capacity - self.Q.shape[1]
        keep = order(values, which, min(most, k + (self.capacity - k) // 3))
        self.restart(values[keep], Y[:, keep])
        return True

    def _write_after_V(self, Q: Array) -> int:
        """Copy Q to the columns after [locked V]; return the number of its columns."""
        end = self.orthogonal_to.shape[1]
        self.basis[:, end : end + Q.shape[1]] = Q
        return int(Q.shape[1])

    def _fill_block(self, Q: Array, width: int) -> Array:
        """Extend Q to ``width`` columns by random vectors orthogonal to all other vectors.

        A block is rank-deficient if an invariant subspace was found. The rows of the coupling B
        for the new columns are zero, and the random vectors find eigenvectors outside of the
        subspace.
        """
        space, num_columns = self.space, self.orthogonal_to.shape[1]
        for _ in range(2):  # the second attempt is for a tiny complement, which the first may miss
            missing = min(width, space.size - num_columns) - Q.shape[1]
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
            everything = self.basis[:, : num_columns + self._write_after_V(Q)]
            Q = space.xp.concat((Q, space.orthonormalize(fresh, against=everything)), axis=1)
        return Q

    def _grow(self, C: HostArray) -> None:
        """Append the columns C = [V Q]^H A Q to H, and check that its rows for V agree with S."""
        old_size = self.S.shape[0]
        corner = C[old_size:, :]
        self.norm = max(self.norm, _norm(C))
        defect = float(np.linalg.norm(C[:old_size, :] - self.S))  # both are V^H A Q, V without Q
        defect = max(defect, float(np.linalg.norm(corner - corner.conj().T)))
        self.A.require_hermitian(defect / self.norm if self.norm > 0 else 0.0)
        grown: HostArray = np.zeros((self.size, self.size), dtype=np.result_type(self.H, C))
        grown[:old_size, :old_size] = self.H
        grown[:, old_size:] = C
        grown[old_size:, :] = C.conj().T
        grown[old_size:, old_size:] = (corner + corner.conj().T) / 2
        self.H = grown


def _norm(M: HostArray) -> float:
    """The 2-norm of a small matrix, without an SVD if it is a single row or column."""
    return float(np.linalg.norm(M, ord=2 if min(M.shape) > 1 else None)) if M.size else 0.0
