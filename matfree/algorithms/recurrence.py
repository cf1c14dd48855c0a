r"""The Lanczos recurrence itself, for a block of start vectors at once.

The entries of T stay on the device while the steps go on; every few steps they are
brought to the host, where NaN, asymmetry and breakdown are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, final

import numpy as np

from matfree.algorithms.bases import Bases
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
    run = Recurrence(
        product, start, num_steps, reorthogonalize=reorthogonalize, keep_basis=keep_basis
    )
    while not run.finished:
        run.advance()
    return run.result()


@final
class Recurrence:
    """The recurrence under way: it can be left after every look, and gone on with.

    Parameters
    ----------
    product : the operator, counted
    start : (rows, k), the start vectors, not zero
    num_steps : int
    reorthogonalize : {"full", "none"}
    keep_basis : bool
        Whether the result holds the Lanczos vectors.
    """

    saved = ("step", "V", "previous", "bases", "record")

    def __init__(
        self,
        product: Products,
        start: Array,
        num_steps: int,
        *,
        reorthogonalize: Reorthogonalize,
        keep_basis: bool,
    ) -> None:
        self.product, self.space, self.num_steps = product, product.space, num_steps
        self.reorthogonalize, self.keep_basis = reorthogonalize, keep_basis
        self.full = reorthogonalize == "full"
        self.made_before = product.num_matvecs
        self.norms = to_host(self.space.norms(start))
        if not np.all(self.norms > 0):
            column = int(np.argmin(self.norms))
            raise ValueError(f"start must not be zero: its column {column} is.")
        self.V = self.space.zeros(start.shape[1])  # in C order, whatever the start's
        self.V[:, :] = start / self.space.asarray(self.norms)[None, :]
        self.previous = self.space.zeros(start.shape[1])
        self.bases = Bases(self.space, self.V, num_steps) if self.full or keep_basis else None
        self.record = _Record(product, start.shape[1])
        self.step = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or every Krylov space has ended."""
        return self.step == self.num_steps or (self.step > 0 and self.record.all_done())

    def advance(self) -> None:
        """Steps up to the next look from the host, and that look."""
        looked = False
        while not looked:
            R, beta, alive = self._step()
            self.step += 1
            last = self.step == self.num_steps
            looked = last or self.step % STEPS_PER_LOOK == 0 or self.step in (1, 3)
            if looked:  # the first ones early: bad operators show soon
                self.record.look()
            if not last:
                _normalize(self.space, R, beta, alive)
                self.V, self.previous = R, self.previous if self.full else self.V
                if self.bases is not None:
                    self.bases.append(self.V, self.step)

    def _step(self) -> tuple[Array, Array, Array]:
        """One product, its remainder R (ours to write on), R's lengths, which runs go on."""
        V, beta = self.V, self.record.beta
        if self.step > 1 and not self.full:  # the first two tell what the operator is
            fused = self.product.lanczos_step(V, self.previous, beta)
            if fused is not None:
                R, alpha, beta = fused
                return R, beta, self.record.add(alpha, beta, self.space.xp.zeros_like(beta))
        if self.bases is not None and self.full:
            R, alpha, defect = self.bases.orthogonalize(self.product(V), self.step, beta)
        else:
            R, alpha, defect = _three_terms(
                self.space, self.product(V), V, self.previous, beta, self.step
            )
        beta = self.space.norms(R)
        return R, beta, self.record.add(alpha, beta, defect)

    def result(self) -> Tridiagonal:
        """The factorizations, each cut where its Krylov space ended."""
        alphas, betas, residuals = self.record.cut()
        keep = self.bases is not None and self.keep_basis
        return Tridiagonal(
            alphas=alphas,
            betas=betas,
            residual_norms=residuals,
            start_norms=tuple(float(x) for x in self.norms),
            bases=self.bases.cut(alphas) if self.bases is not None and keep else (),
            num_matvecs=self.product.num_matvecs - self.made_before,
            reorthogonalize=self.reorthogonalize,
        )


def _three_terms(
    space: RowSpace, W: Array, V: Array, previous: Array, beta: Array | None, step: int
) -> tuple[Array, Array, Array]:
    """The bare recurrence in Paige's stable order: beta first, then alpha.

    The remainder is written over ``previous``: the product is not ours to write on, and
    another block would cost more than the arithmetic.
    """
    xp = space.xp
    defect = None
    if step == 1:  # one dot tells an unsymmetric operator: <v_1, A v_2> is conj(beta_1)
        defect = xp.abs(space.dots(previous, W) - xp.astype(beta, W.dtype))
    if beta is None:
        previous[:, :] = W
    else:
        for rows, factor in _slabs(space, V, -beta):
            R = previous[rows, :]  # a view
            R *= factor
            R += W[rows, :]
    alpha = space.dots(V, previous)
    for rows, factor in _slabs(space, V, alpha):
        R = previous[rows, :]
        R -= V[rows, :] * factor
    return previous, alpha, xp.zeros_like(real_part(xp, alpha)) if defect is None else defect


def _normalize(space: RowSpace, R: Array, beta: Array, alive: Array) -> None:
    """R /= beta, in place, and 0 where the run broke down: never a division by noise."""
    xp = space.xp
    inverse = 1.0 / xp.where(alive, beta, xp.ones_like(beta))
    inverse = xp.where(alive, inverse, xp.zeros_like(beta))
    for rows, factor in _slabs(space, R, inverse):
        part = R[rows, :]
        part *= factor


def _slabs(space: RowSpace, X: Array, factors: Array) -> Iterator[tuple[slice, Array]]:
    """Slices of a block's rows that stay in the cache, and its columns' factors for each.

    The factors stand in every row of a slab: arrays of one shape are multiplied in one
    sweep, while a row of factors is taken up anew for every row of a few numbers.
    """
    spread = None
    for rows in space.slabs(X.shape[1]):
        height = rows.stop - rows.start
        if spread is None:
            row = space.xp.astype(factors, space.dtype)[None, :]
            spread = space.xp.zeros_like(X[rows, :]) + row
        yield rows, spread[:height, :]


@final
class _Record:
    """The entries of T, kept on the device and brought to the host once per look."""

    saved = ("entries",)

    def __init__(self, product: Products, num_runs: int) -> None:
        self.product, self.space = product, product.space
        self.factor = rounding(self.space.xp, self.space.dtype)
        self.on_device: list[tuple[Array, Array, Array]] = []
        self.on_host: list[tuple[HostArray, ...]] = []
        self.beta: Array | None = None
        self.scale: Array | None = None
        self.alive: Array | None = None
        self.num_runs = num_runs

    @property
    def entries(self) -> HostArray:
        """Everything looked at: alpha, beta and defect of every step and run, (steps, 3, runs)."""
        return np.asarray(self.on_host).reshape(-1, 3, self.num_runs)

    @entries.setter
    def entries(self, stored: HostArray) -> None:
        self.on_host = [tuple(step) for step in stored]
        if self.on_host:
            ended = (stored[:, 1] <= self.factor * self.scales).any(axis=0)
            wide = self.space.norms(self.space.zeros(0)).dtype  # the type that norms come in
            self.scale, self.beta, self.alive = (
                self.space.xp.asarray(x, dtype=dtype, device=self.space.device)
                for x, dtype in (
                    (self.scales[-1], wide),
                    (stored[-1, 1], wide),
                    (~ended, self.space.xp.bool),
                )
            )

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
        self.scale, self.alive, self.beta = scale, alive, beta
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
