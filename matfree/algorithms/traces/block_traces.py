r"""Traces and diagonals of diagonal blocks: one estimate for every layer of a network, say.

A probe w that is zero outside of block b has E[w^H A w] = tr A_bb, with the variance of A_bb
alone. A probe that is nowhere zero serves every block with one product,

    E[w_b^H (A w)_b] = tr A_bb,

but sample b then carries the noise of the whole block row of A: for an operator whose
blocks couple strongly that is many times more variance than products saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.plan import DEFAULT_PROBES, Plan
from matfree.algorithms.running.run import Run
from matfree.algorithms.traces.block_run import Block, BlockLoop, Estimates
from matfree.algorithms.traces.diagonal import DiagonalKeywords, diagonal
from matfree.arguments import require_whole
from matfree.errors import ConvergenceWarning, warn
from matfree.operators import aslinearoperator
from matfree.results import Estimate, archive
from matfree.spaces import VectorSpace


@declares(Sampling)
def block_traces(
    A: Any,
    partition: Mapping[str, slice | range],
    *,
    joint: bool = False,
    **options: Unpack[Sampling[Estimates]],
) -> Estimates:
    r"""Estimate the trace of every diagonal block of a square operator.

    tr A_bb = E[w^H A w] for probes w that are zero outside of block b.

    Parameters
    ----------
    A : square operator, or anything ``aslinearoperator`` accepts
    partition : mapping of name to slice or range
        The blocks' coordinates, step 1, within [0, n) and apart from each other; they need
        not cover it. ``H.partition`` of a network's operator has one a parameter.
    joint : bool
        Let one full probe serve every block: as many times fewer products as there are
        blocks, and a larger variance, which the bars show.
    num_probes : int, optional
        Probes a block; 32 where neither a tolerance nor a budget is given.
    rtol, atol : float, optional
        Sample each block until the half-width of its 95 % interval is at most
        atol + rtol |value|. A block for which that would take more products than it has
        coordinates is computed exactly, with unit vectors; with ``joint``, all blocks are.
    max_matvecs : int, optional
        The most products for all blocks together; 1000 with a tolerance.
    block_size : int, optional
        Vectors sent at once, those of several blocks among them; it does not change the
        answer: probe p of a block has the entries of probe p of the whole operator.
    seed, kind, first_probe, progress, checkpoint
        As for :func:`matfree.trace`.
    callback : function, optional
        Called with the estimates so far after each block of vectors; returning True or
        raising StopIteration stops the run and keeps what it has.

    Returns
    -------
    dict of name to Estimate
        ``num_matvecs`` counts the products spent on that block; with ``joint``, where they
        serve all blocks alike, all of them.

    Raises
    ------
    ValueError
        The partition is empty, overlaps or leaves [0, n); or as for :func:`matfree.trace`.
    OperatorError, NonFiniteError
        As for :func:`matfree.trace`.

    Warns
    -----
    ConvergenceWarning
        The budget ended before every block met the tolerance.

    Cost
    ----
    num_probes matvecs a block (``joint``: num_probes in all); two blocks of vectors kept.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag([1.0, 2.0, 3.0, 4.0]) + 1
    >>> parts = {"first": slice(0, 1), "rest": slice(1, 4)}
    >>> traces = mf.block_traces(A, parts, rtol=0.1, seed=0)
    >>> {name: (trace.value, trace.method) for name, trace in traces.items()}
    {'first': (2.0, 'exact'), 'rest': (12.0, 'exact')}
    """
    options = known(block_traces, options)
    A = CountedOperator(A)
    blocks = _blocks(partition, A.space.size)
    if all(options.get(key) is None for key in ("num_probes", "rtol", "atol")):
        shares = 1 if joint else len(blocks)
        num_probes = _shared(options.get("max_matvecs"), shares)
        options = {**options, "num_probes": num_probes, "max_matvecs": None}
    checkpoint = Checkpoint(options.get("checkpoint"), A, options.get("seed"))
    run = Run(
        "block traces",
        checkpoint,
        progress=options.get("progress", False),
        callback=options.get("callback"),
    )
    plan = Plan.make(A, options, seed=checkpoint.seed)
    loop = BlockLoop(A, plan, blocks, run, joint=joint)
    estimates = run.complete(len(blocks), loop.complete, loop.interrupted)
    _warn_of_open(estimates, plan)
    return estimates


@declares(DiagonalKeywords, method="hutchinson", eigenpairs=10)
def block_diagonals(
    A: Any,
    partition: Mapping[str, slice | range],
    *,
    joint: bool = False,
    **options: Unpack[DiagonalKeywords],
) -> Estimates:
    """Estimate the diagonal of every diagonal block of a square operator.

    Parameters
    ----------
    A : square operator, or anything ``aslinearoperator`` accepts
    partition : mapping of name to slice or range
        As for :func:`block_traces`.
    joint : bool
        Read every block off one estimate of the whole diagonal: fewer products, and the
        variance of whole rows instead of the block's. Vectors cut into pieces need it.
    checkpoint : path, optional
        As for :func:`matfree.diagonal`; each block has a file of its own beside it.
    **options
        As for :func:`matfree.diagonal`, for each block or for the whole.

    Returns
    -------
    dict of name to Estimate
        Each ``value`` is an array of the block's length.

    Raises
    ------
    ValueError
        As for :func:`block_traces`, and as for :func:`matfree.diagonal`.

    Cost
    ----
    As for :func:`matfree.diagonal`, for each block; once with ``joint``.

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
    blocks = _blocks(partition, operator.shape[0])
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
            rows=_piece(block, operator.space),
            history=(),
        )
        for block in blocks
    }


