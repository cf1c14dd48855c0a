r"""The Lanczos recurrence itself, for a block of start vectors at once.

The entries of T stay on the device while the steps go on; every few steps they are
brought to the host, where NaN, asymmetry and breakdown are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Protocol, TypeAlias, final

import numpy as np

from matfree.algorithms.krylov.bases import Bases, HalfBases
from matfree.algorithms.krylov.coefficients import Coefficients
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import real_part, to_host
from matfree.protocol import Array
from matfree.results import Tridiagonal
from matfree.spaces import VectorSpace

Reorthogonalize: TypeAlias = Literal["full", "half", "none"]

STEPS_PER_CHECK = 8
"""Steps between two looks from the host: the device is not waited for in between."""


class VectorListener(Protocol):
    """Whoever wants to see the Lanczos vectors as they come."""

    def append(self, V: Array, step: int) -> None:
        """Take in the vectors of a step."""


def require_reorthogonalize(reorthogonalize: str) -> None:
    """Refuse what is none of the three."""
    if reorthogonalize not in ("full", "half", "none"):
        raise ValueError(
            f'reorthogonalize must be "full", "half" or "none": got {reorthogonalize!r}.'
        )


def tridiagonalize(
    A: CountedOperator,
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: Reorthogonalize,
    keep_basis: bool,
) -> Tridiagonal:
    """``lanczos`` behind the door: ``start`` is a checked block, products are counted."""
    run = Recurrence(A, start, num_steps, reorthogonalize=reorthogonalize, keep_basis=keep_basis)
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
    reorthogonalize : {"full", "half", "none"}
    keep_basis : bool
        Whether the result holds the Lanczos vectors; those in 16 bits it never does.
    listener : Listener, optional
    """

    saved = ("step", "V", "previous", "bases", "record")
    by_row: ClassVar = {"V": 0, "previous": 0}

    def __init__(
        self,
        A: CountedOperator,
        start: Array,
        num_steps: int,
        *,
        reorthogonalize: Reorthogonalize,
        keep_basis: bool,
        listener: VectorListener | None = None,
    ) -> None:
        self.A, self.space, self.num_steps = A, A.space, num_steps
        self.reorthogonalize, self.keep_basis = reorthogonalize, keep_basis
        self.full = reorthogonalize == "full"
        self.matvecs_before = A.num_matvecs
        self.norms = to_host(self.space.norms(start))
        if not np.all(self.norms > 0):
            column = int(np.argmin(self.norms))
            raise ValueError(f"start must not be zero: its column {column} is.")
        V = self.space.zeros(start.shape[1])  # in C order, whatever the start's
        V[:, :] = start / self.space.asarray(self.norms)[None, :]
        self.V, self.previous = V, self.space.zeros(start.shape[1])
        self.bases: Bases | HalfBases | None = None
        if reorthogonalize == "half":
            self.bases = HalfBases(self.space, V, num_steps)
        elif self.full or keep_basis:
            self.bases = Bases(self.space, V, num_steps)
        self.listeners = [holder for holder in (self.bases, listener) if holder is not None]
        if listener is not None:
            listener.append(V, 0)
        self.record = Coefficients(A, start.shape[1], half=reorthogonalize == "half")
        self.step = 0

    @property
    def V(self) -> Array:
        """The newest Lanczos vectors, (rows, k)."""
        return self._newest.vectors()

    @V.setter
    def V(self, vectors: Array) -> None:
        self._newest = ScaledBlock(self.space, vectors)

    @property
    def previous(self) -> Array:
        """The Lanczos vectors before those; where all are kept, room for as many."""
        return self._previous.vectors()

    @previous.setter
    def previous(self, vectors: Array) -> None:
        self._previous = ScaledBlock(self.space, vectors)

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
            looked = last or self.step % STEPS_PER_CHECK == 0 or self.step in (1, 3)
            if looked:  # the first ones early: bad operators show soon
                self.record.check_point()
            if not last:
                if not self.full:
                    self._previous = self._newest
                self._newest = ScaledBlock(self.space, R, _inverse(self.space, beta, alive))
                for listener in self.listeners:
                    listener.append(self.V, self.step)

    def _step(self) -> tuple[Array, Array, Array]:
        """One product, its remainder R (ours to write on), R's lengths, which runs go on."""
        half = isinstance(self.bases, HalfBases)
        if self.step != 1 and not (self.full or half):  # the second tells what the operator is
            fused = self._fused_step()
            if fused is not None:
                return fused
        V, beta = self.V, self.record.beta
        before = self.space.xp.asarray(self.previous, copy=True) if half else self.previous
        if isinstance(self.bases, Bases) and self.full:
            R, alpha, defect = self.bases.orthogonalize(self.A(V), self.step, beta)
            lengths = self.space.norms(R)
        else:
            R, alpha, lengths, defect = _three_terms(
                self.space, self.A(V), V, self.previous, beta, self.step
            )
        if isinstance(self.bases, HalfBases):
            defect = self.space.xp.maximum(defect, self.bases.project_out(R))
            alpha = alpha + _project_out_once(self.space, R, V)  # T would miss it to first order
            _project_out_once(self.space, R, before)
            lengths = self.space.norms(R)
        return R, lengths, self.record.add(alpha, lengths, defect)

    def _fused_step(self) -> tuple[Array, Array, Array] | None:
        """The same by the operator itself, where it can."""
        V, previous = self._newest, self._previous
        beta = self.record.beta
        back = self.space.xp.zeros_like(V.scale) if beta is None else beta * previous.scale
        made = self.A.lanczos_step(V.block, previous.block, back, V.scale)
        if made is None:
            return None
        R, alpha, lengths = made
        alive = self.record.add(alpha, lengths, self.space.xp.zeros_like(lengths))
        return R, lengths, alive

    def result(self) -> Tridiagonal:
        """The factorizations, each cut where its Krylov space ended."""
        alphas, betas, residuals = self.record.cut()
        bases = self.bases if isinstance(self.bases, Bases) and self.keep_basis else None
        half = self.reorthogonalize == "half"
        return Tridiagonal(
            alphas=alphas,
            betas=betas,
            residual_norms=residuals,
            start_norms=tuple(float(x) for x in self.norms),
            bases=bases.cut(alphas) if bases is not None else (),
            num_matvecs=self.A.num_matvecs - self.matvecs_before,
            reorthogonalize=self.reorthogonalize,
            node_errors=self.record.node_errors() if half else (),
            rows=self.space.row_range if bases is not None else None,
        )


