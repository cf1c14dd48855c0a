r"""How far a trace or an eigenvalue is known: what the probes leave open, and what the data do.

More probes make the trace of *this* data set's Hessian exact; other data would still have
given another. Leaving one batch after the other out (the jackknife) tells how far apart the
two are. With w_b the weight of batch b, W their sum and theta_{-b} the quantity without it,

    q_b = h_b theta - (h_b - 1) theta_{-b},    h_b = W / w_b,
    data variance = 1/B sum_b (q_b - mean)^2 / (h_b - 1).

References
----------
B. Efron, C. Stein (1981), The jackknife estimate of variance, doi:10.1214/aos/1176345462.
F. M. T. A. Busing, E. Meijer, R. van der Leeden (1999), Delete-m jackknife for unequal m,
doi:10.1023/A:1008800423698.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from matfree import EigenResult, OperatorError
from matfree.arguments import block_size_for, order, require_whole, slices
from matfree.arrays import to_host
from matfree.probes import resolve_seed
from matfree.protocol import HostArray, Seed
from matfree_torch.analysis.batch_jackknife_result import BatchJackknife
from matfree_torch.curvature.over_batches import ParameterCurvature
from matfree_torch.objective.batches import Batch

Product: TypeAlias = Callable[[Tensor], Tensor]


def batch_jackknife(
    A: ParameterCurvature,
    eigenpairs: EigenResult | None = None,
    *,
    num_probes: int = 32,
    seed: Seed = None,
) -> BatchJackknife:
    r"""The trace or the eigenvalues of a curvature, with the errors of probes and of data apart.

    theta_{-b} for every batch b from one pass over the data. The trace is linear in the batches:
    tr A_{-b} = (W tr A - w_b tr A_b) / (W - w_b), estimated from the same probes. Eigenvalues
    without a batch are those of U^T A_{-b} U, U the eigenvectors given: right to first order
    in A_{-b} - A, and among the pairs given to all orders, so that close pairs may mix.

    Parameters
    ----------
    A : operator of ``hessian``, ``ggn`` or ``fisher``
        Over two or more batches, which are taken for independent samples of equal kind: shuffle
        once, before they are cut.
    eigenpairs : EigenResult, optional
        Of A: then its eigenvalues are looked at, without an eigenvalue solve; otherwise the
        trace is. More pairs than are of interest make the others more exact.
    num_probes : int
        Probes of the trace.
    seed : int, None or numpy.random.Generator

    Returns
    -------
    BatchJackknife
        ``probe_stderr`` and ``data_stderr``; ``stderr`` and ``interval`` hold both. Extreme
        eigenvalues of a sample lie outside those of all the data there could be on average:
        that bias is not corrected.

    Raises
    ------
    OperatorError
        A is not one of these, or is over one batch only.
    ValueError
        The eigenpairs are of another size.

    Cost
    ----
    One pass over the data for num_probes matvecs, or one for each eigenpair. Memory: two blocks
    of these vectors, of 32 probes at most.

    References
    ----------
    F. M. T. A. Busing, E. Meijer, R. van der Leeden (1999), Delete-m jackknife for unequal m,
    doi:10.1023/A:1008800423698. T. Kato (1966), Perturbation theory for linear operators,
    chapter II, doi:10.1007/978-3-662-12678-3.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import batch_jackknife, hessian
    >>> model = torch.nn.Linear(1, 1, bias=False)  # the Hessian is 2 x^2, averaged
    >>> batches = [(torch.full((5, 1), x), torch.zeros(5, 1)) for x in (1.0, 2.0, 3.0)]
    >>> H = hessian(model, torch.nn.MSELoss(), batches)
    >>> found = batch_jackknife(H, num_probes=2, seed=0)
    >>> found.left_out.round(4), round(found.probe_stderr, 4)
    (array([13., 10.,  5.]), 0.0)
    """
    if not isinstance(A, ParameterCurvature) or A.batches.single:
        raise OperatorError(
            "batch_jackknife needs an operator of hessian(...), ggn(...) or fisher(...) over "
            "several batches: pass data as a DataLoader, or as a list of batches."
        )
    require_whole("num_probes", num_probes)
    A.inspect()
    if eigenpairs is None:
        return _of_trace(A, num_probes, resolve_seed(seed))
    if eigenpairs.vectors.shape[0] != A.shape[0]:
        raise ValueError(
            f"the eigenpairs are of an operator of size {eigenpairs.vectors.shape[0]}: got one "
            f"of size {A.shape[0]}."
        )
    return _of_eigenvalues(A, eigenpairs)


def _of_trace(A: ParameterCurvature, num_probes: int, seed: int) -> BatchJackknife:
    def quadratic_forms(multiply: Product) -> HostArray:
        parts = []
        for part in slices(num_probes, block_size_for(A.shape[0], None)):
            W = A.space.probes(part.stop - part.start, seed=seed, start=part.start)
            parts.append(to_host(A.space.dots(W, multiply(W))))
        return np.concatenate(parts)

    whole, parts, table = _measured(A, quadratic_forms)  # (batches, probes)
    by_probe, by_batch = parts @ table, table.mean(axis=1)
    mean = float(by_probe.mean())
    scatter = table - by_batch[:, None] - by_probe + mean
    shared = float(_variance(scatter, 0.0, parts).sum())
    pairs = num_probes * (num_probes - 1)
    spread = by_probe.std(ddof=1) if num_probes > 1 else math.inf
    decay = sum(value * _length(A, name) for name, value in A.weight_decay.items())
    return BatchJackknife(
        value=whole * mean + decay,
        probe_stderr=whole * float(spread) / math.sqrt(num_probes),
        data_stderr=whole * math.sqrt(_variance(by_batch, mean, parts)),
        shared_stderr=whole * math.sqrt(shared / pairs) if pairs else 0.0,
        bias=0.0,
        left_out=whole * _without(by_batch, parts) + decay,
        weights=parts,
        quantity="trace",
        num_probes=num_probes,
        num_matvecs=num_probes,
        seed=seed,
    )


def _of_eigenvalues(A: ParameterCurvature, pairs: EigenResult) -> BatchJackknife:
    space = A.space
    U = space.xp.astype(space.xp.asarray(pairs.vectors, device=space.device), space.dtype)
    whole, parts, projected = _measured(
        A, lambda multiply: to_host(space.gram(U, multiply(U)))
    )  # (batches, k, k)
    constant = np.zeros(projected.shape[1:])  # what weight decay adds
    for name, decay in A.weight_decay.items():
        rows = U[A.partition[name], :]
        constant += decay * to_host(space.gram(rows, rows))
    value = _ritz(whole * np.tensordot(parts, projected, axes=1) + constant, pairs.which)
    without = whole * _without(projected, parts) + constant
    left_out = np.stack([_ritz(M, pairs.which) for M in without])
    h = 1 / parts[:, None]
    center = len(parts) * value - ((1 - parts[:, None]) * left_out).sum(axis=0)
    variance = _variance(h * value - (h - 1) * left_out, center, parts)
    nothing = np.zeros(len(value))
    return BatchJackknife(
        value=value,
        probe_stderr=nothing,
        data_stderr=np.sqrt(variance),
        shared_stderr=nothing,
        bias=np.asarray(pairs.residuals * pairs.norm),
        left_out=left_out,
        weights=parts,
        quantity=f"eigenvalues, {pairs.which}",
        num_probes=0,
        num_matvecs=U.shape[1],
        seed=pairs.seed,
    )


def _measured(
    A: ParameterCurvature, measure: Callable[[Product], HostArray]
) -> tuple[float, HostArray, HostArray]:
    """Numbers of every batch's own mean curvature, and what the batches count.

    The whole is ``factor`` times the mean of the numbers, weighted by parts of sum 1; the
    factor is 1 for a loss that is a mean, and the number of samples for a sum.
    """
    weights: list[float] = []
    numbers: list[HostArray] = []

    def visit(batch: Batch, multiply: Product) -> None:
        averaged = A.batches.averaged
        weights.append(batch.weight if averaged else float(batch.samples))
        numbers.append(measure(multiply) / (1.0 if averaged else weights[-1]))

    A.for_each_batch(visit)
    if len(weights) < 2:
        raise OperatorError("there is one batch only; the jackknife leaves one out: give several.")
    total = math.fsum(weights)
    factor = 1.0 if A.batches.averaged else total
    return factor, np.asarray(weights) / total, np.stack(numbers)


def _length(A: ParameterCurvature, name: str) -> int:
    return len(range(A.shape[0])[A.partition[name]])


def _without(q: HostArray, parts: HostArray) -> HostArray:
    """The weighted mean of q over all batches but one, for every one."""
    p = parts.reshape(-1, *[1] * (q.ndim - 1))
    total: HostArray = (p * q).sum(axis=0)
    return np.asarray((total - p * q) / (1 - p))


def _variance(pseudo: HostArray, center: Any, parts: HostArray) -> Any:
    """The jackknife's variance from pseudo-values, over the first axis."""
    p = parts.reshape(-1, *[1] * (pseudo.ndim - 1))
    return (p / (1 - p) * (pseudo - center) ** 2).mean(axis=0)


def _ritz(projected: HostArray, which: Any) -> HostArray:
    values = np.linalg.eigvalsh((projected + projected.T) / 2)
    chosen = values[order(values, which, len(values))]
    return np.sort(chosen)[::-1] if which == "BE" else chosen
