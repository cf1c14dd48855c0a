r"""Stochastic Lanczos quadrature: the spectral density of a Hermitian operator.

For a random unit vector v, the measure sum_i |u_i^H v|^2 delta(x - lambda_i) has the
spectral density (1/n) sum_i delta(x - lambda_i) as its mean. m Lanczos steps from v give
its Gauss quadrature: m nodes and weights with the first 2m moments right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, final

import numpy as np

from matfree import probes
from matfree.algorithms.checkpoint import Checkpoint, PathLike, restore, resumed_seed
from matfree.algorithms.complement import Complement
from matfree.algorithms.gauss import LanczosQuadrature
from matfree.algorithms.kpm import KernelPolynomial
from matfree.algorithms.plan import block_size_for, require_whole
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.recurrence import Reorthogonalize
from matfree.algorithms.sampling import asked_to_stop
from matfree.arrays import epsilon
from matfree.errors import Interrupted
from matfree.progress import Progress
from matfree.protocol import ProbeKind, Seed
from matfree.results import EigenResult, Quadrature, SpectralDensity

DensityMethod: TypeAlias = Literal["lanczos", "kpm"]

_BASIS_BYTES = 1 << 30  # Lanczos vectors kept at a time, which sets the default block


def spectral_density(
    A: Any,
    *,
    method: DensityMethod = "lanczos",
    num_steps: int = 80,
    num_probes: int = 8,
    eigenpairs: EigenResult | int = 0,
    block_size: int | None = None,
    reorthogonalize: Reorthogonalize = "full",
    seed: Seed = None,
    kind: ProbeKind = "rademacher",
    first_probe: int = 0,
    measure_noise: bool = False,
    progress: bool = False,
    callback: Callable[[SpectralDensity], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> SpectralDensity:
    r"""Estimate the eigenvalue distribution by stochastic quadrature.

    Each probe gives quadrature nodes and weights; their mean over probes estimates
    (1/n) sum_i delta(x - lambda_i). By Lanczos the first 2 num_steps moments of every
    probe's measure are exact. Where the operator has fewer distinct eigenvalues than steps,
    Lanczos ends early and the nodes are those eigenvalues.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    method : {"lanczos", "kpm"}
        Lanczos quadrature adapts to the spectrum and finds outliers to many digits.
        "kpm" smooths by a kernel of one width everywhere, from Chebyshev moments on an
        interval that a short Lanczos run finds first: good for a bulk without outliers,
        with four vectors a probe and no orthogonalisation.
    num_steps : int
        Products with each probe, the resolution; Lanczos makes at most n.
    num_probes : int
        Probes averaged over; the relative error of n times an outlier's mass is
        sqrt(2 / num_probes), while the bulk needs few probes where n is large.
    eigenpairs : EigenResult or int
        Eigenpairs known, or how many of the largest in magnitude to compute first: they
        count exactly, and the probes see the rest. Pairs with a residual above 1e-3 of
        ||A|| are left to the probes.
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
    measure_noise : bool
        Repeat one product; what it differs by is the result's ``noise``, and with it the
        floor below which an eigenvalue has no sign. An asymmetry that the noise explains
        is then accepted.
    progress : bool
        Show a progress bar (needs tqdm).
    callback : function, optional
        Called with the SpectralDensity so far after each block; returning True or raising
        StopIteration stops the run and keeps what it has.
    checkpoint : path, optional
        A file that holds the state of the run, written every 8 Lanczos steps with their
        vectors; as for :func:`matfree.trace`.

    Returns
    -------
    SpectralDensity
        ``nodes``, ``weights``, ``residuals``; ``density``, ``cdf``, ``cdf_band``, ``moment``,
        ``quantile``, ``mass_below``, ``count``, ``trace_function``, ``variance_reduced``,
        ``plot`` without further products.

    Raises
    ------
    ValueError
        An unknown method, num_steps or num_probes below 1, or eigenpairs that do not fit
        or have not converged.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.

    Cost
    ----
    num_steps * num_probes matvecs, up to 20 more for the interval of "kpm", one for the
    noise, and those of ``eigsh`` for eigenpairs to be computed. block_size (num_steps + 6)
    vectors in memory, or 6 block_size with reorthogonalize="none" and for "kpm".

    References
    ----------
    L. Lin, Y. Saad, C. Yang (2016), doi:10.1137/130934283. S. Ubaru, J. Chen, Y. Saad
    (2017), doi:10.1137/16M1104974. T. Chen, T. Trogdon, S. Ubaru (2021), arXiv:2105.06595.
    The kernel polynomial method: A. Weisse, G. Wellein, A. Alvermann, H. Fehske (2006),
    doi:10.1103/RevModPhys.78.275.

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
    for name, count in (("num_steps", num_steps), ("num_probes", num_probes)):
        require_whole(name, count)
    if method not in ("lanczos", "kpm"):
        raise ValueError(f'method must be "lanczos" or "kpm": got {method!r}.')
    run = _Run(Products(A), resumed_seed(checkpoint, seed), kind, first_probe, measure_noise)
    if checkpoint is not None:
        given = "given" if isinstance(eigenpairs, EigenResult) else eigenpairs
        options = (method, num_steps, reorthogonalize, given, measure_noise)
        run.resume(checkpoint, *options)
    run.prepare(eigenpairs, method, num_steps, reorthogonalize)
    block = block_size_for(run.space.size, block_size or _default_block(run))
    with Progress("spectral density", progress) as bar:
        bar.start(num_probes)
        try:
            while len(run.rules) < num_probes:
                run.advance(min(block, num_probes - len(run.rules)))
                bar.show(len(run.rules))
                if callback and asked_to_stop(callback, run.result("under way")):
                    return run.result("stopped by the callback")
        except KeyboardInterrupt as stop:
            if not run.rules:
                raise
            raise Interrupted(run.result("interrupted")) from stop
    return run.result("all probes done")