@final
class ScaledBlock:
    """Vectors that a block holds up to a factor each, which is multiplied in when they are used.

    An operator that makes the steps itself takes the factors as they are: to divide a block by
    its columns' lengths would be one more pass over memory.
    """

    def __init__(self, space: VectorSpace, block: Array, scale: Array | None = None) -> None:
        self.space, self.block, self._scale = space, block, scale

    @property
    def scale(self) -> Array:
        """The factors, (k,) in double precision."""
        if self._scale is not None:
            return self._scale
        return _zeros(self.space, self.block) + 1.0

    def vectors(self) -> Array:
        """The vectors themselves; from now on the block holds them."""
        if self._scale is not None:
            for rows, factor in _slabs(self.space, self.block, self._scale):
                part = self.block[rows, :]
                part *= factor
            self._scale = None
        return self.block


def _three_terms(
    space: VectorSpace, W: Array, V: Array, previous: Array, beta: Array | None, step: int
) -> tuple[Array, Array, Array, Array]:
    """The bare recurrence in Paige's stable order, beta first, then alpha: R, alpha, ||R||, defect.

    The remainder is written over ``previous``: the product is not ours to write on, and
    another block would cost more than the arithmetic. Sums over rows are taken while a slab is
    in the cache.
    """
    xp = space.xp
    defect = None
    if step == 1:  # one dot tells an unsymmetric operator: <v_1, A v_2> is conj(beta_1)
        defect = xp.abs(space.dots(previous, W) - xp.astype(beta, W.dtype))
    if beta is None:
        beta = _zeros(space, V)
    squares = dots = space.partial_dots(V[:0, :], V[:0, :])  # 0: there may be no rows here
    for rows, factor in _slabs(space, V, -beta):
        R = previous[rows, :]  # a view
        R *= factor
        R += W[rows, :]
        dots = dots + space.partial_dots(V[rows, :], R)
    alpha = space.all_reduce(dots)
    for rows, factor in _slabs(space, V, alpha):
        R = previous[rows, :]
        R -= V[rows, :] * factor
        squares = squares + space.partial_dots(R, R)
    lengths = xp.sqrt(space.all_reduce(real_part(xp, squares)))
    return previous, alpha, lengths, xp.zeros_like(lengths) if defect is None else defect


def _project_out_once(space: VectorSpace, R: Array, V: Array) -> Array:
    """R -= its components along the vectors of V, column by column; those components."""
    components = space.dots(V, R)
    R -= V * space.xp.astype(components, space.dtype)[None, :]
    return components


def _zeros(space: VectorSpace, X: Array) -> Array:
    """A zero for each column, of the type that lengths come in."""
    nothing = X[:0, :]
    return real_part(space.xp, space.partial_dots(nothing, nothing))


def _inverse(space: VectorSpace, beta: Array, alive: Array) -> Array:
    """1 / beta, and 0 where the run broke down: never a division by noise."""
    xp = space.xp
    inverse = 1.0 / xp.where(alive, beta, xp.ones_like(beta))
    return xp.where(alive, inverse, xp.zeros_like(beta))


def _slabs(space: VectorSpace, X: Array, factors: Array) -> Iterator[tuple[slice, Array]]:
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
