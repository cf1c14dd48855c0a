r"""The Lanczos recurrence itself, for a block of start vectors at once.

The entries of T stay on the device while the steps go on; every few steps they are
brought to the host, where NaN, asymmetry and breakdown are judged.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, final

import numpy as np

from matfree.algorithms.products import HostArray, Products
from matfree.arrays import real_part, rounding, to_host
from matfree.protocol import Array
from matfree.results import Tridiagonal
from matfree.spaces import RowSpace

Reorthogonalize: TypeAlias = Literal["full", "none"]

STEPS_PER_LOOK = 8
"""Steps between two looks from the host: the device is not waited for in between."""


def tridiagonalize(
    product: Products,
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: Reorthogonalize,
    keep_basis: bool,
) -> Tridiagonal:
    """``lanczos`` behind the door: ``start`` is a checked block, products are counted."""
    space = product.space
    made_before = product.num_matvecs
    norms = to_host(space.norms(start))
    if not np.all(norms > 0):
        raise ValueError(f"start must not be zero: its column {int(np.argmin(norms))} is.")
    V = start / space.asarray(norms)[None, :]
    del start
    full = reorthogonalize == "full"
    bases = _Bases(space, V, num_steps) if full or keep_basis else None
    record = _Record(product, V.shape[1])
    previous, beta = space.zeros(V.shape[1]), None
    for step in range(num_steps):
        if bases is not None and full:
            R, alpha, defect = bases.orthogonalize(product(V), step, beta)
        else:
            R, alpha, defect = _three_terms(space, product(V), V, previous, beta, step)
        beta = space.norms(R)
        alive = record.add(alpha, beta, defect)
        last = step + 1 == num_steps
        if last or (step + 1) % STEPS_PER_LOOK == 0 or step in (0, 2):  # bad operators show soon
            record.look()
            if last or record.all_done():
                break
        V, previous = _normalized(space, R, beta, alive), previous if full else V
        if bases is not None:
            bases.append(V, step + 1)
    alphas, betas, residuals = record.cut()
    kept = bases.cut(alphas) if bases is not None and keep_basis else ()
    return Tridiagonal(
        alphas=alphas,
        betas=betas,
        residual_norms=residuals,
        start_norms=tuple(float(x) for x in norms),
        bases=kept,
        num_matvecs=product.num_matvecs - made_before,
        reorthogonalize=reorthogonalize,
    )


@final
class _Bases:
    """The Lanczos vectors of every start vector, each in one contiguous (steps, n) array.

    Rows make the projections matrix-vector products over contiguous memory; every other
    layout is several times slower.
    """

    def __init__(self, space: RowSpace, V: Array, num_steps: int) -> None:
        self.space = space
        shape = (num_steps, len(space.rows))
        self.rows = [
            space.xp.empty(shape, dtype=space.dtype, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    def append(self, V: Array, step: int) -> None:
        for p, basis in enumerate(self.rows):
            basis[step, :] = V[:, p]

    def cut(self, alphas: tuple[HostArray, ...]) -> tuple[Array, ...]:
        """Each basis up to where its run ended."""
        return tuple(b[: len(a), :] for b, a in zip(self.rows, alphas, strict=True))

    def orthogonalize(self, W: Array, step: int, beta: Array | None) -> tuple[Array, Array, Array]:
        """W without its components in the bases; the last of them is alpha.

        For a Hermitian A the component along v_{j-1} is beta_{j-1} and those along earlier
        vectors are rounding: whatever else they hold is A's asymmetry, found for nothing.
        """
        xp, space = self.space.xp, self.space
        R, alphas, defects = space.zeros(len(self.rows)), [], []
        for p, basis in enumerate(self.rows):
            X = basis[: step + 1, :].T
            w = xp.asarray(W[:, p : p + 1], copy=True)
            first = space.gram(X, w)
            w -= X @ xp.astype(first, space.dtype)
            second = space.gram(X, w)
            w -= X @ xp.astype(second, space.dtype)
            R[:, p : p + 1] = w
            alphas.append(first[step, 0] + second[step, 0])
            known = first[:step, 0]
            if beta is not None:
                known = xp.concat(
                    (known[:-1], known[-1:] - xp.astype(beta[p : p + 1], known.dtype))
                )
            defects.append(xp.sum(xp.abs(known)))
        return R, xp.stack(alphas), xp.stack(defects)


def _three_terms(
    space: RowSpace, W: Array, V: Array, previous: Array, beta: Array | None, step: int
) -> tuple[Array, Array, Array]:
    """The bare recurrence in Paige's stable order: beta first, then alpha."""
    xp = space.xp
    defect = xp.zeros_like(real_part(xp, space.norms(V)))
    if beta is not None:
        if step == 1:  # one dot tells an unsymmetric operator: <v_1, A v_2> is conj(beta_1)
            defect = xp.abs(space.dots(previous, W) - xp.astype(beta, W.dtype))
        W = W - previous * xp.astype(beta, space.dtype)[None, :]
    alpha = space.dots(V, W)
    if beta is None:  # the product is not ours to write on
        return W - V * xp.astype(alpha, space.dtype)[None, :], alpha, defect
    W -= V * xp.astype(alpha, space.dtype)[None, :]
    return W, alpha, defect


