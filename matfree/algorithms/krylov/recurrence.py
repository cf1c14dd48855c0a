"""The Lanczos recurrence for a block of start vectors, which are independent runs.

The entries of T remain on the device. At check points, every few steps, they are copied to the
host and checked for NaN, for asymmetry and for breakdown.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, TypeAlias, final

import numpy as np

from matfree.algorithms.krylov.bases import Bases, HalfBases
from matfree.algorithms.krylov.coefficients import Coefficients
from matfree.algorithms.krylov.three_terms import (
    ScaledBlock,
    project_out_columns,
    reciprocal_of_beta,
    three_term_step,
)
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import to_host
from matfree.protocol import Array
from matfree.results import Tridiagonal

Reorthogonalize: TypeAlias = Literal["full", "half", "none"]
"""How Lanczos vectors are orthogonalized; see :func:`matfree.lanczos`."""

STEPS_PER_CHECK = 8
"""The number of steps between two check points. Only these synchronize with the device."""


class VectorListener(Protocol):
    """An object that is given the Lanczos vectors of every step."""

    def append(self, V: Array, step: int) -> None:
        """Process the Lanczos vectors V, (rows, k), of a step, which must not be modified."""


def require_reorthogonalize(reorthogonalize: str) -> None:
    """Raise ValueError unless the argument is "full", "half" or "none"."""
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
    """Run the recurrence to its end, for arguments that were checked; see ``Recurrence``."""
    run = Recurrence(A, start, num_steps, reorthogonalize=reorthogonalize, keep_basis=keep_basis)
    while not run.finished:
        run.advance()
    return run.result()


@final
class Recurrence:
    """The state of the recurrence, which can be saved and resumed at every check point.

    Parameters
    ----------
    A : CountedOperator
    start : (rows, k)
        The start vectors, which are normalized here.
    num_steps : int
    reorthogonalize : {"full", "half", "none"}
    keep_basis : bool
        Whether the result contains the Lanczos vectors. A basis in 16 bits is never returned.
    listener : VectorListener, optional

    Raises
    ------
    ValueError
        A start vector is zero, or the array library has no 16-bit numbers for "half".
    """

    saved = ("step", "V", "previous", "bases", "coefficients")
    stored_as: ClassVar = {"coefficients": "record"}
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
            raise ValueError(
                f"start must not be zero: its column {column} is; pass nonzero start vectors."
            )
        V = self.space.zeros(start.shape[1])  # in C order, unlike perhaps ``start``
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
        self.coefficients = Coefficients(A, start.shape[1], half=reorthogonalize == "half")
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
        """The Lanczos vectors before V; with a full basis, a block of scratch memory."""
        return self._previous.vectors()

    @previous.setter
    def previous(self, vectors: Array) -> None:
        self._previous = ScaledBlock(self.space, vectors)

    @property
    def finished(self) -> bool:
        """Whether all steps are completed, or the Krylov spaces of all runs are invariant."""
        return self.step == self.num_steps or (self.step > 0 and self.coefficients.all_done())

    def advance(self) -> None:
        """Run the steps up to and including the next check point."""
        checked = False
        while not checked:
            R, beta, alive = self._step()
            self.step += 1
            last = self.step == self.num_steps
            checked = last or self.step % STEPS_PER_CHECK == 0 or self.step in (1, 3)
            if checked:  # steps 1 and 3 as well, to detect faulty operators early
                self.coefficients.check_point()
            if not last:
                if not self.full:  # Gram-Schmidt reads the previous vectors from the basis
                    self._previous = self._newest
                self._newest = ScaledBlock(
                    self.space, R, reciprocal_of_beta(self.space, beta, alive)
                )
                for listener in self.listeners:
                    listener.append(self.V, self.step)

    def _step(self) -> tuple[Array, Array, Array]:
        """Apply A and orthogonalize.

        Returns
        -------
        R : (rows, k), the remainder, which the caller may modify
        beta : (k,), the norms of R
        alive : (k,) bool, the runs that continue
        """
        half = isinstance(self.bases, HalfBases)
        # The second step is not fused, because it detects operators that are not Hermitian.
        if self.step != 1 and not (self.full or half):
            fused = self._fused_step()
            if fused is not None:
                return fused
        V, beta = self.V, self.coefficients.beta
        # three_term_step overwrites the previous vectors, which a basis in 16 bits still needs.
        before = self.space.xp.asarray(self.previous, copy=True) if half else self.previous
        if isinstance(self.bases, Bases) and self.full:
            R, alpha, defect = self.bases.orthogonalize(self.A(V), self.step, beta)
            norms = self.space.norms(R)
        else:
            R, alpha, norms, defect = three_term_step(
                self.space, self.A(V), V, self.previous, self.coefficients.alpha, beta, self.step
            )
        if isinstance(self.bases, HalfBases):
            defect = self.space.xp.maximum(defect, self.bases.project_out(R))
            # The basis in 16 bits lacks the last two vectors. What is projected out along V belongs
            # to alpha; without it, T would have an error of first order.
            alpha = alpha + project_out_columns(self.space, R, V)
            project_out_columns(self.space, R, before)
            norms = self.space.norms(R)
        return R, norms, self.coefficients.add(alpha, norms, defect)

    def _fused_step(self) -> tuple[Array, Array, Array] | None:
        """The same by the operator's own ``lanczos_step``; None if it has none for this block."""
        V, previous = self._newest, self._previous
        beta = self.coefficients.beta
        back = self.space.xp.zeros_like(V.scale) if beta is None else beta * previous.scale
        fused = self.A.lanczos_step(V.block, previous.block, back, V.scale)
        if fused is None:
            return None
        R, alpha, norms = fused
        alive = self.coefficients.add(alpha, norms, self.space.xp.zeros_like(norms))
        return R, norms, alive

    def result(self) -> Tridiagonal:
        """The factorizations, each without the steps after the end of its run."""
        alphas, betas, residuals = self.coefficients.trimmed()
        bases = self.bases if isinstance(self.bases, Bases) and self.keep_basis else None
        half = self.reorthogonalize == "half"
        return Tridiagonal(
            alphas=alphas,
            betas=betas,
            residual_norms=residuals,
            start_norms=tuple(float(x) for x in self.norms),
            bases=bases.trimmed(alphas) if bases is not None else (),
            num_matvecs=self.A.num_matvecs - self.matvecs_before,
            reorthogonalize=self.reorthogonalize,
            node_errors=self.coefficients.node_errors() if half else (),
            rows=self.space.row_range if bases is not None else None,
        )
