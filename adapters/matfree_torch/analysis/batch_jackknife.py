r"""Errors of a trace or of eigenvalues due to probes and due to the finite data.

More probes make the trace of the Hessian of *this* data set exact, but other data of the same
kind would have given another trace. The jackknife, which leaves out one batch after the other,
estimates this second error. Let :math:`w_b` be the weight of batch b, W the sum of the weights,
and :math:`\theta_{-b}` the quantity without batch b. With :math:`h_b = W / w_b` and the
pseudo-values :math:`q_b`,

.. math::
   q_b = h_b \theta - (h_b - 1) \theta_{-b}, \qquad
   \text{data variance} = \frac{1}{B} \sum_b \frac{(q_b - \bar q)^2}{h_b - 1}.

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

BatchMatmat: TypeAlias = Callable[[Tensor], Tensor]
"""A block of vectors to the curvature of one batch times this block."""


def batch_jackknife(
    A: ParameterCurvature,
    eigenpairs: EigenResult | None = None,
    *,
    num_probes: int = 32,
    seed: Seed = None,
) -> BatchJackknife:
    r"""The trace or the eigenvalues of a curvature, with separate errors for probes and data.

    One pass over the data gives :math:`\theta_{-b}` for every batch b. The trace is linear in
    the batches, so it is estimated without batch b from the same probes:

    .. math:: \operatorname{tr} A_{-b}
       = \frac{W \operatorname{tr} A - w_b \operatorname{tr} A_b}{W - w_b}.

    The eigenvalues without batch b are those of :math:`U^T A_{-b} U`, where the columns of U
    are the given eigenvectors. They are correct to first order in :math:`A_{-b} - A`, and to
    all orders within the span of U, so close eigenpairs may mix.

    Parameters
    ----------
    A : operator of ``hessian``, ``ggn`` or ``fisher``
        Over two or more batches, which are assumed to be independent samples of one
        distribution: shuffle the data once before you split them into batches.
    eigenpairs : EigenResult, optional
        Eigenpairs of A. With them the quantities are its eigenvalues, and no eigenvalue
        problem is solved again. By default the quantity is the trace. More eigenpairs than
        those of interest make the others more accurate.
    num_probes : int
        Probes for the trace.
    seed : int, None or numpy.random.Generator

    Returns
    -------
    BatchJackknife
        ``probe_stderr`` and ``data_stderr``; ``stderr`` and ``interval`` include both. The
        extreme eigenvalues of a sample are, on average, more extreme than those of the
        population. This bias is not corrected. If the data have heavy tails, so that single
        batches dominate, a few batches do not show it, and the interval is too short.

    Raises
    ------
    OperatorError
        A is no such operator, or has one batch only.
    ValueError
        The eigenpairs have another size than A.

    Cost
    ----
    One pass over the data for num_probes matvecs, or for one matvec per eigenpair. Memory: two
    blocks of these vectors, of at most 32 probes.

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
        return _jackknife_trace(A, num_probes, resolve_seed(seed))
    if eigenpairs.vectors.shape[0] != A.shape[0]:
        raise ValueError(
            f"eigenpairs must be those of A, of size {A.shape[0]}: got eigenpairs of an operator "
            f"of size {eigenpairs.vectors.shape[0]}; pass eigsh(A, k)."
        )
    return _jackknife_eigenvalues(A, eigenpairs)


def _jackknife_trace(A: ParameterCurvature, num_probes: int, seed: int) -> BatchJackknife:
    def quadratic_forms(matmat: BatchMatmat) -> HostArray:
        forms = []
        for columns in slices(num_probes, block_size_for(A.shape[0], None)):
            W = A.space.probes(columns.stop - columns.start, seed=seed, start=columns.start)
            forms.append(to_host(A.space.dots(W, matmat(W))))
        return np.concatenate(forms)

    factor, weights, table = _measure_batches(A, quadratic_forms)  # table: (batches, probes)
    by_probe, by_batch = weights @ table, table.mean(axis=1)
    mean = float(by_probe.mean())
    # The scatter of single table entries about the means of their row and column enters both
    # standard errors. It is computed to be subtracted from their sum once.
    scatter = table - by_batch[:, None] - by_probe + mean
    shared = float(_jackknife_variance(scatter, 0.0, weights).sum())
    pairs = num_probes * (num_probes - 1)
    spread = by_probe.std(ddof=1) if num_probes > 1 else math.inf
    decay = sum(value * _num_entries(A, name) for name, value in A.weight_decay.items())
    return BatchJackknife(
        value=factor * mean + decay,
        probe_stderr=factor * float(spread) / math.sqrt(num_probes),
        data_stderr=factor * math.sqrt(_jackknife_variance(by_batch, mean, weights)),
        shared_stderr=factor * math.sqrt(shared / pairs) if pairs else 0.0,
        bias=0.0,
        left_out=factor * _leave_one_out_means(by_batch, weights) + decay,
        weights=weights,
        quantity="trace",
        num_probes=num_probes,
        num_matvecs=num_probes,
        seed=seed,
    )