def _piece(block: Block, space: VectorSpace) -> tuple[int, int, int] | None:
    """Which of a block's entries a process holds; None where vectors are whole."""
    if not space.is_sharded:
        return None
    start, stop = (
        min(max(end - block.start, 0), block.size) for end in (space.rows.start, space.rows.stop)
    )
    return start, stop, block.size


def _file_of(checkpoint: PathLike | None, block: Block) -> Path | None:
    """The checkpoint of one block: blocks are told apart by where they lie."""
    if checkpoint is None:
        return None
    path = archive.npz_path(checkpoint)
    return path.with_name(f"{path.stem}.{block.start}-{block.stop}.npz")


def _blocks(partition: Mapping[str, slice | range], size: int) -> list[Block]:
    """The blocks, checked, in the order given."""
    if not isinstance(partition, Mapping) or not partition:
        raise ValueError(
            "partition must name at least one block, like {'first': slice(0, 10)}: got "
            f"{partition!r}."
        )
    blocks = []
    for name, part in partition.items():
        if not isinstance(part, slice | range):
            raise ValueError(f"partition: block {name!r} must be a slice or a range: got {part!r}.")
        start, stop = part.start or 0, size if part.stop is None else part.stop
        if (part.step or 1) != 1 or not 0 <= start < stop <= size:
            raise ValueError(
                f"partition: block {name!r} must be slice(start, stop) with 0 <= start < stop <= "
                f"{size}: got {part}."
            )
        blocks.append(Block(name, start, stop))
    ordered = sorted(blocks, key=lambda block: block.start)
    for left, right in itertools.pairwise(ordered):
        if right.start < left.stop:
            raise ValueError(
                f"partition: blocks {left.name!r} and {right.name!r} overlap; they must be apart."
            )
    return blocks


def _shared(max_matvecs: int | None, shares: int) -> int:
    """Probes a block that a budget without a tolerance pays for."""
    require_whole("max_matvecs", max_matvecs)
    if max_matvecs is None:
        return DEFAULT_PROBES
    if max_matvecs < shares:
        raise ValueError(f"max_matvecs must pay for a probe a block: got {max_matvecs} < {shares}.")
    return max_matvecs // shares


def _warn_of_open(estimates: Estimates, plan: Plan) -> None:
    """Say which blocks the budget did not suffice for."""
    missed = [name for name, estimate in estimates.items() if not estimate.converged]
    if plan.adaptive and missed:
        names = ", ".join(map(repr, missed[:4])) + " ..." * (len(missed) > 4)
        worst: Estimate = max(
            (estimates[name] for name in missed), key=lambda e: float(e.half_width())
        )
        warn(
            f"block_traces stopped before {len(missed)} of {len(estimates)} blocks met the "
            f"tolerance ({names}; the widest interval is +- {worst.half_width():.3g} around "
            f"{worst.value:.6g}); raise max_matvecs, or loosen rtol.",
            ConvergenceWarning,
        )
