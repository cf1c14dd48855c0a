r"""Stochastic Lanczos quadrature: the spectral density of a Hermitian operator.

For a random unit vector v, the mean of its spectral measure is the spectral density of A,

.. math:: E \sum_i |u_i^H v|^2 \, \delta(x - \lambda_i) = \frac1n \sum_i \delta(x - \lambda_i).

m Lanczos steps from v give the Gauss quadrature of its measure: m nodes and weights that
reproduce the first 2m moments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.algorithms.krylov.recurrence import Reorthogonalize, require_reorthogonalize
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.run import Run
from matfree.algorithms.spectra.density_run import DensityMethod, DensityRun, density_storage
from matfree.arguments import require_whole
from matfree.protocol import ProbeKind, Seed
from matfree.results import EigenResult, SpectralDensity


@equivariant()
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
    r"""Estimate the distribution of the eigenvalues by stochastic quadrature.

    .. math:: \frac1n \sum_i \delta(x - \lambda_i) \approx
        \frac1k \sum_{p=1}^k \sum_{j=1}^m \tau_{pj} \, \delta(x - \theta_{pj})

    with nodes theta and weights tau for each of k probes. Lanczos quadrature reproduces the
    first 2 num_steps moments of the spectral measure of every probe. If the operator has fewer
    distinct eigenvalues than num_steps, Lanczos ends early, and the nodes are the eigenvalues.

    Parameters
    ----------
    A : (n, n) Hermitian operator, or anything ``aslinearoperator`` accepts
        Real symmetric or complex Hermitian.
    method : {"lanczos", "kpm"}
        Lanczos quadrature adapts to the spectrum, and determines outliers to many digits. The
        kernel polynomial method computes Chebyshev moments on an interval, which a short
        Lanczos run determines, and smooths with a kernel of nearly constant width. It suits
        spectra without outliers, and needs four vectors per probe and no orthogonalization.
    num_steps : int
        Matvecs per probe, which determine the resolution; Lanczos makes at most n.
    num_probes : int
        The number of probes. The relative error of the mass of a simple outlier is
        sqrt(2 / num_probes); the bulk of a large operator needs only few probes.
    eigenpairs : EigenResult or int
        Known eigenpairs, or how many of the largest in magnitude to compute first. Their
        eigenvalues are included exactly, and the probes are projected onto the complement of
        the eigenvectors. Pairs with a residual above 1e-3 ||A|| are not used.
    block_size : int, optional
        The number of probes whose recurrences run together. By default at most 8, or the
        preferred block size of the operator, as far as the Lanczos vectors fit into 1 GiB.
    reorthogonalize : {"full", "half", "none"}
        "half" stores the Lanczos vectors in scaled 16-bit numbers, which need a quarter of the
        memory of float64. For ten outliers above a bulk (n = 2000, 64 steps), the error of
        converged nodes is 2e-9 ||A||, the bulk is as accurate as with "full", and no node is
        repeated; for ten other spectra the error is at most 1e-8 ||A||. A multiple eigenvalue
        far from the others may appear as several nodes. ``storage_error`` of the result bounds
        the error and is included in ``noise_floor``. "none" stores two blocks instead of all
        Lanczos vectors. The distribution remains correct with a lower resolution, but nodes
        are repeated (40 nodes for the ten outliers of the example).
    memory : int, optional
        Bytes per process that the run may use, in addition to the memory of the operator. If
        ``block_size`` and ``reorthogonalize`` need more, first the block size is reduced, then
        "half" is used if the array library has 16-bit numbers, and finally "none". ``memory``
        of the result reports the choice.
    seed : int, None or numpy.random.Generator
        None draws fresh entropy; the result reports the seed.
    kind : {"rademacher", "gaussian", "sphere", "z4"}
        The distribution of the probes.
    first_probe : int
        The index of the first probe. Runs over different probes of one seed can be merged.
    measure_noise : bool
        Repeat one matvec. The difference determines ``noise`` of the result, and hence the
        magnitude below which the sign of an eigenvalue is undetermined. An asymmetry of A
        that is explained by the noise is then accepted.
    progress : bool
        Show a progress bar (needs tqdm).
    callback : function, optional
        It is called with the SpectralDensity so far after each block. Returning True or
        raising StopIteration stops the run and returns that density.
    checkpoint : path, optional
        As for :func:`matfree.trace`. The file is written after every 8 Lanczos steps, and
        contains the Lanczos vectors.

    Returns
    -------
    SpectralDensity
        ``nodes``, ``weights`` and ``residuals`` are tuples with a float64 NumPy array for
        every probe. The methods ``density``, ``cdf``, ``cdf_band``, ``moment``, ``quantile``,
        ``mass_below``, ``count``, ``trace_function``, ``variance_reduced`` and ``plot`` need
        no further matvecs.

    Raises
    ------
    ValueError
        ``method`` or ``reorthogonalize`` is unknown, num_steps or num_probes is below 1,
        ``eigenpairs`` has another size, has not converged or belongs to another operator, or
        the checkpoint belongs to another run.
    NotHermitianError
        The vectors of the recurrence contradict A = A^H beyond rounding and noise.
    NonFiniteError
        A matvec contains NaN or infinity.
    OperatorError
        A is not square, is empty, or returns arrays of another shape or library than it
        declares.
    MemoryError
        ``memory`` is insufficient for one probe without a basis; the message states how many
        bytes suffice.

    Cost
    ----
    num_steps * num_probes matvecs, up to 20 more for the interval of "kpm", one for the noise,
    and those of :func:`eigsh` for eigenpairs to be computed. Vectors in memory:
    block_size (num_steps + 6); block_size (num_steps / 4 + 7) with "half" in double precision
    (num_steps / 2 in single); 6 block_size with "none" and for "kpm".

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
    >>> density.nodes[0].round(10)  # the four distinct eigenvalues
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
