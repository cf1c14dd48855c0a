r"""The sampling error of spectral distributions: effective sample sizes and proportions.

Let P be the projector onto the eigenvectors of a fraction p of all eigenvalues. A
random unit vector v gives this part of the spectrum the weight :math:`\|P v\|^2`, with mean p.
Its variance is 2 p (1 - p) / (n + 2) for a real Gaussian direction. For random signs it is
exactly

.. math:: \frac{2}{n^2} \Bigl( n p - \sum_i P_{ii}^2 \Bigr) \le \frac{2 p (1 - p)}{n}.

A proportion estimated from t independent trials has the variance p (1 - p) / t. Every probe
therefore counts as t = (n + 2) / 2 trials for a Gaussian direction, and as t = n / 2 for random
signs. In the complex case the variances are about half as large; the same t is used, so that the
intervals are conservative.

References
----------
A. Agresti, B. A. Coull (1998), doi:10.1080/00031305.1998.10480550, for proportions near 0 and 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.results.interpretations import NEGLIGIBLE_MASS

CONTINUOUS = ("gaussian", "sphere")
"""Probes that have a component along every eigenvector."""


class ErrorModel(NamedTuple):
    """The parameters of the error bounds other than the quadratures."""

    size: int
    """n."""
    known: HostArray
    """(k,) eigenvalues whose mass is exactly 1/n each, so that they have no sampling error."""
    num_probes: int
    kind: str
    """The distribution of the probes."""
    gauss: bool
    """Whether the quadratures are Gauss rules; otherwise a kernel has smoothed the measure."""
    orthogonal: bool
    """Whether the Lanczos vectors were reorthogonalized; otherwise nodes may be repeated, and
    the Christoffel function is no bound."""
    rounding: float
    """The rounding error of nodes, relative to the largest."""

    @property
    def sampled_fraction(self) -> float:
        """The fraction of the eigenvalues whose mass is sampled."""
        return 1 - len(self.known) / self.size

    @property
    def trials(self) -> float:
        """The effective sample size: all probes are as accurate as this many independent trials."""
        directions = self.size - len(self.known) + (2 if self.kind in CONTINUOUS else 0)
        return self.num_probes * directions / 2

    @property
    def normal_trials(self) -> float:
        """Fewer, for intervals of normal variables: the mean of few signs takes few values."""
        return self.trials / (1.0 if self.kind in CONTINUOUS else 1 + 0.5 / max(self.num_probes, 1))

    def proportion(self, share: Any, num_known: Any, z: float) -> tuple[HostArray, HostArray]:
        """The centre and the standard error of the interval for a fraction of the eigenvalues.

        z^2 / 2 successes and as many failures are added (Agresti and Coull). The fractions 0 and 1
        have no sampling error for Gaussian probes and the sphere, to which no eigenvector is
        orthogonal; for random signs they get the interval of Clopper and Pearson.
        """
        random, exact = self.sampled_fraction, np.asarray(num_known) / self.size
        if random <= 0:
            exact = exact + np.zeros(np.shape(share))
            return exact, np.zeros_like(exact)
        fraction = np.clip((np.asarray(share) - exact) / random, 0.0, 1.0)
        trials = self.normal_trials
        centre = (trials * fraction + z**2 / 2) / (trials + z**2)
        stderr = np.sqrt(centre * (1 - centre) / (trials + z**2))
        extreme = np.abs(fraction - (nearest := np.round(fraction))) <= NEGLIGIBLE_MASS
        missed = 0.0 if self.kind in CONTINUOUS else -scipy.special.log_ndtr(-z) / self.trials
        centre = np.where(extreme, np.abs(nearest - missed / 2), centre)
        stderr = np.where(extreme, missed / (2 * z), stderr)
        return exact + random * centre, random * stderr
