"""Lanczos vectors as they are stored, and the orthogonalisation against them."""

from __future__ import annotations

from typing import final

from matfree.algorithms.products import HostArray
from matfree.protocol import Array
from matfree.spaces import RowSpace


@final
class Bases:
    """The Lanczos vectors of every start vector, each in one contiguous (steps, n) array.

    Rows make the projections matrix-vector products over contiguous memory; every other
    layout is several times slower.
    """

    saved = ("filled",)

    def __init__(self, space: RowSpace, V: Array, num_steps: int) -> None:
        self.space = space
        shape = (num_steps, len(space.rows))
        self.rows = [
            space.xp.empty(shape, dtype=space.dtype, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    @property
    def filled(self) -> tuple[Array, ...]:
        """The vectors so far, (steps, n) per start vector."""
        return tuple(basis[: self.size, :] for basis in self.rows)

    @filled.setter
    def filled(self, parts: tuple[Array, ...]) -> None:
        for basis, part in zip(self.rows, parts, strict=True):
            self.size = part.shape[0]
            basis[: self.size, :] = self.space.asarray(part)

    def append(self, V: Array, step: int) -> None:
        """Take in the vectors of a step."""
        self.size = step + 1
        for p, basis in enumerate(self.rows):
            basis[step, :] = V[:, p]

    def cut(self, alphas: tuple[HostArray, ...]) -> tuple[Array, ...]:
        """Each basis up to where its run ended."""
        return tuple(b[: len(a), :] for b, a in zip(self.rows, alphas, strict=True))

    def orthogonalize(self, W: Array, step: int, beta: Array | None) -> tuple[Array, Array, Array]:
        """W without its components in the bases; the last of them is alpha.

        For a Hermitian A the component along v_{j-1} is beta_{j-1} and those along earlier
        vectors are rounding: whatever else they hold is A's asymmetry, found for nothing.
        """
        xp, space = self.space.xp, self.space
        R, alphas, defects = space.zeros(len(self.rows)), [], []
        for p, basis in enumerate(self.rows):
            X = basis[: step + 1, :].T
            w = xp.asarray(W[:, p : p + 1], copy=True)
            first = space.gram(X, w)
            w -= X @ xp.astype(first, space.dtype)
            second = space.gram(X, w)
            w -= X @ xp.astype(second, space.dtype)
            R[:, p : p + 1] = w
            alphas.append(first[step, 0] + second[step, 0])
            known = first[:step, 0]
            if beta is not None:
                known = xp.concat(
                    (known[:-1], known[-1:] - xp.astype(beta[p : p + 1], known.dtype))
                )
            defects.append(xp.sum(xp.abs(known)))
        return R, xp.stack(alphas), xp.stack(defects)
