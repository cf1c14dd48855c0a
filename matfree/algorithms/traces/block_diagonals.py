"""Diagonals of diagonal blocks: one estimate per block, or one for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.running.keywords import declares, known
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.traces.block_run import Estimates
from matfree.algorithms.traces.diagonal import DiagonalKeywords, diagonal
from matfree.algorithms.traces.partition import Block, blocks_of
from matfree.operators import aslinearoperator
from matfree.results.files import archive
from matfree.spaces import VectorSpace


@equivariant()
@declares(DiagonalKeywords, method="hutchinson", eigenpairs=10)
def block_diagonals(
    A: Any,
    partition: Mapping[str, slice | range],
    *,
    joint: bool = False,
    **options: Unpack[DiagonalKeywords],
) -> Estimates:
    r"""Estimate the diagonal of every diagonal block of a square operator.

    .. math:: \operatorname{diag} A_{bb} = E[\bar w * (A w)_b],
        \quad |w_i| = 1 \text{ for } i \in b, \quad w_i = 0 \text{ for } i \notin b.

    Parameters
    ----------
    A : (n, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex; Hermitian for every method but "hutchinson".
    partition : mapping of str to slice or range
        As for :func:`block_traces`.
    joint : bool
        Take the diagonals of all blocks from one estimate of the whole diagonal. This needs
        fewer matvecs, but each entry has the variance of its whole row instead of its row
        within the block. It is required if vectors are sharded.
    method, eigenpairs
        As for :func:`matfree.diagonal`, for each block, or with ``joint`` for the whole.
    num_probes, rtol, atol, max_matvecs, block_size
        As for :func:`matfree.diagonal`, for each block, or with ``joint`` for the whole.
        Tolerances are relative to the 2-norm of the diagonal of the block or of the whole.
    seed, kind, first_probe, progress, callback
        As for :func:`matfree.diagonal`.
    checkpoint : path, optional
        As for :func:`matfree.diagonal`. Without ``joint``, each block has a separate file next
        to this path.

    Returns
    -------
    dict of str to Estimate
        ``value`` and ``stderr`` are arrays (block length,) of the library and device of the
        operator: ``value`` of its dtype, ``stderr`` real. If vectors are sharded, they are
        the local rows.

    Raises
    ------
    ValueError
        As for :func:`block_traces` and :func:`matfree.diagonal`.
    TypeError
        There is no such keyword.
    NotHermitianError, OperatorError, NonFiniteError
        As for :func:`matfree.diagonal`.

    Warns
    -----
    ConvergenceWarning
        As for :func:`matfree.diagonal`, for each block.

    Cost
    ----
    Matvecs: those of :func:`matfree.diagonal` for each block, or once with ``joint``. Memory:
    that of :func:`matfree.diagonal` for one block of the size of the operator.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag([1.0, 2.0, 3.0, 4.0])
    >>> parts = {"first": slice(0, 1), "rest": slice(1, 4)}
    >>> mf.block_diagonals(A, parts, num_probes=2, seed=0)["rest"].value
    array([2., 3., 4.])
    """
    options, checkpoint = known(block_diagonals, options), options.get("checkpoint")
    operator = aslinearoperator(A)
    blocks = blocks_of(partition, operator.shape[0])
    if not joint:
        estimates = {}
        for block in blocks:
            options["checkpoint"] = _file_of(checkpoint, block)
            estimates[block.name] = diagonal(operator.restrict(block.start, block.stop), **options)
        return estimates
    whole = diagonal(operator, **options)
    return {
        block.name: replace(
            whole,
            value=whole.value[block.within(operator.space.rows)],
            stderr=whole.stderr[block.within(operator.space.rows)],
            size=block.size,
            rows=_local_entries(block, operator.space),
            history=(),
        )
        for block in blocks
    }


def _local_entries(block: Block, space: VectorSpace) -> tuple[int, int, int] | None:
    """(start, stop, size) of a block's local entries; None if vectors are not sharded."""
    if not space.is_sharded:
        return None
    start, stop = (
        min(max(end - block.start, 0), block.size) for end in (space.rows.start, space.rows.stop)
    )
    return start, stop, block.size


def _file_of(checkpoint: PathLike | None, block: Block) -> Path | None:
    """The checkpoint of one block, whose name contains the coordinates of the block."""
    if checkpoint is None:
        return None
    return archive.sibling(archive.file_path(checkpoint), f".{block.start}-{block.stop}")
