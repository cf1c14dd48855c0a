r"""The Frobenius norm and the other Schatten norms, which are sums over singular values.

The Frobenius norm needs one matvec per probe and no adjoint,

.. math:: \|A\|_F^2 = \operatorname{tr} A^H A = E \|A w\|^2,

whereas sums of other powers of the singular values are traces of functions of A or A^H A.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.magnitude import RangeChecked, equivariant
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.solving.solver import has_adjoint
from matfree.algorithms.spectra.quadrature_sampling import FunctionSampling, sample_quadratures
from matfree.algorithms.spectra.quadrature_trace import QuadratureTrace, power_of
from matfree.algorithms.spectra.spectral_functions import PowerOfSingularValues
from matfree.algorithms.traces.hutchinson import Samples, TraceEstimator
from matfree.arrays import epsilon, is_complex, to_host
from matfree.errors import NotHermitianError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import HostArray
from matfree.quadratures.bias import require_spectrum
from matfree.quadratures.brackets import Spectrum
from matfree.results import Estimate
from matfree.results.intervals import norm_error


@final
class NormEstimator(TraceEstimator):
    """The square root of the mean of ||A w||^2 over probes."""

    method = "frobenius norm"
    mergeable = False  # the mean of two roots is not the root of the mean
    saved = ("samples", "pairs", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        # Blocks of an even width, so that their width does not change which probes are pairs.
        super().__init__(A, replace(plan, block_size=2 * math.ceil(plan.block_size / 2)))
        self.samples = Samples(plan.kind, A.space.size)
        self.pairs: HostArray = np.zeros(0)
        """sqrt(c) |(A w_i)^H A w_j| for disjoint pairs of probes; see ``norm_error``."""

    def advance(self, start: int, count: int) -> None:
        Y, space = self.A(self.probes(start, count)), self.A.operator.space
        even = count - count % 2
        sums = space.partial_dots(Y, Y), space.partial_dots(Y[:, 0:even:2], Y[:, 1:even:2])
        numbers = to_host(space.all_reduce(space.xp.concat(sums)))
        self.A.require_finite(numbers)
        self.samples.add(numbers[:count].real)
        factor = 1.0 if is_complex(space.xp, space.dtype) else 2.0
        self.pairs = np.concatenate((self.pairs, math.sqrt(factor) * np.abs(numbers[count:])))

    def summary(self) -> Summary:
        summary = self.samples.summary()
        # Checkpoints of version 0.1 hold samples without pairs.
        if self.pairs.size:
            error = norm_error(self.samples.values, self.pairs, kind=self.plan.kind)
            summary = summary._replace(stderr=error.stderr, stderr_norm=error.stderr)
        return power_of(summary, 0.5)

    def exact(self) -> Summary:
        for E, Y in self.units.remaining():
            lengths = to_host(self.A.operator.space.norms(Y))
            self.A.require_finite(lengths)
            self.units.add(float(np.sum(lengths**2)), E.shape[1])
            self.block_done()
        norm = math.sqrt(self.units.total)
        return Summary(norm, 0.0, norm, 0.0, math.inf)


@equivariant()
@declares(Sampling)
def frobenius_norm(A: Any, **options: Unpack[Sampling[Estimate]]) -> Estimate:
    r"""Estimate the Frobenius norm of an operator, which may be rectangular.

    .. math:: \|A\|_F = \sqrt{E \|A w\|^2} \quad\text{for random } w \text{ with } E[w w^H] = I.

    Parameters
    ----------
    A : (m, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex. The adjoint is not needed.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval of the norm is at most
        atol + rtol ||A||_F.
    num_probes, max_matvecs, block_size, seed, kind, first_probe
        As for :func:`matfree.trace`.
    progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``value`` and ``stderr`` are floats. The standard error is that of the mean of the
        squares, from which the interval is computed on a logarithmic scale; its wider half
        determines ``stderr``. Estimates of norms cannot
        be merged, but those of the square by ``matfree.trace(A.H @ A)`` can.

    Raises
    ------
    ValueError, NonFiniteError
        As for :func:`matfree.trace`.
    OperatorError
        A is empty, or returns arrays of another shape or library than it declares.
    TypeError
        There is no such keyword.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    num_probes matvecs; 2 block_size + 1 vectors in memory.

    References
    ----------
    M. F. Hutchinson (1990), doi:10.1080/03610919008812866, applied to A^H A.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.frobenius_norm(np.diag([3.0, 4.0]), num_probes=2, seed=0)
    >>> estimate.value  # exact, because random signs have no variance for a diagonal matrix
    5.0
    """
    options = known(frobenius_norm, options)
    return sample(CountedOperator(A, square=False), NormEstimator, options)


@equivariant("spectrum")
@declares(FunctionSampling, reorthogonalize="none", eigenpairs=0)
def schatten_norm(A: Any, p: float, **options: Unpack[FunctionSampling]) -> Estimate:
    r"""Estimate a Schatten norm, the p-norm of the singular values.

    .. math:: \|A\|_p = \Bigl(\sum_i \sigma_i^p\Bigr)^{1/p}

    p = 1 gives the nuclear norm and p = 2 the Frobenius norm.

    Parameters
    ----------
    A : (m, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex. For a Hermitian operator, sigma_i = |lambda_i|. Any other needs its
        adjoint; the smaller of A^H A and A A^H is used.
    p : float
        A positive number.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval of the norm, bias included, is at most
        atol + rtol ||A||_p.
    spectrum : (float or None, float or None), optional
        Bounds of all eigenvalues of a Hermitian operator, or of all singular values of a
        rectangular one. The bias has a bound without them, but a positive lower bound may make
        it smaller.
    num_steps, num_probes, max_matvecs, block_size, reorthogonalize, memory, eigenpairs
        As for :func:`matfree.trace_function`. The budget counts matvecs with the square of a
        rectangular operator, whose eigenpairs these are.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``value``, ``stderr`` and ``bias`` are floats. The bias is a bound, and the interval
        is propagated through the root exactly; its wider half determines ``stderr``. Singular
        values that are rounding errors count as 0. What they might be belongs to the bias, also
        to that of the exact answer, and is large for p < 1 if A is singular. Estimates of norms
        cannot be merged.

    Raises
    ------
    ValueError
        p is not positive; or as for :func:`matfree.trace_function`.
    NoAdjointError
        A is rectangular and has no adjoint.
    NotHermitianError
        A is square, neither Hermitian nor with an adjoint.
    TypeError, NonFiniteError, OperatorError, MemoryError
        As for :func:`matfree.trace_function`.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    As for :func:`matfree.trace_function`; for an operator that is not Hermitian, every
    matvec is one with A and one with A^H.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad (2017), doi:10.1137/16M1104974.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.schatten_norm(np.diag([3.0, -4.0]), 1, num_probes=2, seed=0)
    >>> round(estimate.value, 12)
    7.0
    """
    if not p > 0:
        raise ValueError(f"p must be positive: got {p}; p=1 is the nuclear norm.")
    options = known(schatten_norm, options)
    operator = aslinearoperator(A)
    m, n = operator.shape
    if m == n:
        try:
            return _norm_from_powers(operator, p, p, options)
        except NotHermitianError as refusal:
            if not has_adjoint(operator):
                raise
            lost = refusal.num_matvecs
        budget = options.get("max_matvecs")
        if budget is not None:
            options = {**options, "max_matvecs": max(1, budget - lost)}
    operator = RangeChecked(operator)
    # The larger product has |m - n| additional eigenvalues 0.
    square = operator.H @ operator if m >= n else operator @ operator.H
    options = {**options, "spectrum": _squared(options.get("spectrum"))}
    found = _norm_from_powers(square, p, p / 2, options)
    return replace(found, num_matvecs=found.num_matvecs + lost) if m == n else found


def _norm_from_powers(A: Operator, p: float, power: float, options: FunctionSampling) -> Estimate:
    """The Schatten norm from the sum of |lambda|^power over the eigenvalues of A."""
    space = A.space
    make = partial(
        QuadratureTrace,
        f=PowerOfSingularValues(power, epsilon(space.xp, space.dtype), space.size),
        spectrum=options.get("spectrum"),
        grows=options.get("num_steps") is None,
        absolute_power=power,
        exponent=1 / p,
        method=f"Schatten {p:g}-norm",
    )
    return sample_quadratures(A, make, options, reorthogonalize="none")


def _squared(spectrum: Spectrum | None) -> Spectrum:
    """The bounds of the eigenvalues of A^H A from those of the singular values."""
    low, high = require_spectrum(spectrum)
    return (max(low or 0.0, 0.0) ** 2, None if high is None else high**2)
