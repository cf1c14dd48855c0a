"""The public function ``trace``, which selects the estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator
from matfree.algorithms.running.keywords import Sampling
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.traces.hutchinson import HutchinsonTrace
from matfree.algorithms.traces.hutchpp import DeflatedTrace, HutchPlusPlus
from matfree.algorithms.traces.xnystrace import XNysTrace
from matfree.algorithms.traces.xtrace import XTrace
from matfree.protocol import ProbeKind, Seed
from matfree.results import EigenResult, Estimate

TraceMethod: TypeAlias = Literal["hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"]

_TRACE_METHODS: dict[str, tuple[type[Estimator], ProbeKind]] = {
    "hutchinson": (HutchinsonTrace, "rademacher"),
    "hutch++": (HutchPlusPlus, "rademacher"),
    "xtrace": (XTrace, "sphere"),
    "xnystrace": (XNysTrace, "sphere"),
    "deflated": (DeflatedTrace, "rademacher"),
}
"""The estimator of each method, and the default distribution of its probes."""


_REMEDY_OF_TRACE = 'use method="hutchinson", "hutch++" or "xtrace", which need no symmetry'


@equivariant()
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

    .. math:: \operatorname{tr} A = E[w^H A w] \quad\text{for random } w \text{ with } E[w w^H] = I.

    Parameters
    ----------
    A : (n, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex; it need not be symmetric.
    method : {"hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"}
        "hutchinson" is the plain average: unbiased, with O(n) memory, and as accurate as any
        if the spectrum is flat. If it decays or has outliers, the other methods need far fewer
        matvecs: "xtrace" for any operator, "xnystrace" for positive semidefinite ones at half
        the cost, "hutch++" as the simplest of them, and "deflated" if eigenpairs are needed
        anyway.
    num_probes : int, optional
        A fixed number of probes, even if it exceeds n. A probe costs one matvec, or two for
        "xtrace"; "hutch++" uses half of the probes for its sketch, at two matvecs each.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval is at most atol + rtol |value|.
    max_matvecs : int, optional
        The largest number of matvecs. Without a tolerance all of them are used (32 by
        default), otherwise as many as needed (up to 1000 by default). If the budget is at
        least n, sampling stops early enough to leave n matvecs for the exact trace from n unit
        vectors, and ``method`` of the result is then "exact".
    block_size : int, optional
        The number of probes that the operator is applied to at once. It changes the speed and
        the memory, but not the result.
    seed : int, None or numpy.random.Generator
        None draws fresh entropy; the result reports the seed.
    kind : {"rademacher", "gaussian", "sphere", "z4"}, optional
        The distribution of the probes. Random signs minimize the variance of plain averages
        for a real operator, "z4" for a complex Hermitian one. "sphere" is the default of
        "xtrace" and "xnystrace", which reduce their variance by its rotation invariance.
    eigenpairs : EigenResult or int
        For "deflated": known eigenpairs, or how many of the largest in magnitude to compute.
    first_probe : int
        The index of the first probe. Runs over different probes of one seed can be merged;
        the result is that of one run over all of them.
    progress : bool
        Show a progress bar with the current value and interval (needs tqdm).
    callback : function, optional
        It is called with the Estimate so far after each block. Returning True or raising
        StopIteration stops the run and returns that estimate.
    checkpoint : path, optional
        A file to which the state of the run is written after every block. A run that was
        killed resumes from it when it is started again, and gives the same result. A file of
        another operator, method or seed is refused. Each start costs one additional matvec,
        which identifies the operator.

    Returns
    -------
    Estimate
        ``value`` is a float, or complex for a complex operator; ``stderr`` is a float,
        ``samples`` a NumPy array (num_probes,), and ``interval()`` gives both ends of the
        95 % interval. For a Hermitian operator, the standard error follows from the products
        (see ``matfree.results.intervals``), for others from the scatter of the samples; for
        the leave-one-out methods it is the matrix jackknife, which is conservative.

    Raises
    ------
    OperatorError
        A is not square, is empty, or returns arrays of another shape or library than it
        declares; or the method is "xnystrace" and A is not positive semidefinite.
    NonFiniteError
        A matvec contains NaN or infinity.
    ValueError
        An argument is out of range, num_probes is given together with a tolerance or a
        budget, or the checkpoint belongs to another run.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    Matvecs and vectors in memory, with b = block_size:

    * "hutchinson": num_probes; 4 b + 3.
    * "hutch++": 1.5 num_probes; num_probes / 2 + 5 b.
    * "xtrace": 2 num_probes; 2 num_probes + 5 b.
    * "xnystrace": num_probes; num_probes + 5 b.
    * "deflated": num_probes, and those of :func:`eigsh`, whose memory is the larger. With
      given eigenpairs, one matvec more, or one per pair if A has changed since; 4 b in
      addition to the pairs.

    References
    ----------
    A. Girard (1989), doi:10.1007/BF01395775. M. F. Hutchinson (1990),
    doi:10.1080/03610919008812866. Hutch++: R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff
    (2021), doi:10.1137/1.9781611976496.16. XTrace and XNysTrace: E. N. Epperly, J. A. Tropp,
    R. J. Webber (2024), doi:10.1137/23M1548323.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> G = np.random.default_rng(0).standard_normal((500, 500))
    >>> estimate = mf.trace(G @ G.T, rtol=0.05, seed=1)
    >>> low, high = estimate.interval()
    >>> bool(low < np.sum(G * G) < high), estimate.converged
    (True, True)

    The trace of an operator with a decaying spectrum, to eight digits from sixty matvecs:

    >>> decaying = np.diag(0.7 ** np.arange(500.0))
    >>> estimate = mf.trace(decaying, method="xnystrace", max_matvecs=60, seed=0)
    >>> bool(abs(estimate.value - 1 / 0.3) < 1e-6)
    True
    """
    if method not in _TRACE_METHODS:
        methods = ", ".join(map(repr, _TRACE_METHODS))
        raise ValueError(f"method must be one of {methods}: got {method!r}.")
    estimator_type, default_kind = _TRACE_METHODS[method]
    options: Sampling[Estimate] = {
        "num_probes": num_probes,
        "rtol": rtol,
        "atol": atol,
        "max_matvecs": max_matvecs,
        "block_size": block_size,
        "seed": seed,
        "kind": kind or default_kind,
        "first_probe": first_probe,
        "progress": progress,
        "callback": callback,
        "checkpoint": checkpoint,
    }
    return sample(
        CountedOperator(A, remedy=_REMEDY_OF_TRACE), estimator_type, options, eigenpairs=eigenpairs
    )
