r"""Traces of diagonal blocks, for example of every layer of a network.

A probe w that is zero outside block b has E[w^H A w] = tr A_bb, with the variance of A_bb
alone. A joint probe is nonzero everywhere, and one matvec with it serves all blocks:

.. math:: E\left[w_b^H (A w)_b\right] = \operatorname{tr} A_{bb}.

The variance of that sample, however, includes the off-diagonal blocks of the whole block row.
If the blocks are strongly coupled, it grows by a larger factor than the matvecs shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.plan import DEFAULT_PROBES, Plan, require_budget
from matfree.algorithms.running.run import Run
from matfree.algorithms.traces.block_run import BlockLoop, Estimates
from matfree.algorithms.traces.partition import blocks_of
from matfree.arguments import require_whole
from matfree.errors import ConvergenceWarning, warn
from matfree.results import Estimate

_UNIT = "one probe per block, or one for all blocks with joint=True"


@equivariant()
@declares(Sampling)
def block_traces(
    A: Any,
    partition: Mapping[str, slice | range],
    *,
    joint: bool = False,
    **options: Unpack[Sampling[Estimates]],
) -> Estimates:
    r"""Estimate the trace of every diagonal block of a square operator.

    .. math:: \operatorname{tr} A_{bb} = E[w^H A w], \quad w = 0 \text{ outside block } b.

    Parameters
    ----------
    A : (n, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex; it need not be symmetric.
    partition : mapping of str to slice or range
        The coordinates of every block, with step 1, within [0, n). Blocks must not overlap,
        and they need not cover all coordinates. The attribute ``partition`` of the curvature
        operators of networks has one block per parameter.
    joint : bool
        Use every probe for all blocks. A probe per block then costs one matvec instead of one
        per block, but the samples have a larger variance, which the standard errors include.
    num_probes : int, optional
        The number of probes per block. The default is 32 if neither a tolerance nor a budget
        is given.
    rtol, atol : float, optional
        Sample each block until the half-width of its 95 % interval is at most
        atol + rtol |value|, both relative to the trace of that block. A block that would take
        more matvecs than it has coordinates is computed exactly from unit vectors; with
        ``joint``, all blocks are.
    max_matvecs : int, optional
        The largest number of matvecs for all blocks together. The default is 1000 if a
        tolerance is given.
    block_size : int, optional
        The number of vectors that the operator is applied to at once, which may belong to
        several diagonal blocks. It does not change the result: probe p of a block has the
        entries of probe p of the whole operator.
    seed, kind, first_probe, progress, checkpoint
        As for :func:`matfree.trace`.
    callback : function, optional
        It is called with the dictionary of estimates so far after each block of vectors.
        Returning True or raising StopIteration stops the run and returns these estimates.

    Returns
    -------
    dict of str to Estimate
        Each ``value`` is a float, or complex for a complex operator. ``num_matvecs`` counts
        the matvecs for that block; with ``joint``, all matvecs of the run.

    Raises
    ------
    ValueError
        The partition is empty, its blocks overlap or exceed [0, n), or an argument is invalid
        for :func:`matfree.trace`.
    TypeError
        There is no such keyword.
    OperatorError, NonFiniteError
        As for :func:`matfree.trace`.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before every block met the tolerance.

    Cost
    ----
    num_probes matvecs per diagonal block, or num_probes altogether with ``joint``; and
    2 block_size vectors in memory.

    References
    ----------
    The estimator for every block is that of M. F. Hutchinson (1990),
    doi:10.1080/03610919008812866.

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
    blocks = blocks_of(partition, A.space.size)
    shares = 1 if joint else len(blocks)
    if all(options.get(key) is None for key in ("num_probes", "rtol", "atol")):
        num_probes = _probes_per_block(options.get("max_matvecs"), shares)
        options = {**options, "num_probes": num_probes, "max_matvecs": None}
    checkpoint = Checkpoint(options.get("checkpoint"), A, options.get("seed"))
    run = Run(
        "block traces",
        checkpoint,
        progress=options.get("progress", False),
        callback=options.get("callback"),
    )
    plan = Plan.make(A, options, seed=checkpoint.seed)
    plan.require_budget(shares, _UNIT)
    loop = BlockLoop(A, plan, blocks, run, joint=joint)
    estimates = run.complete(len(blocks), loop.complete, loop.interrupted)
    _warn_of_unconverged(estimates, plan)
    return estimates


def _probes_per_block(max_matvecs: int | None, shares: int) -> int:
    """The number of probes per block if there is no tolerance."""
    require_whole("max_matvecs", max_matvecs)
    if max_matvecs is None:
        return DEFAULT_PROBES
    require_budget(max_matvecs, shares, _UNIT)
    return max_matvecs // shares


def _warn_of_unconverged(estimates: Estimates, plan: Plan) -> None:
    """Warn of the blocks that did not meet the tolerance within the budget."""
    missed = [name for name, estimate in estimates.items() if not estimate.converged]
    if plan.adaptive and missed:
        names = ", ".join(map(repr, missed[:4])) + " ..." * (len(missed) > 4)
        worst: Estimate = max(
            (estimates[name] for name in missed), key=lambda e: float(e.half_width())
        )
        warn(
            f"block_traces stopped at its budget before {len(missed)} of {len(estimates)} blocks "
            f"met the tolerance ({names}; the widest interval is +- {worst.half_width():.3g} "
            f"around {worst.value:.6g}); raise max_matvecs, or loosen {plan.looser}.",
            ConvergenceWarning,
        )
