r"""Norms that are sums over singular values: Frobenius, and Schatten's.

||A||_F^2 = tr A^H A = E ||A w||^2 takes one product a probe and no adjoint; other powers of
the singular values are traces of functions of A, or of A^H A.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Unpack, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.spectra.quadrature_estimators import QuadratureTrace, power_of
from matfree.algorithms.spectra.quadrature_sampling import QuadratureSampling, sample_quadratures
from matfree.algorithms.traces.hutchinson import Samples, TraceEstimator
from matfree.arrays import to_host
from matfree.operators import aslinearoperator
from matfree.results import Estimate


@final
class NormEstimator(TraceEstimator):
    """||A w||^2 per probe, and the root of their mean."""

    method = "frobenius norm"
    mergeable = False  # a mean of roots is not the root of the mean
    saved = ("samples", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.samples = Samples()

    def advance(self, start: int, count: int) -> None:
        Y = self.A(self.probes(start, count))
        lengths = to_host(self.A.operator.space.norms(Y))
        self.A.require_finite(lengths)
        self.samples.add(lengths**2)

    def summary(self) -> Summary:
        return power_of(self.samples.summary(), 0.5)

    def exact(self) -> Summary:
        for E, Y in self.units.products():
            lengths = to_host(self.A.operator.space.norms(Y))
            self.A.require_finite(lengths)
            self.units.add(float(np.sum(lengths**2)), E.shape[1])
            self.block_done()
        norm = math.sqrt(self.units.total)
        return Summary(norm, 0.0, norm, 0.0, math.inf)


@declares(Sampling)
def frobenius_norm(A: Any, **options: Unpack[Sampling[Estimate]]) -> Estimate:
    r"""Estimate ||A||_F = sqrt(E ||A w||^2) of any operator, rectangular ones included.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
    rtol, atol : float, optional
        Sample until the half-width of the norm's 95 % interval is at most atol + rtol ||A||_F.
    num_probes, max_matvecs, block_size, seed, kind, first_probe
        As for :func:`matfree.trace`.
    progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        The standard error is carried through the square root to first order. It cannot be
        merged; ``matfree.trace(A.H @ A)`` estimates the square and can.

    Raises
    ------
    ValueError, OperatorError, NonFiniteError
        As for :func:`matfree.trace`.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met.

    Cost
    ----
    num_probes matvecs; 2 block_size + 1 vectors in memory.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.frobenius_norm(np.diag([3.0, 4.0]), num_probes=2, seed=0)
    >>> estimate.value  # signs see a diagonal matrix exactly
    5.0
    """
    options = known(frobenius_norm, options)
    return sample(CountedOperator(A, square=False), NormEstimator, options)


@declares(QuadratureSampling, num_steps=40, reorthogonalize="none")
def schatten_norm(A: Any, p: float, **options: Unpack[QuadratureSampling]) -> Estimate:
    r"""Estimate the Schatten norm (sum_i sigma_i^p)^(1/p) of singular values.

    p = 1 is the nuclear norm, p = 2 the Frobenius norm. A square operator must be Hermitian
    (sigma_i = |lambda_i|); a rectangular one needs its adjoint, and goes through the
    smaller of A^H A and A A^H at two products a step.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
    p : float
        Positive.
    **options
        As for :func:`trace_function`. Tolerances bound the half-width of the interval of the
        norm, not of the sum.

    Returns
    -------
    Estimate
        Errors are carried through the root to first order. It cannot be merged.

    Raises
    ------
    ValueError, NotHermitianError, NonFiniteError, OperatorError
        As for :func:`trace_function`; or p is not positive.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met.

    Cost
    ----
    As for :func:`trace_function`; one product of a rectangular operator's square is two of
    the operator's.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.schatten_norm(np.diag([3.0, -4.0]), 1, num_probes=2, seed=0)
    >>> round(estimate.value, 12)
    7.0
    """
    if not p > 0:
        raise ValueError(f"p must be positive: got {p}.")
    operator = aslinearoperator(A)
    m, n = operator.shape
    if m == n:
        hermitian, power = operator, p
    else:  # the smaller square, which has no zeros of the shape's making
        hermitian = operator.H @ operator if m > n else operator @ operator.H
        power = p / 2
    make = partial(
        QuadratureTrace,
        f=lambda x: np.abs(x) ** power,
        exponent=1 / p,
        method=f"Schatten {p:g}-norm",
    )
    options = known(schatten_norm, options)
    return sample_quadratures(hermitian, make, options, reorthogonalize="none")
