r"""Traces of functions of a Hermitian operator: tr f(A), and log-determinants.

For a probe w, m Lanczos steps give nodes theta_j and weights tau_j of a Gauss quadrature,

.. math:: w^H f(A) w \approx \|w\|^2 \sum_{j=1}^m \tau_j f(\theta_j),

which is exact for polynomials of degree 2m - 1. Two errors are reported separately: the sampling
error (``stderr``) and the quadrature error (``bias``). The latter is bounded by the difference from
a Gauss-Radau rule for functions whose derivatives have constant signs, and by related bounds for
others (``matfree.quadratures``); where no bound is known, it is infinite.

References
----------
S. Ubaru, J. Chen, Y. Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature, doi:10.1137/16M1104974. G. H. Golub, G. Meurant (2010), Matrices, Moments and
Quadrature with Applications, doi:10.1515/9781400833887.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from matfree.algorithms.running.keywords import declares, known
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.spectra.krylov_trace import TraceFunctionMethod, estimator_of
from matfree.algorithms.spectra.quadrature_sampling import FunctionSampling, sample_quadratures
from matfree.algorithms.spectra.spectral_functions import Function, FunctionName, ScaledArgument
from matfree.results import Estimate


@equivariant("spectrum", degree=0, compose=ScaledArgument)
@declares(FunctionSampling, reorthogonalize="none", eigenpairs=0)
def trace_function(
    A: Any,
    f: Function | FunctionName,
    *,
    method: TraceFunctionMethod = "slq",
    **options: Unpack[FunctionSampling],
) -> Estimate:
    r"""Estimate the trace of a matrix function by stochastic Lanczos quadrature.

    .. math:: \operatorname{tr} f(A) = \sum_i f(\lambda_i) = E[w^H f(A) w]
        \quad\text{for random } w \text{ with } E[w w^H] = I.

    Parameters
    ----------
    A : (n, n) Hermitian operator, or anything ``aslinearoperator`` accepts
        Real symmetric or complex Hermitian.
    f : function of a float64 array, or {"log", "inverse", "sqrt", "inverse sqrt", "exp"}
        It maps an array of Ritz values to an array of the same shape, float64 or complex128
        (a resolvent 1 / (x - z), for example). The named functions check their domain and
        raise a ValueError outside it. "inverse" takes definite operators of either sign; if
        there are Ritz values on both sides of 0, the error of a quadrature has no bound, and
        only the exact answer (max_matvecs >= n) is available.
    method : {"slq", "krylov", "auto"}
        "slq": stochastic Lanczos quadrature, in which all probes are random. "krylov": half of the
        budget is used for a Krylov space, in which the trace is computed without sampling, and the
        probes are projected onto its complement. The error is smaller by orders of magnitude if
        few eigenvalues dominate f (each with at most two copies), and up to 1.4 times larger if
        none do. "auto" decides that after a tenth of the budget. The space is stored: up to
        max_matvecs / 2 vectors, at most 1 GiB or half of ``memory``. Such estimates
        cannot be merged, and take no ``eigenpairs``.
    num_steps : int, optional
        Lanczos steps per probe. The default is 40; with a tolerance and without
        reorthogonalization, it is the number from 40 on with which the bias of the first probes
        is at most a quarter of the tolerance, as far as the budget permits.
    spectrum : (float or None, float or None), optional
        Bounds (a, b) of all eigenvalues, None for an unknown one: a = sigma^2 for a kernel
        matrix plus sigma^2 I, for example. They make ``bias`` smaller, by factors of 10 to 100
        for ill-conditioned operators. Without them, the ends of the spectrum are determined from
        the probes.
    num_probes : int, optional
        A fixed number of probes. The default is 10 if neither a tolerance nor a budget is
        given.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval, bias included, is at most
        atol + rtol |value|.
    max_matvecs : int, optional
        The largest number of matvecs, num_steps per probe. If it is at least n, n matvecs and
        a dense eigenproblem give the exact answer.
    block_size : int, optional
        The number of probes whose recurrences run together.
    reorthogonalize : {"none", "full", "half"}
        Without reorthogonalization, the recurrence gives the same traces with six vectors per
        probe; the loss of orthogonality only delays convergence by a few steps. "half" stores
        the basis in 16-bit numbers, and adds the resulting error of f to ``bias``.
    memory : int, optional
        Bytes per process that the run may use, in addition to the memory of the operator. If
        ``block_size`` and ``reorthogonalize`` need more, first the block size is reduced, then
        "half" and finally "none" are used. ``memory`` of the result reports the choice.
    eigenpairs : EigenResult or int
        Known eigenpairs, or how many of the largest in magnitude to compute first, for at most
        half of the budget if there is one. Their part of the trace is exact, and only their
        orthogonal complement is sampled: the sampling error is far smaller if a few eigenvalues
        carry the trace, as those of tr exp(A) do. The effect of their residuals is part of
        ``bias``; pairs of another operator are refused.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        ``value``, ``stderr`` and ``bias`` are floats (for a complex f, ``value`` is complex,
        and ``real`` and ``imag`` have an interval each), and ``samples`` is a NumPy array
        (num_probes,). ``stderr`` is the sampling error, and ``bias`` a bound on the
        quadrature error, which is added to the interval. If no bound is known (the inverse of
        an operator whose eigenvalues may be arbitrarily close to 0, for example), ``bias`` is
        infinite, and ``converged`` is False. For log, inverse, sqrt, exp and resolvents the bound
        is rigorous, except that without ``spectrum`` an eigenvalue lies beyond the ends implied
        by the probes with a probability of 1e-3. For other functions it is the smaller of
        a bound for functions of bounded variation and an estimate from the convergence of the
        quadrature; see ``matfree.quadratures.variation``.

    Raises
    ------
    ValueError
        f is not finite at a Ritz value, or does not return one number per Ritz value; a Ritz
        value is outside the domain of a named function, or outside ``spectrum``; or an argument
        is out of range.
    TypeError
        There is no such keyword, or f raises a TypeError for an array.
    NotHermitianError, NonFiniteError, OperatorError
        As for :func:`matfree.spectral_density`.
    MemoryError
        ``memory`` is insufficient for one probe without a basis.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met, or the quadrature error is
        unknown. The estimate is returned.

    Cost
    ----
    num_steps * num_probes matvecs, and those for eigenpairs. Vectors in memory, in addition to
    the eigenvectors: 6 block_size;
    block_size (num_steps + 6) with reorthogonalize="full"; block_size (num_steps / 4 + 7) with
    "half" in double precision. The exact answer needs six n x n matrices.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad (2017), doi:10.1137/16M1104974. For the Krylov space: T. Chen, E.
    Hallman (2023), Krylov-aware stochastic trace estimation, doi:10.1137/22M1494257. For the bias:
    G. H. Golub, G. Meurant (2010), doi:10.1515/9781400833887; T. Chen, T. Trogdon, S. Ubaru (2021),
    arXiv:2105.06595.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.linspace(1, 2, 2000))
    >>> inverse = mf.trace_function(A, "inverse", seed=0)
    >>> exact = np.sum(1 / np.diag(A))  # random signs have no variance for a diagonal matrix
    >>> bool(abs(inverse.value / exact - 1) < 1e-10)
    True

    Few eigenvalues dominate the exponential, and their part has no sampling error:

    >>> B = np.diag(np.r_[np.linspace(20, 30, 20), np.linspace(0, 5, 980)]) + 0.001
    >>> found = mf.trace_function(B, "exp", method="krylov", max_matvecs=400, num_steps=25, seed=0)
    >>> bool(abs(found.value / np.exp(np.linalg.eigvalsh(B)).sum() - 1) < 1e-8)
    True
    """
    options = known(trace_function, options)
    make = partial(
        estimator_of(method),
        f=f,
        spectrum=options.get("spectrum"),
        grows=options.get("num_steps") is None,
    )
    return sample_quadratures(A, make, options, reorthogonalize="none")


@declares(FunctionSampling, reorthogonalize="none", eigenpairs=0)
def logdet(A: Any, **options: Unpack[FunctionSampling]) -> Estimate:
    r"""Estimate the log-determinant of a positive definite operator.

    .. math:: \log \det A = \operatorname{tr} \log A

    Parameters
    ----------
    A : (n, n) Hermitian positive definite operator, or anything ``aslinearoperator`` accepts
    num_steps, spectrum, num_probes, rtol, atol, max_matvecs, block_size, reorthogonalize
        As for :func:`matfree.trace_function`.
    memory, eigenpairs
        As for :func:`matfree.trace_function`. The relative tolerance refers to |log det A|.
    seed, kind, first_probe, progress, callback, checkpoint
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        As for :func:`matfree.trace_function`.

    Raises
    ------
    ValueError
        A Ritz value is not positive up to rounding, or outside ``spectrum``; or an argument is
        out of range.
    TypeError, NotHermitianError, NonFiniteError, OperatorError, MemoryError
        As for :func:`matfree.trace_function`.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    As for :func:`matfree.trace_function`. The number of steps grows with the square root of the
    condition number.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad (2017), doi:10.1137/16M1104974.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = 2 * np.eye(100) - np.eye(100, k=1) - np.eye(100, k=-1)  # det A = 101
    >>> estimate = mf.logdet(A, num_probes=50, num_steps=100, reorthogonalize="full", seed=0)
    >>> low, high = estimate.interval()
    >>> bool(low < np.log(101) < high)
    True

    A lower bound of the spectrum that is known makes the quadrature bias smaller:

    >>> x = np.linspace(0, 1, 400)
    >>> K = np.exp(-((x[:, None] - x) ** 2) / 0.02) + 1e-6 * np.eye(400)
    >>> unaided = mf.logdet(K, num_steps=20, seed=0)
    >>> aided = mf.logdet(K, num_steps=20, spectrum=(1e-6, None), seed=0)
    >>> bool(aided.bias < unaided.bias / 5)
    True
    """
    return trace_function(A, "log", **known(logdet, options))
