r"""The number of eigenvalues in an interval: the trace of an indicator function.

.. math:: \#\{i : \text{low} \le \lambda_i \le \text{high}\} = \operatorname{tr} f(A),
    \qquad f = 1 \text{ on the interval, } 0 \text{ elsewhere.}

Because f is discontinuous, its Gauss quadrature is not exact for any number of Lanczos steps: the
weights of the nodes next to an end of the interval may represent mass on either side of it. For
each probe, the Markov-Stieltjes inequalities and the Christoffel function bound that mass
(``matfree.results.bands``). The bound is reported as bias. It vanishes if both ends lie in gaps of
the spectrum, and after a breakdown of Lanczos.

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
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.spectra.gauss_quadrature import gauss_rule
from matfree.algorithms.spectra.quadrature_estimators import QuadratureEstimator
from matfree.algorithms.spectra.quadrature_sampling import QuadratureSampling, sample_quadratures
from matfree.arrays import rounding
from matfree.protocol import HostArray
from matfree.results import Estimate, Quadrature, Tridiagonal
from matfree.results.bands import interval_mass
from matfree.results.error_model import ErrorModel


@final
class EigenvalueCount(QuadratureEstimator):
    """n times the mean over probes of the mass of the spectral measure in [low, high]."""

    method = "eigenvalue count"
    mergeable = False  # the standard error is that of a proportion, not of the mean of samples
    saved = ("nodes", "weights", "residuals", "node_error", "columns", "deflated", "recurrence")

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
        self.node_error = 0.0
        """The largest error of a node that is due to a basis in 16-bit numbers."""

    def identity(self, budget: int) -> dict[str, Any]:
        return {**super().identity(budget), "low": self.low, "high": self.high}

    def prepare(self, budget: int) -> int:
        self.deflate(budget)
        return super().prepare(budget)

    def record(self, T: Tridiagonal, p: int) -> None:
        rule = self.deflated.with_known(gauss_rule(T, p, self.cost, self.rounding))
        self.node_error = max(self.node_error, T.node_error(p))
        self.nodes.append(rule.nodes)
        self.weights.append(rule.weights)
        self.residuals.append(rule.residuals)

    def summary(self) -> Summary:
        n, count = self.space.size, len(self.nodes)
        norm = max(float(np.abs(nodes).max()) for nodes in self.nodes)
        rules = list(map(Quadrature, self.nodes, self.weights, self.residuals))
        model = ErrorModel(
            size=n,
            known=self.deflated.values,
            num_probes=count,
            kind=self.plan.kind,
            gauss=True,
            orthogonal=self.reorthogonalize != "none",
            rounding=max(self.rounding, self.node_error / norm if norm > 0 else 0.0),
        )
        mass = interval_mass(rules, model, self.low, self.high, "right")
        samples, stderr = n * mass.samples, n * mass.stderr
        value = float(samples.mean())
        return Summary(value, stderr, value, stderr, math.inf, samples, n * mass.bias)

    def sum_over(self, eigenvalues: HostArray) -> float:
        slack = self.rounding * float(np.abs(eigenvalues).max())  # as in ``interval_mass``
        inside = (self.low - slack <= eigenvalues) & (eigenvalues <= self.high + slack)
        return float(np.sum(inside))


@equivariant("low", "high", degree=0)
@declares(QuadratureSampling, num_steps=40, reorthogonalize="full", eigenpairs=0)
def eigenvalue_count(
    A: Any, low: float, high: float, **options: Unpack[QuadratureSampling]
) -> Estimate:
    r"""Estimate the number of eigenvalues of a Hermitian operator in [low, high].

    .. math:: \#\{i : \text{low} \le \lambda_i \le \text{high}\} = n \, E[\mu_w([\text{low},
        \text{high}])], \qquad \mu_w = \sum_i \frac{|u_i^H w|^2}{\|w\|^2} \, \delta_{\lambda_i}

    for random probes w, with orthonormal eigenvectors u_i of A.

    Parameters
    ----------
    A : (n, n) Hermitian operator, or anything ``aslinearoperator`` accepts
        Real symmetric or complex Hermitian.
    low, high : float
        The ends of the interval, which may be infinite. Eigenvalues within 32 eps ||A|| of an
        end, which rounding cannot distinguish from it, count as inside.
    num_steps : int
        Lanczos steps per probe. If an end lies inside the spectrum, the nodes next to it have
        about 1 / num_steps of the mass each; ``bias`` bounds the resulting error.
    num_probes : int, optional
        A fixed number of probes. The default is 10 if neither a tolerance nor a budget is
        given.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval, bias included, is at most
        atol + rtol |value|. The bias decreases with num_steps, not with the number of probes.
    max_matvecs : int, optional
        The largest number of matvecs, num_steps per probe. If it is at least n, n matvecs and
        a dense eigenproblem give the exact number.
    block_size : int, optional
        The number of probes whose recurrences run together.
    reorthogonalize : {"full", "half", "none"}
        "half" stores the basis in 16-bit numbers, as for :func:`matfree.spectral_density`.
        "none" stores no basis, but gaps of the spectrum then do not reduce the bias.
    memory : int, optional
        Bytes per process that the run may use, in addition to the memory of the operator. If
        ``block_size`` and ``reorthogonalize`` need more, first the block size is reduced, then
        "half" and finally "none" are used. ``memory`` of the result reports the choice.
    eigenpairs : EigenResult or int
        As for :func:`matfree.trace_function`. Each known eigenvalue counts as one exactly.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``value``, ``stderr`` and ``bias`` are floats. ``bias`` bounds the error of the
        quadrature; ``stderr`` is the sampling error by the theory of proportions, which is
        also available for a single probe. The interval lies within [0, n].

    Raises
    ------
    ValueError
        low > high, or an argument is out of range.
    TypeError
        There is no such keyword.
    NotHermitianError, NonFiniteError, OperatorError
        As for :func:`matfree.spectral_density`.
    MemoryError
        ``memory`` is insufficient for one probe without a basis.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    num_steps * num_probes matvecs. Vectors in memory: block_size (num_steps + 6), or
    6 block_size with reorthogonalize="none"; the exact number needs six n x n matrices.

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
        raise ValueError(f"low must be at most high: got low={low}, high={high}; swap them.")
    count = sample_quadratures(
        A,
        partial(EigenvalueCount, low=low, high=high),
        known(eigenvalue_count, options),
        reorthogonalize="full",
    )
    return replace(count, limits=(0.0, float(count.size)))  # the interval is clipped to [0, n]
