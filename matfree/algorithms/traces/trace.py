"""``trace``: one door to every method of estimating it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator
from matfree.algorithms.running.keywords import Sampling
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.traces.hutchinson import HutchinsonTrace
from matfree.algorithms.traces.hutchpp import DeflatedTrace, HutchPlusPlus
from matfree.algorithms.traces.xnystrace import XNysTrace
from matfree.algorithms.traces.xtrace import XTrace
from matfree.protocol import ProbeKind, Seed
from matfree.results import EigenResult, Estimate

TraceMethod: TypeAlias = Literal["hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"]

_METHODS: dict[str, tuple[type[Estimator], ProbeKind]] = {
    "hutchinson": (HutchinsonTrace, "rademacher"),
    "hutch++": (HutchPlusPlus, "rademacher"),
    "xtrace": (XTrace, "sphere"),
    "xnystrace": (XNysTrace, "sphere"),
    "deflated": (DeflatedTrace, "rademacher"),
}
"""Each method's estimator and the probes it is best with."""


def trace(
    A: Any,
    *,
    method: TraceMethod = "hutchinson",
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    seed: Seed = None,
    kind: ProbeKind | None = None,
    eigenpairs: EigenResult | int = 10,
    first_probe: int = 0,
    progress: bool = False,
    callback: Callable[[Estimate], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> Estimate:
    r"""Estimate the trace of a square operator.

    tr A = E[w^H A w] for probes with E[w w^H] = I.

    Parameters
    ----------
    A : square operator, or anything ``aslinearoperator`` accepts
        Any square operator: it need not be symmetric. A complex one gives a complex value.
    method : {"hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"}
        "hutchinson" is the plain average: unbiased, O(n) memory, as good as any where the
        spectrum is flat. Where it decays or has outliers the others need far fewer
        products: "xtrace" for any operator, "xnystrace" for positive semidefinite ones at
        half the price, "hutch++" the simplest of them, "deflated" where eigenpairs are
        wanted anyway.
    num_probes : int, optional
        A fixed number of probes, always honoured: one product each, two for "xtrace";
        "hutch++" gives half of them to its sketch, two products each.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval is at most atol + rtol |value|.
    max_matvecs : int, optional
        The most products: all are spent where no tolerance is given (32 by default), as
        many as needed otherwise (1000 by default). Where the budget reaches n, the exact
        answer from n unit vectors takes over from sampling in time to be afforded, and
        ``method`` of the result says "exact".
    block_size : int, optional
        Probes sent at once; it changes speed and memory, not the answer.
    seed : int, None or numpy.random.Generator
        None draws fresh entropy; the result reports the seed used.
    kind : {"rademacher", "gaussian", "sphere", "z4"}, optional
        The probes' distribution. Signs have the least variance for plain averages over a
        real operator, "z4" over a complex Hermitian one; "sphere" suits "xtrace" and
        "xnystrace", which rescale by its rotation invariance.
    eigenpairs : EigenResult or int
        For "deflated": eigenpairs already known, or how many to compute first.
    first_probe : int
        The number of the first probe: runs over different probes of one seed can be
        merged, and are then one run over all of them.
    progress : bool
        Show a progress bar with the current value and interval (needs tqdm).
    callback : function, optional
        Called with the Estimate so far after each block; returning True or raising
        StopIteration stops the run and keeps what it has.
    checkpoint : path, optional
        A file that holds the state of the run after every block. A run that was killed
        goes on from there when it is started again, to the same result; a file of another
        operator, method or seed is refused. One product more a start tells the operator.

    Returns
    -------
    Estimate
        ``value``, ``stderr``, ``interval()``, ``samples``. The standard error is that of
        the mean of independent samples, or, for the leave-one-out methods, the matrix
        jackknife, which errs on the safe side.

    Raises
    ------
    OperatorError
        A is not square, is empty, or its products are not what it promises; or
        "xnystrace" met an operator that is not positive semidefinite.
    NonFiniteError
        A product holds NaN or infinity.
    ValueError
        An argument is out of range, a number and a tolerance are both given, or the
        checkpoint is another run's.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met; the best estimate is returned.

    Cost
    ----
    Matvecs and vectors in memory, with b = block_size. "hutchinson": num_probes, 3 b + 1.
    "hutch++": 1.5 num_probes, num_probes / 2 + 5 b. "xtrace": 2 num_probes, 2 num_probes + 5 b.
    "xnystrace": num_probes, num_probes + 5 b. "deflated": num_probes and what :func:`eigsh`
    makes, which also sets the memory; given eigenpairs cost nothing, and 4 b beside them.

    References
    ----------
    A. Girard (1989), doi:10.1007/BF01395775. M. F. Hutchinson (1990),
    doi:10.1080/03610919008812866. The other methods name theirs in their modules.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> G = np.random.default_rng(0).standard_normal((500, 500))
    >>> estimate = mf.trace(G @ G.T, rtol=0.05, seed=1)
    >>> low, high = estimate.interval()
    >>> bool(low < np.sum(G * G) < high), estimate.converged
    (True, True)

    A spectrum that decays, to eight digits from sixty products:

    >>> decaying = np.diag(0.7 ** np.arange(500.0))
    >>> estimate = mf.trace(decaying, method="xnystrace", max_matvecs=60, seed=0)
    >>> bool(abs(estimate.value - 1 / 0.3) < 1e-6)
    True
    """
    if method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise ValueError(f"method must be one of {known}: got {method!r}.")
    estimator_type, best_kind = _METHODS[method]
    options: Sampling[Estimate] = {
        "num_probes": num_probes,
        "rtol": rtol,
        "atol": atol,
        "max_matvecs": max_matvecs,
        "block_size": block_size,
        "seed": seed,
        "kind": kind or best_kind,
        "first_probe": first_probe,
        "progress": progress,
        "callback": callback,
        "checkpoint": checkpoint,
    }
    return sample(CountedOperator(A), estimator_type, options, eigenpairs=eigenpairs)
