r"""Traces of functions of a Hermitian operator: tr f(A), and log-determinants.

For a probe w, m Lanczos steps give the Gauss quadrature of w^H f(A) w = ||w||^2 sum_j
tau_j f(theta_j), exact for polynomials of degree 2m - 1. Two errors remain and are told
apart: the probes' (standard error) and the quadrature's (bias), the latter bounded by what
the second half of the steps still changed.

References
----------
S. Ubaru, J. Chen, Y. Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature, doi:10.1137/16M1104974.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from matfree.algorithms.running.keywords import declares, known
from matfree.algorithms.spectra.quadrature_estimators import QuadratureTrace
from matfree.algorithms.spectra.quadrature_sampling import QuadratureSampling, sample_quadratures
from matfree.algorithms.spectra.spectral_functions import Function, FunctionName
from matfree.results import Estimate


@declares(QuadratureSampling, num_steps=40, reorthogonalize="none")
def trace_function(
    A: Any, f: Function | FunctionName, **options: Unpack[QuadratureSampling]
) -> Estimate:
    r"""Estimate tr f(A) = sum_i f(lambda_i) by stochastic Lanczos quadrature.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    f : function of a float64 array, or {"log", "inverse", "sqrt", "exp"}
        Applied to the Ritz values elementwise. The named ones check their domain: a
        negative Ritz value is refused by name, not turned into NaN. "inverse" takes
        definite operators of either sign; where Ritz values lie on both sides of 0 no
        quadrature has an error bound, and only the exact answer (max_matvecs >= n) is given.
    num_steps : int
        Lanczos steps a probe; 20 to 40 suffice for smooth f and moderate conditioning, and
        ``bias`` of the result says whether they did.
    num_probes : int, optional
        A fixed number of probes; 10 where nothing else is said.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval, bias included, is at most
        atol + rtol |value|.
    max_matvecs : int, optional
        The most products, num_steps a probe. Where it reaches n, n products and a dense
        eigenproblem give the exact answer.
    block_size : int, optional
        Probes run together.
    reorthogonalize : {"none", "full", "half"}
        The bare recurrence gives the same traces in six vectors a probe; lost
        orthogonality acts like a few steps less. "half" keeps the basis in 16-bit numbers;
        what it may move f by is added to ``bias``.
    memory : int, optional
        Bytes that may be taken, per process, beside what the operator needs itself. Where
        ``reorthogonalize`` and ``block_size`` take more, fewer probes run together, then the
        basis is kept in 16 bits, then not at all; ``memory`` of the result tells which.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``bias`` bounds the quadrature error apart from ``stderr``, the probes'.

    Raises
    ------
    ValueError
        f is not finite on a Ritz value, or a named f has one outside its domain.
    NotHermitianError, NonFiniteError, OperatorError
        As for :func:`matfree.spectral_density`.
    MemoryError
        ``memory`` is too little for one probe without a basis.

    Cost
    ----
    num_steps * num_probes matvecs; 6 block_size vectors in memory, or block_size
    (num_steps + 6) with reorthogonalize="full", or (num_steps / 4 + 7) with "half" in double
    precision.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.linspace(1, 2, 2000))
    >>> inverse = mf.trace_function(A, "inverse", seed=0)
    >>> bool(abs(inverse.value / np.sum(1 / np.diag(A)) - 1) < 1e-10)  # signs see it exactly
    True
    """
    return sample_quadratures(
        A, partial(QuadratureTrace, f=f), known(trace_function, options), reorthogonalize="none"
    )


@declares(QuadratureSampling, num_steps=40, reorthogonalize="none")
def logdet(A: Any, **options: Unpack[QuadratureSampling]) -> Estimate:
    r"""Estimate log det A = tr log A of a positive definite operator.

    Takes the options of :func:`trace_function` and raises what it raises; a Ritz value that
    is not positive is refused by name.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = 2 * np.eye(100) - np.eye(100, k=1) - np.eye(100, k=-1)  # det A = 101
    >>> estimate = mf.logdet(A, num_probes=50, num_steps=100, reorthogonalize="full", seed=0)
    >>> low, high = estimate.interval()
    >>> bool(low < np.log(101) < high)
    True
    """
    return trace_function(A, "log", **known(logdet, options))
