"""The public function ``diagonal``, which selects the estimator."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator
from matfree.algorithms.running.keywords import Sampling, declares, known
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.sampling_loop import sample
from matfree.algorithms.traces.diagpp import DeflatedDiagonal, DiagPlusPlus
from matfree.algorithms.traces.hutchinson import HutchinsonDiagonal
from matfree.algorithms.traces.weighted_diagonal import NormalisedDiagonal
from matfree.algorithms.traces.xdiag import XDiag, XNysDiag
from matfree.results import EigenResult, Estimate

DiagonalMethod: TypeAlias = Literal["hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"]

_DIAGONAL_METHODS: dict[str, type[Estimator]] = {
    "hutchinson": HutchinsonDiagonal,
    "diag++": DiagPlusPlus,
    "xdiag": XDiag,
    "xnysdiag": XNysDiag,
    "deflated": DeflatedDiagonal,
}

_UNIT_MODULUS = ("rademacher", "z4")


class DiagonalKeywords(Sampling[Estimate], total=False):
    """Keywords of :func:`diagonal`."""

    method: DiagonalMethod
    eigenpairs: EigenResult | int


_REMEDY_OF_DIAGONAL = 'use method="hutchinson", which needs no symmetry'


@equivariant()
@declares(Sampling)
def diagonal(
    A: Any,
    *,
    method: DiagonalMethod = "hutchinson",
    eigenpairs: EigenResult | int = 10,
    **options: Unpack[Sampling[Estimate]],
) -> Estimate:
    r"""Estimate the diagonal of a square operator.

    .. math:: \operatorname{diag} A = E[\bar w * (A w)]
        \quad\text{for independent entries } w_i \text{ with } |w_i| = 1.

    With row i of A denoted by a_i, the variance of entry i is ||a_i||^2 - |a_ii|^2 per probe.
    Hence the relative error of an entry stays near 1 until the number of probes reaches the
    ratio of its off-diagonal to its diagonal mass.

    Parameters
    ----------
    A : (n, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex. Hermitian for every method but "hutchinson", and positive
        semidefinite for "xnysdiag".
    method : {"hutchinson", "diag++", "xdiag", "xnysdiag", "deflated"}
        "hutchinson" is as accurate as any if the off-diagonal mass belongs to many
        eigenvalues. If it belongs to a few, "xdiag" (two matvecs per probe) and "xnysdiag"
        (one) are far more accurate. "deflated" is for eigenpairs that are needed anyway.
    num_probes, max_matvecs, block_size, seed, eigenpairs, first_probe
        As for :func:`matfree.trace`; "diag++" divides its probes like "hutch++", and "xdiag"
        takes two matvecs per probe.
    progress, callback, checkpoint
        As for :func:`matfree.trace`.
    rtol, atol : float, optional
        Sample until the 2-norm of the half-widths of the 95 % intervals of all entries is at
        most atol + rtol ||value||_2.
    kind : {"rademacher", "z4", "gaussian", "sphere"}
        The distribution of the probes. With the last two, whose entries do not have modulus
        1, "hutchinson" divides each entry by the sum of the squares, so that a diagonal
        matrix stays exact; such runs cannot be merged. The other methods need modulus 1,
        which also has the least variance if there are few probes.

    Returns
    -------
    Estimate
        ``value`` and ``stderr`` are arrays (n,) of the library and device of the operator, or
        the local rows if vectors are sharded; ``value`` of its dtype, ``stderr`` real.

    Raises
    ------
    NotHermitianError
        The method needs a Hermitian operator, and A is not Hermitian.
    OperatorError
        As for :func:`matfree.trace`; or the method is "xnysdiag" and A is not positive
        semidefinite.
    NonFiniteError, ValueError
        As for :func:`matfree.trace`.
    TypeError
        There is no such keyword.

    Warns
    -----
    ConvergenceWarning
        The budget was exhausted before the tolerance was met. The estimate is returned.

    Cost
    ----
    Matvecs and vectors in memory, with b = block_size:

    * "hutchinson": num_probes; 4 b + 3, or up to 8 b + 8 with "gaussian" and "sphere".
    * "diag++": 1.5 num_probes; num_probes / 2 + 6 b.
    * "xdiag": 2 num_probes; 2 num_probes + 7 b.
    * "xnysdiag": num_probes; num_probes + 8 b.
    * "deflated": num_probes, and those of :func:`eigsh`, whose memory is the larger. With k
      given eigenpairs, one matvec more, or one per pair if A has changed since; k + 6 b in
      addition to the pairs.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), doi:10.1016/j.apnum.2007.01.003. Diag++: R. A.
    Baston, Y. Nakatsukasa (2022), arXiv:2201.10684. XDiag and XNysDiag: E. N. Epperly,
    J. A. Tropp, R. J. Webber (2024), doi:10.1137/23M1548323.

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
    return sample(
        CountedOperator(A, remedy=_REMEDY_OF_DIAGONAL),
        estimator_type,
        options,
        eigenpairs=eigenpairs,
    )


def _estimator_type(method: str, kind: str) -> type[Estimator]:
    """The estimator of a method for probes of a distribution.

    Raises
    ------
    ValueError
        One of them is unknown, or the method needs another distribution.
    """
    if method not in _DIAGONAL_METHODS:
        methods = ", ".join(map(repr, _DIAGONAL_METHODS))
        raise ValueError(f"method must be one of {methods}: got {method!r}.")
    if kind in _UNIT_MODULUS:
        return _DIAGONAL_METHODS[method]
    if kind not in ("gaussian", "sphere"):
        raise ValueError(
            f'kind must be "rademacher", "z4", "gaussian" or "sphere" for a diagonal: got {kind!r}.'
        )
    if method != "hutchinson":
        raise ValueError(
            f'kind must be "rademacher" or "z4" for the diagonal by {method!r}, whose probes need '
            f'entries of modulus 1: got {kind!r}; only "hutchinson" normalizes other entries.'
        )
    return NormalisedDiagonal