def _jackknife_eigenvalues(A: ParameterCurvature, pairs: EigenResult) -> BatchJackknife:
    space = A.space
    U = space.xp.astype(space.xp.asarray(pairs.vectors, device=space.device), space.dtype)
    factor, weights, projected = _measure_batches(
        A, lambda matmat: to_host(space.gram(U, matmat(U)))
    )  # projected: (batches, k, k)
    decay_term = np.zeros(projected.shape[1:])  # weight decay belongs to no batch
    for name, decay in A.weight_decay.items():
        rows = U[A.partition[name], :]
        decay_term += decay * to_host(space.gram(rows, rows))
    value = _ritz_values(factor * np.tensordot(weights, projected, axes=1) + decay_term, pairs)
    remaining = factor * _leave_one_out_means(projected, weights) + decay_term
    left_out = np.stack([_ritz_values(M, pairs) for M in remaining])
    h = 1 / weights[:, None]
    center = len(weights) * value - ((1 - weights[:, None]) * left_out).sum(axis=0)
    variance = _jackknife_variance(h * value - (h - 1) * left_out, center, weights)
    zeros = np.zeros(len(value))
    return BatchJackknife(
        value=value,
        probe_stderr=zeros,
        data_stderr=np.sqrt(variance),
        shared_stderr=zeros,
        bias=np.asarray(pairs.residuals * pairs.norm),
        left_out=left_out,
        weights=weights,
        quantity=f"eigenvalues, {pairs.which}",
        num_probes=0,
        num_matvecs=U.shape[1],
        seed=pairs.seed,
    )


def _measure_batches(
    A: ParameterCurvature, measure: Callable[[BatchMatmat], HostArray]
) -> tuple[float, HostArray, HostArray]:
    """Measure the curvature of every batch, without weight decay.

    Returns
    -------
    factor, weights (batches,), numbers (batches, ...)
        A as a whole has ``factor * sum_b weights[b] * numbers[b]``, where the weights sum to 1.
        The factor is 1 for a loss that is a mean, and the number of samples for a sum.
    """
    weights: list[float] = []
    numbers: list[HostArray] = []

    def visit(batch: Batch, matmat: BatchMatmat) -> None:
        averaged = A.batches.averaged
        weights.append(batch.weight if averaged else float(batch.samples))
        numbers.append(measure(matmat) / (1.0 if averaged else weights[-1]))

    A.for_each_batch(visit)
    if len(weights) < 2:
        raise OperatorError(
            "the jackknife leaves out one batch after the other, and the data have one batch only: "
            "pass two or more batches, for example with a smaller batch_size."
        )
    total = math.fsum(weights)
    factor = 1.0 if A.batches.averaged else total
    return factor, np.asarray(weights) / total, np.stack(numbers)


def _num_entries(A: ParameterCurvature, name: str) -> int:
    return len(range(A.shape[0])[A.partition[name]])


def _leave_one_out_means(q: HostArray, weights: HostArray) -> HostArray:
    """The weighted means of q over all batches but one, for each batch left out."""
    w = weights.reshape(-1, *[1] * (q.ndim - 1))
    total: HostArray = (w * q).sum(axis=0)
    return np.asarray((total - w * q) / (1 - w))


def _jackknife_variance(pseudo: HostArray, center: Any, weights: HostArray) -> Any:
    """The jackknife variance from pseudo-values, which have the batches on the first axis."""
    w = weights.reshape(-1, *[1] * (pseudo.ndim - 1))
    return (w / (1 - w) * (pseudo - center) ** 2).mean(axis=0)  # 1 / (h - 1) = w / (1 - w)


def _ritz_values(projected: HostArray, pairs: EigenResult) -> HostArray:
    """The eigenvalues of a projected matrix, in the order of the given eigenpairs."""
    which: Any = pairs.which
    values = np.linalg.eigvalsh((projected + projected.T) / 2)
    chosen = values[order(values, which, len(values))]
    return np.sort(chosen)[::-1] if which == "BE" else chosen
