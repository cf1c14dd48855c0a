r"""Stochastic Lanczos quadrature: the spectral density of a Hermitian operator.

For a random unit vector v, the measure sum_i |u_i^H v|^2 delta(x - lambda_i) has the
spectral density (1/n) sum_i delta(x - lambda_i) as its mean. m Lanczos steps from v give
its Gauss quadrature: m nodes and weights with the first 2m moments right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.algorithms.plan import block_size_for
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.recurrence import Reorthogonalize, tridiagonalize
from matfree.algorithms.sampling import asked_to_stop
from matfree.arrays import epsilon
from matfree.errors import Interrupted
from matfree.probes import resolve_seed
from matfree.progress import Progress
from matfree.protocol import ProbeKind, Seed
from matfree.results import SpectralDensity

_BASIS_BYTES = 1 << 30  # Lanczos vectors kept at a time, which sets the default block


def spectral_density(
    A: Any,
    *,
    num_steps: int = 80,
    num_probes: int = 8,
    block_size: int | None = None,
    reorthogonalize: Reorthogonalize = "full",
    seed: Seed = None,
    kind: ProbeKind = "rademacher",
    first_probe: int = 0,
    progress: bool = False,
    callback: Callable[[SpectralDensity], bool | None] | None = None,
) -> SpectralDensity:
    r"""Estimate the eigenvalue distribution by stochastic Lanczos quadrature.

    Each probe gives quadrature nodes and weights; their mean over probes estimates
    (1/n) sum_i delta(x - lambda_i). The first 2 num_steps moments of every probe's
    measure are exact. Where the operator has fewer distinct eigenvalues than steps,
    Lanczos ends early and the nodes are those eigenvalues.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    num_steps : int
        Lanczos steps a probe, the resolution; at most n are made.
    num_probes : int
        Probes averaged over; the relative error of n times an outlier's mass is
        sqrt(2 / num_probes), while the bulk needs few probes where n is large.
    block_size : int, optional
        Probes run together; by default what keeps the Lanczos vectors within 1 GiB.
    reorthogonalize : {"full", "none"}
        "none" keeps two blocks instead of every Lanczos vector; the distribution stays
        right, at some loss of resolution, but nodes then repeat.
    seed : int, None or numpy.random.Generator
    kind : {"rademacher", "gaussian", "sphere", "z4"}
        The probes' distribution.
    first_probe : int
        The number of the first probe; runs over different probes can be merged.
    progress : bool
        Show a progress bar (needs tqdm).
    callback : function, optional
        Called with the SpectralDensity so far after each block; returning True or raising
        StopIteration stops the run and keeps what it has.

    Returns
    -------
    SpectralDensity
        ``nodes``, ``weights``; ``density``, ``cdf``, ``moment``, ``quantile``,
        ``mass_below``, ``trace_function``, ``plot`` without further products.

    Raises
    ------
    ValueError
        num_steps or num_probes below 1.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.

    Cost
    ----
    num_steps * num_probes matvecs; block_size (num_steps + 6) vectors in memory, or
    6 block_size with reorthogonalize="none".

    References
    ----------
    L. Lin, Y. Saad, C. Yang (2016), doi:10.1137/130934283. S. Ubaru, J. Chen, Y. Saad
    (2017), doi:10.1137/16M1104974. T. Chen, T. Trogdon, S. Ubaru (2021), arXiv:2105.06595.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.repeat([1.0, 2.0, 5.0, 10.0], 25))
    >>> density = mf.spectral_density(A, num_probes=4, seed=0)
    >>> density.nodes[0].round(10)  # four distinct eigenvalues: four nodes
    array([ 1.,  2.,  5., 10.])
    >>> density.weights[0].round(10)
    array([0.25, 0.25, 0.25, 0.25])
    """
    product = Products(A)
    for name, count in (("num_steps", num_steps), ("num_probes", num_probes)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1: got {count}.")
    steps = min(num_steps, product.space.size)
    run = _Run(product, steps, resolve_seed(seed), kind, reorthogonalize, first_probe)
    block = block_size_for(product.space.size, block_size or _default_block(product, steps))
    with Progress("spectral density", progress) as bar:
        bar.start(num_probes)
        try:
            while len(run.nodes) < num_probes:
                run.advance(min(block, num_probes - len(run.nodes)))
                bar.show(len(run.nodes))
                if callback and asked_to_stop(callback, run.result("under way")):
                    return run.result("stopped by the callback")
        except KeyboardInterrupt as stop:
            if not run.nodes:
                raise
            raise Interrupted(run.result("interrupted")) from stop
    return run.result("all probes done")


class _Run:
    """Probes done so far, as nodes and weights."""

    def __init__(
        self,
        product: Products,
        num_steps: int,
        seed: int,
        kind: ProbeKind,
        reorthogonalize: Reorthogonalize,
        first_probe: int,
    ) -> None:
        self.product, self.num_steps, self.seed = product, num_steps, seed
        self.kind, self.reorthogonalize = kind, reorthogonalize
        self.first_probe = first_probe
        self.nodes: list[HostArray] = []
        self.weights: list[HostArray] = []

    def advance(self, count: int) -> None:
        first = self.first_probe + len(self.nodes)
        T = tridiagonalize(  # which lets go of the probes once it has normalised them
            self.product,
            self.product.space.probes(count, seed=self.seed, start=first, kind=self.kind),
            self.num_steps,
            reorthogonalize=self.reorthogonalize,
            keep_basis=False,
        )
        for p in range(count):
            nodes, weights = T.quadrature(p)
            self.nodes.append(nodes)
            self.weights.append(weights)

    def result(self, reason: str) -> SpectralDensity:
        space = self.product.space
        return SpectralDensity(
            nodes=tuple(self.nodes),
            weights=tuple(self.weights),
            size=space.size,
            num_steps=self.num_steps,
            num_matvecs=self.product.num_matvecs,
            epsilon=epsilon(space.xp, space.dtype),
            seed=self.seed,
            kind=self.kind,
            probe_ranges=((self.first_probe, self.first_probe + len(self.nodes)),),
            reason=reason,
        )


def _default_block(product: Products, num_steps: int) -> int:
    """As many probes as keep their Lanczos vectors within a gibibyte, eight at most."""
    space = product.space
    bytes_a_probe = num_steps * len(space.rows) * space.xp.finfo(space.dtype).bits // 8
    return int(max(1, min(8, _BASIS_BYTES // max(1, bytes_a_probe))))
