r"""Stochastic Lanczos quadrature: the spectral density of a Hermitian operator.

For a random unit vector v, the measure sum_i |u_i^H v|^2 delta(x - lambda_i) has the
spectral density (1/n) sum_i delta(x - lambda_i) as its mean. m Lanczos steps from v give
its Gauss quadrature: m nodes and weights with the first 2m moments right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.algorithms.krylov.recurrence import Reorthogonalize, require_reorthogonalize
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.algorithms.spectra.density_run import DensityMethod, DensityRun, density_storage
from matfree.arguments import require_whole
from matfree.protocol import ProbeKind, Seed
from matfree.results import EigenResult, SpectralDensity


def spectral_density(
    A: Any,
    *,
    method: DensityMethod = "lanczos",
    num_steps: int = 80,
    num_probes: int = 8,
    eigenpairs: EigenResult | int = 0,
    block_size: int | None = None,
    reorthogonalize: Reorthogonalize = "full",
    memory: int | None = None,
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
    reorthogonalize : {"full", "half", "none"}
        "half" keeps the Lanczos vectors in scaled 16-bit numbers, an eighth of float64's
        room. With ten outliers above a bulk (n = 2000, 64 steps) converged nodes are off by
        2e-9 ||A||, the bulk by as much as with "full", and no node repeats; over ten other
        spectra by 1e-8 ||A|| at most. A repeated eigenvalue far from the rest may come as
        several nodes. ``storage_error`` bounds what it costs, and raises ``noise_floor``.
        "none" keeps two blocks instead of every Lanczos vector; the distribution stays
        right, at some loss of resolution, but nodes then repeat: 40 for those ten outliers.
    memory : int, optional
        Bytes that may be taken, per process, beside what the operator needs itself. Where
        ``reorthogonalize`` and ``block_size`` take more, fewer probes run together, then
        "half" is taken, where the library has 16-bit numbers, then "none": the first that
        fits, which ``memory`` of the result tells.
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
        An unknown method or ``reorthogonalize``, num_steps or num_probes below 1, or
        eigenpairs that do not fit or have not converged.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.
    MemoryError
        ``memory`` is too little for one probe without a basis, and the text says how much
        would be enough.

    Cost
    ----
    num_steps * num_probes matvecs, up to 20 more for the interval of "kpm", one for the
    noise, and those of ``eigsh`` for eigenpairs to be computed. block_size (num_steps + 6)
    vectors in memory, block_size (num_steps / 4 + 7) with "half" in double precision (half of
    the basis in single), or 6 block_size with "none" and for "kpm".

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
    _require_sensible(method, reorthogonalize, num_steps=num_steps, num_probes=num_probes)
    A = CountedOperator(A)
    run = Run(
        "spectral density",
        Checkpoint(checkpoint, A, seed),
        progress=progress,
        callback=callback,
    )
    storage = density_storage(
        A,
        method,
        num_steps,
        num_probes,
        eigenpairs=eigenpairs,
        block_size=block_size,
        reorthogonalize=reorthogonalize,
        memory=memory,
        copied=run.checkpoint.is_stored,
        repeated=measure_noise,
    )
    density = DensityRun(A, run, kind, first_probe, measure_noise, storage)
    density.prepare(eigenpairs, method, num_steps)
    return run.complete(num_probes, lambda: density.complete(num_probes), density.interrupted)


def _require_sensible(method: str, reorthogonalize: str, **counts: int) -> None:
    for name, count in counts.items():
        require_whole(name, count)
    if method not in ("lanczos", "kpm"):
        raise ValueError(f'method must be "lanczos" or "kpm": got {method!r}.')
    require_reorthogonalize(reorthogonalize)
