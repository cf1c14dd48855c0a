"""The orthogonal complement of a few orthonormal vectors: projection onto it, vectors from it."""

from __future__ import annotations

from matfree import probes
from matfree.protocol import Array
from matfree.spaces import VectorSpace


def project_onto_complement(space: VectorSpace, Q: Array, W: Array) -> Array:
    """The block (I - Q Q^H) W for a Q with orthonormal columns, projected once.

    Parameters
    ----------
    space : VectorSpace
    Q : (rows, j), orthonormal columns
    W : (rows, k)

    Returns
    -------
    (rows, k), a new block.
    """
    return W - Q @ space.xp.astype(space.gram(Q, W), space.dtype)


def complete_basis(space: VectorSpace, Q: Array, num_columns: int, seed: int) -> Array:
    """Extend Q by random directions of its orthogonal complement.

    Parameters
    ----------
    space : VectorSpace
    Q : (rows, j), orthonormal columns
    num_columns : int
        The number of columns of the result, at most n.
    seed : int
        The seed of the random directions.

    Returns
    -------
    (rows, num_columns), orthonormal columns, the first j of which are Q.
    """
    # The second attempt is for a random block that is numerically in the range of Q, which
    # happens only if the complement has very few dimensions.
    for attempt in range(2):
        missing = num_columns - Q.shape[1]
        if missing <= 0:
            break
        fresh = space.probes(
            missing, seed=seed, start=attempt * num_columns, kind="gaussian", stream=probes.REFILL
        )
        Q = space.xp.concat((Q, space.orthonormalize(fresh, against=Q)), axis=1)
    return Q
