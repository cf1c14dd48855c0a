r"""Traces of functions of a Hermitian operator: tr f(A), log-determinants, norms, counts.

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

from dataclasses import replace
from typing import Any

import numpy as np

from matfree.algorithms.checkpoint import PathLike, resumed_seed
from matfree.algorithms.plan import Plan, require_whole
from matfree.algorithms.products import Products
from matfree.algorithms.quadrature import Function, FunctionName, QuadratureTrace, SquaredNorm
from matfree.algorithms.recurrence import Reorthogonalize
from matfree.algorithms.sampling import Callback, estimate
from matfree.operators import aslinearoperator
from matfree.probes import resolve_seed
from matfree.protocol import ProbeKind, Seed
from matfree.results import Estimate

_DEFAULT_PROBES = 10


def trace_function(
    A: Any,
    f: Function | FunctionName,
    *,
    num_steps: int = 40,
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    reorthogonalize: Reorthogonalize = "none",
    seed: Seed = None,
    kind: ProbeKind = "rademacher",
    first_probe: int = 0,
    progress: bool = False,
    callback: Callback | None = None,
    checkpoint: PathLike | None = None,
) -> Estimate:
    r"""Estimate tr f(A) = sum_i f(lambda_i) by stochastic Lanczos quadrature.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    f : function of a float64 array, or {"log", "inverse", "sqrt", "exp"}
        Applied to the Ritz values elementwise. The named ones check their domain: a
        negative Ritz value is refused by name, not turned into NaN.
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
    reorthogonalize : {"none", "full"}
        The bare recurrence gives the same traces in six vectors a probe; lost
        orthogonality acts like a few steps less.
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

    Cost
    ----
    num_steps * num_probes matvecs; 6 block_size vectors in memory, or block_size
    (num_steps + 6) with reorthogonalize="full".

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.linspace(1, 2, 2000))
    >>> inverse = mf.trace_function(A, "inverse", seed=0)
    >>> bool(abs(inverse.value / np.sum(1 / np.diag(A)) - 1) < 1e-10)  # signs see it exactly
    True
    """
    require_whole("num_steps", num_steps)
    product = Products(A)
    if num_probes is None and rtol is None and atol is None and max_matvecs is None:
        num_probes = _DEFAULT_PROBES
    plan = Plan.make(
        product.space.size,
        num_probes=num_probes,
        rtol=rtol,
        atol=atol,
        max_matvecs=max_matvecs,
        block_size=block_size,
        seed=resumed_seed(checkpoint, seed),
        kind=kind,
        first_probe=first_probe,
    )
    estimator = QuadratureTrace(product, plan, f, num_steps, reorthogonalize)
    return estimate(product, estimator, progress=progress, callback=callback, checkpoint=checkpoint)


def logdet(A: Any, **options: Any) -> Estimate:
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
    return trace_function(A, "log", **options)


def frobenius_norm(
    A: Any,
    *,
    num_probes: int = 32,
    block_size: int | None = None,
    seed: Seed = None,
) -> Estimate:
    r"""Estimate ||A||_F = sqrt(E ||A w||^2) of any operator, rectangular ones included.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
    num_probes : int
    block_size, seed
        As for :func:`matfree.trace`.

    Returns
    -------
    Estimate
        The standard error is carried through the square root to first order.

    Cost
    ----
    num_probes matvecs; 2 block_size + 1 vectors in memory.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.frobenius_norm(np.diag([3.0, 4.0]), num_probes=2, seed=0)
    >>> estimate.value  # signs see a diagonal matrix exactly
    5.0
    """
    product = Products(A, square=False)
    plan = Plan.make(
        product.space.size,
        num_probes=num_probes,
        rtol=None,
        atol=None,
        max_matvecs=None,
        block_size=block_size,
        seed=resolve_seed(seed),
        kind="rademacher",
    )
    squared = estimate(product, SquaredNorm(product, plan), progress=False, callback=None)
    return power_of(squared, 0.5, "frobenius norm")


def schatten_norm(A: Any, p: float, **options: Any) -> Estimate:
    r"""Estimate the Schatten norm (sum_i sigma_i^p)^(1/p) of singular values.

    p = 1 is the nuclear norm, p = 2 the Frobenius norm. A square operator must be Hermitian
    (sigma_i = |lambda_i|); a rectangular one needs its adjoint, and goes through A^H A at
    two products a step.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
    p : float
        Positive.
    **options
        As for :func:`trace_function`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.schatten_norm(np.diag([3.0, -4.0]), 1, num_probes=2, seed=0)
    >>> round(estimate.value, 12)
    7.0
    """
    if not p > 0:
        raise ValueError(f"p must be positive: got {p}.")
    operator = aslinearoperator(A)
    rectangular = operator.shape[0] != operator.shape[1]
    hermitian, power = (operator.H @ operator, p / 2) if rectangular else (operator, p)
    sums = trace_function(hermitian, lambda x: np.abs(x) ** power, **options)
    return power_of(sums, 1 / p, f"Schatten {p:g}-norm")


def power_of(estimate: Estimate, exponent: float, method: str) -> Estimate:
    """estimate^exponent, with its error carried along to first order."""
    value = max(float(estimate.value), 0.0)
    root = value**exponent
    slope = exponent * root / value if value > 0 else 0.0
    return replace(
        estimate,
        value=root,
        stderr=slope * estimate.stderr if value > 0 else estimate.stderr**exponent,
        bias=slope * estimate.bias,
        method=method,
        samples=None,
        mergeable=False,
        history=(),
    )