def _normalized(space: RowSpace, R: Array, beta: Array, alive: Array) -> Array:
    """R / beta, and zero where the run broke down: never a division by noise."""
    xp = space.xp
    inverse = 1.0 / xp.where(alive, beta, xp.ones_like(beta))
    inverse = xp.where(alive, inverse, xp.zeros_like(beta))
    return R * xp.astype(inverse, space.dtype)[None, :]


@final
class _Record:
    """The entries of T, kept on the device and brought to the host once per look."""

    def __init__(self, product: Products, num_runs: int) -> None:
        self.product, self.space = product, product.space
        self.factor = rounding(self.space.xp, self.space.dtype)
        self.on_device: list[tuple[Array, Array, Array]] = []
        self.on_host: list[tuple[HostArray, ...]] = []
        self.scale: Array | None = None
        self.alive: Array | None = None
        self.num_runs = num_runs

    def add(self, alpha: Array, beta: Array, defect: Array) -> Array:
        """Record one step; which of the runs go on."""
        xp = self.space.xp
        alpha = real_part(xp, alpha)
        scale = xp.maximum(xp.abs(alpha), beta)
        if self.scale is not None:
            scale = xp.maximum(self.scale, scale)
        alive = beta > self.factor * scale
        if self.alive is not None:  # what a run that is over still shows is rounding
            alive = alive & self.alive
            defect = xp.where(self.alive, defect, xp.zeros_like(defect))
        self.scale, self.alive = scale, alive
        self.on_device.append((alpha, beta, defect))
        return alive

    def look(self) -> None:
        """Bring the new entries to the host, and judge them: NaN, then asymmetry.

        This is the one place where the device is waited for.
        """
        xp = self.space.xp
        fresh = to_host(xp.stack([xp.stack(entry) for entry in self.on_device]))
        self.on_device = []
        self.on_host.extend(tuple(step) for step in fresh)
        self.product.require_finite(fresh)
        self.product.require_hermitian(self.defect)

    @property
    def scales(self) -> HostArray:
        """Per run, the running maximum of |T| after each step, (steps, runs)."""
        sizes = [np.maximum(np.abs(alpha), beta) for alpha, beta, _ in self.on_host]
        return np.maximum.accumulate(np.asarray(sizes), axis=0)

    @property
    def defect(self) -> float:
        """The largest asymmetry seen, relative to the largest entry of T."""
        scale = float(self.scales[-1].max())
        worst = max(float(defect.max()) for _, _, defect in self.on_host)
        return worst / scale if scale > 0 else 0.0

    def lengths(self) -> list[int]:
        """Per run, how many steps there were until its Krylov space ended."""
        betas = np.asarray([beta for _, beta, _ in self.on_host])
        ended = betas <= self.factor * self.scales
        return [
            int(np.argmax(ended[:, p])) + 1 if ended[:, p].any() else len(betas)
            for p in range(self.num_runs)
        ]

    def all_done(self) -> bool:
        """Whether every run broke down before the last step looked at."""
        betas = np.asarray([beta for _, beta, _ in self.on_host])
        return bool(np.all((betas <= self.factor * self.scales).any(axis=0)))

    def cut(self) -> tuple[tuple[HostArray, ...], tuple[HostArray, ...], tuple[float, ...]]:
        """alphas, betas and residual norms of every run, cut where it ended."""
        alphas = np.asarray([alpha for alpha, _, _ in self.on_host])
        betas = np.asarray([beta for _, beta, _ in self.on_host])
        ends = self.lengths()
        return (
            tuple(alphas[:m, p] for p, m in enumerate(ends)),
            tuple(betas[: m - 1, p] for p, m in enumerate(ends)),
            tuple(float(betas[m - 1, p]) for p, m in enumerate(ends)),
        )
