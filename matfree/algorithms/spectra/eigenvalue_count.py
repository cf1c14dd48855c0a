r"""How many eigenvalues lie in an interval: the trace of an indicator function.

#{i : low <= lambda_i <= high} = tr f(A), f = 1 on the interval and 0 elsewhere. f jumps, so
that no number of Lanczos steps makes its quadrature exact: the nodes next to both ends may
stand for mass on either side of them. What they leave open is bounded by the
Markov-Stieltjes inequalities and by the Christoffel function (``matfree.results.bands``), for
each probe, and counted as bias; it vanishes where the ends lie in gaps of the spectrum, or
where Lanczos broke down.

References
----------
E. Di Napoli, E. Polizzi, Y. Saad (2016), Efficient estimation of eigenvalue counts in an
interval, doi:10.1002/nla.2048. T. Chen, T. Trogdon, S. Ubaru (2021), arXiv:2105.06595.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, final

import numpy as np

from matfree.algorithms.krylov.recurrence import Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.keywords import declares, known
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.spectra.gauss_quadrature import gauss_rule
from matfree.algorithms.spectra.quadrature_estimators import QuadratureRun
from matfree.algorithms.spectra.quadrature_sampling import QuadratureSampling, sample_quadratures
from matfree.arrays import rounding
from matfree.protocol import HostArray
from matfree.results import Estimate, Quadrature, Tridiagonal
from matfree.results.bands import ErrorModel, interval_mass


@final
class EigenvalueCount(QuadratureRun):
    """n times the share of each probe's spectral measure that lies in [low, high]."""

    method = "eigenvalue count"
    mergeable = False  # the bar comes from the share, not from the samples
    saved = ("nodes", "weights", "residuals", "node_error", "columns", "recurrence")

    def __init__(
        self,
        A: CountedOperator,
        plan: Plan,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
        *,
        low: float,
        high: float,
    ) -> None:
        super().__init__(A, plan, num_steps, reorthogonalize)
        self.low, self.high = float(low), float(high)
        self.rounding = rounding(self.space.xp, self.space.dtype)
        self.nodes: list[HostArray] = []
        self.weights: list[HostArray] = []
        self.residuals: list[HostArray] = []
        self.node_error = 0.0  # the largest that a basis in 16 bits explains

    def identity(self, budget: int) -> dict[str, Any]:
        return {**super().identity(budget), "low": self.low, "high": self.high}

    def take(self, T: Tridiagonal, p: int) -> None:
        rule = gauss_rule(T, p, self.cost, self.rounding)
        self.node_error = max(self.node_error, T.node_error(p))
        self.nodes.append(rule.nodes)
        self.weights.append(rule.weights)
        self.residuals.append(rule.residuals)

    def summary(self) -> Summary:
        n, count = self.space.size, len(self.nodes)
        norm = max(float(np.abs(nodes).max()) for nodes in self.nodes)
        rules = list(map(Quadrature, self.nodes, self.weights, self.residuals))
        probing = ErrorModel(
            size=n,
            known=np.zeros(0),
            num_probes=count,
            kind=self.plan.kind,
            gauss=True,
            orthogonal=self.reorthogonalize != "none",
            rounding=max(self.rounding, self.node_error / norm if norm > 0 else 0.0),
        )
        share = interval_mass(rules, probing, self.low, self.high, "right")
        samples, bar = n * share.samples, n * share.stderr
        value = float(samples.mean())
        return Summary(value, bar, value, bar, math.inf, samples, n * share.bias)

    def sum_over(self, eigenvalues: HostArray) -> float:
        slack = self.rounding * float(np.abs(eigenvalues).max())  # as in ``interval_mass``
        inside = (self.low - slack <= eigenvalues) & (eigenvalues <= self.high + slack)
        return float(np.sum(inside))


@declares(QuadratureSampling, num_steps=40, reorthogonalize="full")
def eigenvalue_count(
    A: Any, low: float, high: float, **options: Unpack[QuadratureSampling]
) -> Estimate:
    r"""Estimate the number of eigenvalues of a Hermitian operator in [low, high].

    #{i : low <= lambda_i <= high} = n E[mass of a random vector's spectral measure there].

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    low, high : float
        -inf and inf are welcome. Eigenvalues that rounding cannot tell from an end
        (within 32 eps ||A||) count as inside.
    num_steps : int
        Lanczos steps a probe. The nodes next to an end inside the spectrum carry about
        1 / num_steps of the mass each; ``bias`` says what they leave open.
    num_probes : int, optional
        A fixed number of probes; 10 where nothing else is said.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval, bias included, is at most
        atol + rtol |value|. More probes do not lower the bias: more steps do.
    max_matvecs : int, optional
        The most products, num_steps a probe. Where it reaches n, n products and a dense
        eigenproblem give the exact answer.
    block_size : int, optional
        Probes run together.
    reorthogonalize : {"full", "half", "none"}
        "half" keeps the basis in 16-bit numbers, as for :func:`matfree.spectral_density`;
        "none" keeps no basis, but gaps of the spectrum then lower no bias.
    memory : int, optional
        Bytes that may be taken, per process, beside what the operator needs itself. Where
        ``reorthogonalize`` and ``block_size`` take more, fewer probes run together, then the
        basis is kept in 16 bits, then not at all; ``memory`` of the result tells which.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``bias`` is what the quadrature leaves open, ``stderr`` the probes' error by the
        theory of proportions, which holds for one probe as well.

    Raises
    ------
    ValueError
        low > high, or an argument out of range.
    NotHermitianError, NonFiniteError, OperatorError
        As for :func:`matfree.spectral_density`.
    MemoryError
        ``memory`` is too little for one probe without a basis.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met.

    Cost
    ----
    num_steps * num_probes matvecs; block_size (num_steps + 6) vectors in memory, or
    6 block_size with reorthogonalize="none".

    References
    ----------
    E. Di Napoli, E. Polizzi, Y. Saad (2016), doi:10.1002/nla.2048.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.full(30, -1.0), np.full(70, 2.0)])
    >>> mf.eigenvalue_count(A, -np.inf, 0.0, num_probes=5, seed=0).value.__round__(9)
    30.0
    """
    if not low <= high:
        raise ValueError(f"low must be at most high: got [{low}, {high}].")
    count = sample_quadratures(
        A,
        partial(EigenvalueCount, low=low, high=high),
        known(eigenvalue_count, options),
        reorthogonalize="full",
    )
    return replace(count, limits=(0.0, float(count.size)))
