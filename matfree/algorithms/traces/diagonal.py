"""``diagonal``: one door to every method of estimating it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.traces.diagpp import DeflatedDiagonal, DiagPlusPlus
from matfree.algorithms.traces.hutchinson import HutchinsonDiagonal
from matfree.algorithms.traces.weighted_diagonal import NormalisedDiagonal
from matfree.algorithms.traces.xdiag import XDiag, XNysDiag
from matfree.results import EigenResult, Estimate

DiagonalMethod: TypeAlias = Literal["hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"]

_METHODS: dict[str, type[Estimator]] = {
    "hutchinson": HutchinsonDiagonal,
    "diag++": DiagPlusPlus,
    "xdiag": XDiag,
    "xnysdiag": XNysDiag,
    "deflated": DeflatedDiagonal,
}

_MODULUS_ONE = ("rademacher", "z4")


class DiagonalKeywords(Sampling[Estimate], total=False):
    """Keywords of :func:`diagonal`."""

    method: DiagonalMethod
    eigenpairs: EigenResult | int


@declares(Sampling)
def diagonal(
    A: Any,
    *,
    method: DiagonalMethod = "hutchinson",
    eigenpairs: EigenResult | int = 10,
    **options: Unpack[Sampling[Estimate]],
) -> Estimate:
    r"""Estimate the diagonal of a square operator.

    diag A = E[conj(w) * (A w)] for probes with independent entries of modulus 1. One entry
    has variance ||a_i||^2 - |a_ii|^2 per probe (a_i its row): the relative error stays near
    1 until the number of probes reaches the ratio of off-diagonal to diagonal mass.

    Parameters
    ----------
    A : square operator, or anything ``aslinearoperator`` accepts
        Hermitian for every method but "hutchinson"; positive semidefinite for "xnysdiag".
    method : {"hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"}
        "hutchinson" is as good as any where the off-diagonal mass is spread out. Where few
        eigenvalues carry it, "xdiag" (two products a probe) and "xnysdiag" (one) are far
        better; "deflated" uses eigenpairs that are wanted anyway.
    num_probes, max_matvecs, block_size, seed, eigenpairs, first_probe
        As for :func:`trace`.
    progress, callback, checkpoint
        As for :func:`trace`.
    rtol, atol : float, optional
        Sample until the 2-norm of the half-widths of all entries' 95 % intervals is at most
        atol + rtol ||diagonal||_2.
    kind : {"rademacher", "z4", "gaussian", "sphere"}
        "hutchinson" divides by the squares of entries whose modulus is not 1, entry by
        entry, which keeps a diagonal matrix exact; such runs cannot be merged. The other
        methods need modulus 1, and so does the least variance of a few probes.

    Returns
    -------
    Estimate
        ``value`` and ``stderr`` are (n,) arrays of the operator's library and device.

    Raises
    ------
    NotHermitianError
        A method for Hermitian operators met one that is not.
    OperatorError, NonFiniteError, ValueError
        As for :func:`trace`.

    Cost
    ----
    Matvecs and vectors in memory, with b = block_size. "hutchinson": num_probes, 4 b + 3 (with
    "gaussian" and "sphere" up to 8 b + 8).
    "diag++": 1.5 num_probes, num_probes / 2 + 6 b. "xdiag": 2 num_probes, 2 num_probes + 7 b.
    "xnysdiag": num_probes, num_probes + 8 b. "deflated": num_probes and what :func:`eigsh`
    makes, which also sets the memory; beside given eigenpairs, as many vectors again and 6 b.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), doi:10.1016/j.apnum.2007.01.003.
    The other methods name theirs in their modules.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.arange(1.0, 101.0)) + 0.01
    >>> estimate = mf.diagonal(A, num_probes=64, seed=0)
    >>> bool(np.all(np.abs(estimate.value - np.diag(A)) < 6 * estimate.stderr))
    True
    """
    estimator_type = _estimator_type(method, options.get("kind") or "rademacher")
    options = known(diagonal, options)
    return sample(CountedOperator(A), estimator_type, options, eigenpairs=eigenpairs)


def _estimator_type(method: str, kind: str) -> type[Estimator]:
    """The estimator of a method with these probes, or what is wrong with the two."""
    if method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise ValueError(f"method must be one of {known}: got {method!r}.")
    if kind in _MODULUS_ONE:
        return _METHODS[method]
    if kind not in ("gaussian", "sphere"):
        raise ValueError(
            f'kind must be "rademacher", "z4", "gaussian" or "sphere" for a diagonal: got {kind!r}.'
        )
    if method != "hutchinson":
        raise ValueError(
            f'kind must be "rademacher" or "z4" for the diagonal by {method!r}, whose probes need '
            f'entries of modulus 1: got {kind!r}; only "hutchinson" normalises others.'
        )
    return NormalisedDiagonal
