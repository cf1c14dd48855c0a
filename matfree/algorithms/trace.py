"""``trace`` and ``diagonal``: one door to every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from matfree.algorithms.hutchinson import HutchinsonDiagonal, HutchinsonTrace
from matfree.algorithms.products import Products
from matfree.algorithms.sampling import Plan, estimate
from matfree.probes import resolve_seed
from matfree.protocol import ProbeKind, Seed
from matfree.results import Estimate

TraceMethod: TypeAlias = Literal["hutchinson"]
DiagonalMethod: TypeAlias = Literal["hutchinson"]


def trace(
    A: Any,
    *,
    method: TraceMethod = "hutchinson",
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    seed: Seed = None,
    kind: ProbeKind = "rademacher",
    progress: bool = False,
    callback: Callable[[Estimate], bool | None] | None = None,
) -> Estimate:
    r"""Estimate the trace of a square operator.

    tr A = E[w^H A w] for probes with E[w w^H] = I.

    Parameters
    ----------
    A : square operator, or anything ``aslinearoperator`` accepts
        Any square operator: it need not be symmetric. A complex one gives a complex value.
    method : {"hutchinson"}
        The plain average over probes: unbiased, O(n) memory.
    num_probes : int, optional
        A fixed number of probes, always honoured; 32 where nothing else is said.
    rtol, atol : float, optional
        Sample until the half-width of the 95 % interval is at most atol + rtol |value|.
    max_matvecs : int, optional
        The most products that may be spent on a tolerance; 1000 by default. Where the
        budget reaches n, the exact answer from n unit vectors takes over from sampling
        in time to be afforded, and ``method`` of the result says "exact".
    block_size : int, optional
        Probes sent at once; it changes speed and memory, not the answer.
    seed : int, None or numpy.random.Generator
        None draws fresh entropy; the result reports the seed used.
    kind : {"rademacher", "gaussian", "sphere", "z4"}
        The probes' distribution. Signs have the least variance for a real operator, "z4"
        for a complex Hermitian one.
    progress : bool
        Show a progress bar with the current value and interval (needs tqdm).
    callback : function, optional
        Called with the Estimate so far after each block; returning True or raising
        StopIteration stops the run and keeps what it has.

    Returns
    -------
    Estimate
        ``value``, ``stderr``, ``interval()`` (Student's t over the probes), ``samples``.

    Raises
    ------
    OperatorError
        A is not square, is empty, or its products are not what it promises.
    NonFiniteError
        A product holds NaN or infinity.
    ValueError
        An argument is out of range, or a number and a tolerance are both given.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met; the best estimate is returned.

    Cost
    ----
    num_probes matvecs; two blocks of vectors kept.

    References
    ----------
    A. Girard (1989), doi:10.1007/BF01395775. M. F. Hutchinson (1990),
    doi:10.1080/03610919008812866.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> G = np.random.default_rng(0).standard_normal((500, 500))
    >>> estimate = mf.trace(G @ G.T, rtol=0.05, seed=1)
    >>> low, high = estimate.interval()
    >>> bool(low < np.sum(G * G) < high), estimate.converged
    (True, True)
    """
    _require_method(method, ("hutchinson",))
    product = Products(A)
    plan = Plan.make(
        product.space.size,
        num_probes=num_probes,
        rtol=rtol,
        atol=atol,
        max_matvecs=max_matvecs,
        block_size=block_size,
        seed=resolve_seed(seed),
        kind=kind,
    )
    return estimate(product, HutchinsonTrace(product, plan), progress=progress, callback=callback)


def diagonal(
    A: Any,
    *,
    method: DiagonalMethod = "hutchinson",
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    seed: Seed = None,
    kind: ProbeKind = "rademacher",
    progress: bool = False,
    callback: Callable[[Estimate], bool | None] | None = None,
) -> Estimate:
    r"""Estimate the diagonal of a square operator.

    diag A = E[conj(w) * (A w)] for probes with independent entries of modulus 1. One entry
    has variance ||a_i||^2 - |a_ii|^2 per probe (a_i its row): the relative error stays near
    1 until the number of probes reaches the ratio of off-diagonal to diagonal mass.

    Parameters
    ----------
    A, method, num_probes, max_matvecs, block_size, seed, progress, callback
        As for :func:`trace`.
    rtol, atol : float, optional
        Sample until the 2-norm of the half-widths of all entries' 95 % intervals is at most
        atol + rtol ||diagonal||_2.
    kind : {"rademacher", "z4"}
        Probes with entries of modulus 1.

    Returns
    -------
    Estimate
        ``value`` and ``stderr`` are (n,) arrays of the operator's library and device.

    Raises
    ------
    OperatorError, NonFiniteError, ValueError
        As for :func:`trace`.

    Cost
    ----
    num_probes matvecs; three blocks and three vectors kept.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.arange(1.0, 101.0)) + 0.01
    >>> estimate = mf.diagonal(A, num_probes=64, seed=0)
    >>> bool(np.all(np.abs(estimate.value - np.diag(A)) < 6 * estimate.stderr))
    True
    """
    _require_method(method, ("hutchinson",))
    if kind not in ("rademacher", "z4"):
        raise ValueError(
            f'kind must be "rademacher" or "z4" for a diagonal, whose probes need entries of '
            f"modulus 1: got {kind!r}."
        )
    product = Products(A)
    plan = Plan.make(
        product.space.size,
        num_probes=num_probes,
        rtol=rtol,
        atol=atol,
        max_matvecs=max_matvecs,
        block_size=block_size,
        seed=resolve_seed(seed),
        kind=kind,
    )
    return estimate(
        product, HutchinsonDiagonal(product, plan), progress=progress, callback=callback
    )


def _require_method(method: str, known: tuple[str, ...]) -> None:
    if method not in known:
        raise ValueError(f"method must be one of {', '.join(map(repr, known))}: got {method!r}.")
