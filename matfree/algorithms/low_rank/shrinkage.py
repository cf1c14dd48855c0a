"""Operators that differ from a multiple of the identity on a subspace only."""

from __future__ import annotations

from typing import final

from matfree.operators import Operator
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


@final
class Shrinkage(Operator):
    """U diag(weights) U^H + rest (I - U U^H) for orthonormal U, which is its own adjoint."""

    def __init__(self, space: VectorSpace, U: Array, weights: HostArray, rest: float) -> None:
        super().__init__(space)
        self.U, self.weights, self.rest = U, weights, rest

    def _apply(self, X: Array) -> Array:
        return shrunk(self.space, self.U, self.weights, self.rest, X)

    _apply_adjoint = _apply


def shrunk(space: VectorSpace, U: Array, weights: HostArray, rest: float, X: Array) -> Array:
    """U diag(weights) U^H X + rest (I - U U^H) X for orthonormal U."""
    components = space.xp.astype(space.gram(U, X), space.dtype)
    # The complement is formed first: rest may be much larger than the weights.
    complement = X - U @ components
    return complement * rest + U @ (components * space.asarray(weights)[:, None])