@final
class _Run:
    """Probes done so far, as quadratures."""

    saved = ("parts", "product", "complement", "quadrature")

    def __init__(
        self,
        product: Products,
        seed: int,
        kind: ProbeKind,
        first_probe: int,
        measure_noise: bool,
    ) -> None:
        self.product, self.space = product, product.space
        self.seed, self.kind = seed, kind
        self.first_probe, self.measure_noise = first_probe, measure_noise
        self.complement = Complement(product, seed=seed)
        self.quadrature: LanczosQuadrature | KernelPolynomial | None = None
        self.checkpoint: Checkpoint | None = None
        self.rules: list[Quadrature] = []

    @property
    def parts(self) -> tuple[HostArray, ...]:
        """The quadratures as arrays, (3, steps) each."""
        return tuple(np.stack(rule) for rule in self.rules)

    @parts.setter
    def parts(self, stored: tuple[HostArray, ...]) -> None:
        self.rules = [Quadrature(*part) for part in stored]

    def resume(
        self,
        path: PathLike,
        method: DensityMethod,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
        eigenpairs: int | str,
        measure_noise: bool,
    ) -> None:
        """Open the checkpoint, and go on from where its run was."""
        problem = {
            "estimator": "spectral_density",
            "method": method,
            "seed": self.seed,
            "kind": self.kind,
            "first_probe": self.first_probe,
            "num_steps": num_steps,
            "reorthogonalize": reorthogonalize,
            "eigenpairs": eigenpairs,
            "measure_noise": measure_noise,
        }
        self.checkpoint = Checkpoint(path, self.product, problem)
        restore(self, self.checkpoint.state, self.space)

    def prepare(
        self,
        eigenpairs: EigenResult | int,
        method: DensityMethod,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
    ) -> None:
        """Find what the probes need not see, and how they are to see the rest."""
        path = self.checkpoint and self.checkpoint.path.with_suffix(".eigenpairs.npz")
        self.complement.find(eigenpairs, path)
        self.save()
        if path is not None:
            path.unlink(missing_ok=True)
        if method == "kpm" and self.complement.size:
            self.quadrature = KernelPolynomial(self.complement, num_steps, seed=self.seed)
        else:
            self.quadrature = LanczosQuadrature(self.complement, num_steps, reorthogonalize)
        if self.checkpoint is not None and method == "kpm":
            self.checkpoint.take_up("quadrature", self.quadrature)
        if self.measure_noise:
            self.product.watch()

    def save(self) -> None:
        """Write the state into the checkpoint, where there is one."""
        if self.checkpoint is not None:
            self.checkpoint.save(self)

    def advance(self, count: int) -> None:
        """The quadratures of ``count`` more probes."""
        V = self.complement.probes(
            count,
            seed=self.seed,
            start=self.first_probe + len(self.rules),
            kind=self.kind,
            stream=probes.PROBES,
        )
        assert self.quadrature is not None
        fresh = self.quadrature(V, self.checkpoint, self.save)
        if self.measure_noise:
            self.product.measure_noise()
        self.rules.extend(map(self.complement.whole, fresh))
        self.save()

    def result(self, reason: str) -> SpectralDensity:
        """The density as it stands."""
        assert self.quadrature is not None
        norm = max(abs(rule.nodes[end]) for rule in self.rules for end in (0, -1))
        return SpectralDensity(
            nodes=tuple(rule.nodes for rule in self.rules),
            weights=tuple(rule.weights for rule in self.rules),
            residuals=tuple(rule.residuals for rule in self.rules),
            size=self.space.size,
            num_steps=self.quadrature.num_steps,
            num_matvecs=self.product.num_matvecs,
            epsilon=epsilon(self.space.xp, self.space.dtype),
            seed=self.seed,
            kind=self.kind,
            probe_ranges=((self.first_probe, self.first_probe + len(self.rules)),),
            reason=reason,
            method=self.quadrature.method,
            reorthogonalize=self.quadrature.reorthogonalize,
            known=self.complement.values,
            noise=float(self.product.noise / norm) if norm > 0 else 0.0,
        )


def _default_block(run: _Run) -> int:
    """As many probes as keep their Lanczos vectors within a gibibyte, eight at most (or what
    the operator prefers)."""
    assert run.quadrature is not None
    space = run.space
    numbers = run.quadrature.vectors_kept * len(space.rows)
    bytes_a_probe = numbers * space.xp.finfo(space.dtype).bits // 8
    most = run.product.block_size(None) or 8
    return int(max(1, min(most, _BASIS_BYTES // max(1, bytes_a_probe))))
