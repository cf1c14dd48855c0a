r"""Eigenpairs of a Hermitian operator: thick-restart block Lanczos, and a search for misses.

A small residual proves that an eigenvalue is near; it does not prove that none was
missed. A Krylov space from b start vectors sees at most b copies of a multiple
eigenvalue, and every residual is small all the same. So when all pairs have converged, a
fresh random block searches their orthogonal complement, and whatever it finds that
belongs among the wanted is put there, until it finds nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from matfree import probes
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.restarting import KrylovDecomposition, Which, order
from matfree.algorithms.sampling import asked_to_stop
from matfree.arrays import epsilon, to_host
from matfree.errors import ConvergenceWarning, Interrupted
from matfree.protocol import Array, Seed
from matfree.results import EigenResult

_RESOLUTION = 1e4
"""How much larger than the rest a missed eigenvalue's part in a random start vector must
have grown before its absence is believed: 1e4 n / overlap in squared length."""


class EigenStep(NamedTuple):
    """What a callback sees after each block product."""

    num_matvecs: int
    values: HostArray
    """The wanted Ritz values so far."""
    residuals: HostArray
    """Their residuals relative to ||A||."""


def eigsh(
    A: Any,
    k: int = 6,
    *,
    which: Which = "LM",
    rtol: float | None = None,
    block_size: int = 2,
    num_vectors: int | None = None,
    max_matvecs: int | None = None,
    verify: bool = True,
    start: Array | EigenResult | None = None,
    seed: Seed = None,
    callback: Callable[[EigenStep], bool | None] | None = None,
) -> EigenResult:
    r"""k eigenpairs of a Hermitian operator by thick-restart block Lanczos.

    A u_i = theta_i u_i with ||A u_i - theta_i u_i|| <= rtol ||A||, orthonormal u_i, and a
    search for eigenvalues that the residuals cannot know of.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    k : int
        In [1, n].
    which : {"LM", "LA", "SA", "BE"}
        Largest in magnitude; largest; smallest (most negative); both ends, the odd one
        from the top. Results come best first, for "BE" in descending order.
    rtol : float, optional
        Bound on the residual relative to ||A||, itself estimated by the largest Ritz value;
        by default 1e-6, or 100 eps where that is more.
    block_size : int
        Vectors multiplied at once. A block sees that many copies of an eigenvalue at a time.
    num_vectors : int, optional
        Lanczos vectors kept before a restart; max(20, 4 k + 8), within n, by default.
    max_matvecs : int, optional
        The most products; max(1000, 100 k) by default.
    verify : bool
        Search the complement until nothing better is found, and recompute the residuals
        from fresh products; the result's ``verified`` says whether it got to the end.
    start : (n, b) array or EigenResult, optional
        Start vectors, b replacing ``block_size``: the eigenvectors of a nearby operator
        (the last checkpoint's) save most of the work.
    seed : int, None or numpy.random.Generator
        Of the start block, of replaced directions and of the search.
    callback : function, optional
        Called with an ``EigenStep`` after each block product; returning True or raising
        StopIteration stops the run and keeps what it has.

    Returns
    -------
    EigenResult

    Raises
    ------
    ValueError
        k not in [1, n], an unknown ``which``, or an argument out of range.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        A pair did not reach rtol within the budget.

    Cost
    ----
    As many matvecs as it takes, k more to recompute residuals, and the search, all counted
    in ``num_matvecs``. Memory: num_vectors + k + 6 block_size vectors, whatever the number
    of restarts.

    References
    ----------
    K. Wu, H. Simon (2000), doi:10.1137/S0895479898334605. Bound behind the search: J.
    Kuczynski, H. Wozniakowski (1992), doi:10.1137/0613066.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.full(3, 8.0), np.linspace(-4, 5, 97)])
    >>> mf.eigsh(A, 4, seed=0).values.round(9)  # 8 three times: none is missed
    array([8., 8., 8., 5.])
    """
    product = Products(A)
    n = product.space.size
    if not 1 <= k <= n:
        raise ValueError(f"k must be in [1, n]: got {k} for an operator of size {n}.")
    if which not in ("LM", "LA", "SA", "BE"):
        raise ValueError(
            f'which must be "LM", "LA", "SA" or "BE": got {which!r}; for eigenvalues inside the '
            "spectrum (the smallest in magnitude, say), pass the operator of the inverse."
        )
    eps = epsilon(product.space.xp, product.space.dtype)
    search = _Search(
        product,
        k=k,
        which=which,
        rtol=max(1e-6, 100 * eps) if rtol is None else rtol,
        capacity=min(n, num_vectors or max(20, 4 * k + 8)),
        budget=max_matvecs or max(1000, 100 * k),
        seed=probes.resolve_seed(seed),
        callback=callback,
    )
    V = _start_block(product, start, min(block_size, n), search.seed)
    try:
        search.run(V)
        if verify and search.converged.all():
            search.verify(V.shape[1])
    except KeyboardInterrupt as stop:
        if not len(search.values):
            raise
        raise Interrupted(search.result("interrupted", recompute=False)) from stop
    result = search.result(search.reason, recompute=verify)
    if not result.converged.all():
        _warn(result, search)
    return result


@final
class _Search:
    """The wanted pairs found so far, and the ways to find better ones."""

    def __init__(
        self,
        product: Products,
        *,
        k: int,
        which: Which,
        rtol: float,
        capacity: int,
        budget: int,
        seed: int,
        callback: Callable[[EigenStep], bool | None] | None,
    ) -> None:
        if not rtol > 0:
            raise ValueError(f"rtol must be positive: got {rtol}; it is relative to ||A||.")
        if capacity < min(k + 2, product.space.size):
            raise ValueError(f"num_vectors must be at least k + 2: got {capacity} for k = {k}.")
        self.product, self.space = product, product.space
        self.k, self.which, self.rtol = k, which, rtol
        self.capacity, self.budget, self.seed = capacity, budget, seed
        self.callback = callback
        self.values: HostArray = np.zeros(0)
        self.residuals: HostArray = np.zeros(0)
        self.vectors: Array = self.space.zeros(0)
        self.norm = 0.0
        self.num_steps = self.num_searches = 0
        self.verified = False
        self.reason = "the budget of products ended first"
        self.history: list[tuple[int, float, float]] = []

    @property
    def converged(self) -> HostArray:
        return self.residuals <= self.rtol * self.norm

    def run(self, start: Array) -> None:
        """Find k pairs from a start block."""
        krylov = KrylovDecomposition(
            self.product, start, self._capacity(start.shape[1]), seed=self.seed
        )
        while True:
            krylov.expand()
            values, Y, residuals = krylov.ritz()
            best = order(values, self.which, self.k)
            self.norm = max(self.norm, krylov.norm, float(np.abs(values).max()))
            self.values, self.residuals = values[best], residuals[best]
            enough = len(best) == self.k and bool(self.converged.all())
            if enough or self._must_stop(krylov) or self._stopped_by_callback():
                break
            _restart_if_full(krylov, values, Y, self.which, self.k)
        self.vectors = krylov.vectors(Y[:, best])
        self.num_steps += krylov.num_steps
        if enough:
            self.reason = "every residual is within rtol"

    def verify(self, block_size: int) -> None:
        """Search the complement of what was found until nothing better turns up."""
        ends: list[tuple[Which, int | None]] = [(self.which, None)]
        if self.which == "BE":
            ends = [("LA", 0), ("SA", 1)]
        for end, offset in ends:
            while True:
                found = self._search_complement(block_size, end, offset)
                if found is None:
                    self.reason = "every residual is within rtol; the search was cut short"
                    return
                if not found:
                    break
        self.verified = True
        self.reason = "every residual is within rtol, and nothing better was found"

    def _search_complement(self, block_size: int, end: Which, offset: int | None) -> bool | None:
        """Whether the complement held something better (now inserted); None: out of budget."""
        mine = self.values if offset is None else self.values[offset::2]
        if len(mine) == 0 or len(self.values) == self.space.size:
            return False
        worst = float(mine[-1])
        self.num_searches += 1
        block = self.space.probes(
            min(block_size, self.space.size - len(self.values)),
            seed=self.seed,
            start=1000 * self.num_searches,
            kind="gaussian",
            stream=probes.START,
        )
        krylov = KrylovDecomposition(
            self.product,
            block,
            self._capacity(block.shape[1]),
            seed=self.seed + self.num_searches,
            locked=self.vectors,
        )
        margin = self.rtol * self.norm
        while True:
            krylov.expand()
            values, Y, residuals = krylov.ritz()
            best = order(values, end, min(block.shape[1], len(values)))
            gains = _lead(values[best], worst, end)
            if gains[0] > margin:  # something was missed: converge what beats the worst
                better = best[gains > margin]
                if np.all(residuals[better] <= margin) or krylov.exhausted:
                    self._insert(values[better], residuals[better], krylov.vectors(Y[:, better]))
                    self.num_steps += krylov.num_steps
                    return True
            elif (
                krylov.exhausted
                or _absent(krylov, values, worst, end)
                or (residuals[best[0]] <= margin)
            ):
                self.num_steps += krylov.num_steps
                return False
            if self._must_stop(krylov):
                return None
            _restart_if_full(krylov, values, Y, end, len(best))

    def _insert(self, values: HostArray, residuals: HostArray, vectors: Array) -> None:
        """Take the new pairs among the wanted, in their place, and drop the worst."""
        values = np.concatenate((self.values, values))
        keep = order(values, self.which, self.k)
        select = np.eye(len(values))[:, keep]
        everything = self.space.xp.concat((self.vectors, vectors), axis=1)
        self.vectors = everything @ self.space.asarray(select)
        self.residuals = np.concatenate((self.residuals, residuals))[keep]
        self.values = values[keep]

    def result(self, reason: str, *, recompute: bool) -> EigenResult:
        """The pairs in order, with residuals from fresh products where asked."""
        ranks = np.argsort(-self.values) if self.which == "BE" else np.arange(len(self.values))
        values, residuals = self.values[ranks], self.residuals[ranks]
        U = self.vectors @ self.space.asarray(np.eye(len(ranks))[:, ranks])
        if recompute:
            R = self.product(U) - U * self.space.asarray(values)[None, :]
            residuals = to_host(self.space.norms(R))
            self.product.require_finite(residuals)
        relative = residuals / self.norm if self.norm > 0 else residuals
        return EigenResult(
            values=values,
            vectors=U,
            residuals=relative,
            converged=relative <= self.rtol,
            norm=self.norm,
            which=self.which,
            method="thick-restart block Lanczos",
            num_matvecs=self.product.num_matvecs,
            num_steps=self.num_steps,
            reason=reason,
            seed=self.seed,
            verified=self.verified,
            history=tuple(self.history),
        )

    def _capacity(self, width: int) -> int:
        return min(self.space.size, max(self.capacity, self.k + 3 * width))

    def _must_stop(self, krylov: KrylovDecomposition) -> bool:
        width = krylov.Q.shape[1]
        return krylov.exhausted or self.product.num_matvecs + width > self.budget

    def _stopped_by_callback(self) -> bool:
        relative = self.residuals / self.norm if self.norm > 0 else self.residuals
        self.history.append(
            (self.product.num_matvecs, float(self.values[0]), float(relative.max()))
        )
        step = EigenStep(self.product.num_matvecs, self.values, relative)
        stop = asked_to_stop(self.callback, step)
        if stop:
            self.reason = "stopped by the callback"
        return stop


def _restart_if_full(
    krylov: KrylovDecomposition, values: HostArray, Y: HostArray, which: Which, k: int
) -> None:
    """Keep the wanted Ritz pairs and half of the rest's room, best first."""
    if krylov.room:
        return
    most = krylov.V.shape[1] - krylov.Q.shape[1]
    keep = order(values, which, min(most, k + (krylov.V.shape[1] - k) // 2))
    krylov.restart(values[keep], Y[:, keep])


def _lead(values: HostArray, worst: float, end: Which) -> HostArray:
    """By how much values beat the worst of the wanted."""
    if end == "LM":
        return np.abs(values) - abs(worst)
    return values - worst if end == "LA" else worst - values


def _absent(krylov: KrylovDecomposition, values: HostArray, worst: float, end: Which) -> bool:
    """Whether an eigenvalue at least as good as the worst wanted would have shown by now.

    Of such an eigenvalue, m block steps amplify the part in the random start by the
    Chebyshev polynomial of the interval that the Ritz values span. Once that outgrows the
    smallness of a random overlap, 1 / n, by a wide margin, the Rayleigh quotient would be
    at the eigenvalue; it is not, so the eigenvalue is not there.
    """
    low, high = float(values[0]), float(values[-1])
    if end == "LM":
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        target = abs(worst)
    elif end == "SA":
        low, high, target = -high, -low, -worst
    else:
        target = worst
    if high <= low:
        return krylov.num_steps > 2
    gap = max(0.0, (target - high) / (high - low))
    growth = (krylov.num_steps - 1) * math.acosh(1 + 2 * gap) - math.log(2)
    return 2 * growth > math.log(_RESOLUTION * krylov.space.size)


def _start_block(
    product: Products, start: Array | EigenResult | None, width: int, seed: int
) -> Array:
    space = product.space
    if start is None:
        return space.probes(width, seed=seed, kind="gaussian", stream=probes.START)
    block = start.vectors if isinstance(start, EigenResult) else start
    rows = len(space.rows)
    if getattr(block, "ndim", 0) != 2 or block.shape[0] != rows or not block.shape[1]:
        shape = getattr(block, "shape", type(block).__name__)
        raise ValueError(f"start must have shape ({rows}, b): got {shape}.")
    return space.xp.astype(space.xp.asarray(block, device=space.device), space.dtype)


def _warn(result: EigenResult, search: _Search) -> None:
    missing = int(np.sum(~result.converged)) + search.k - len(result.values)
    warnings.warn(
        f"{missing} of {search.k} eigenpairs did not reach rtol={search.rtol:.1e} within "
        f"{result.num_matvecs} products (worst residual {result.residuals.max():.1e} of ||A||): "
        "raise max_matvecs or num_vectors, loosen rtol, or pass this result as start.",
        ConvergenceWarning,
        stacklevel=3,
    )
