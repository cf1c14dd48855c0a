"""The entries of T as the Lanczos recurrence finds them, and what they say of the operator."""

from __future__ import annotations

from typing import final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import real_part, rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_HALF_ASYMMETRY = 2.0**-9
"""The asymmetry that a basis in 16 bits explains: a few roundings of 2^-11."""

_HALF_SHARE = 2.0**-10
"""The part of what was taken off along such a basis that comes back as its rounding."""

_LONGEST_SUM = 1 << 13  # rows whose terms are added one behind another, in slabs and kernels

_SECOND_ORDER = 4.0  # times what was measured, so that it is a bound


@final
class Coefficients:
    """The entries of T, kept on the device and brought to the host once per look."""

    saved = ("entries",)

    def __init__(self, A: CountedOperator, num_runs: int, *, half: bool) -> None:
        self.A, self.space = A, A.space
        self.allowance = _HALF_ASYMMETRY if half else 0.0
        self.share = _HALF_SHARE if half else 0.0
        self.factor = max(rounding(self.space.xp, self.space.dtype), _rounding_of_sums(self.space))
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
            ended = self.ends.any(axis=0)
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
        alive = beta > xp.maximum(self.factor * scale, self.share * defect)
        if self.alive is not None:  # what a run that is over still shows is rounding
            alive = alive & self.alive
            defect = xp.where(self.alive, defect, xp.zeros_like(defect))
        self.scale, self.alive, self.beta = scale, alive, beta
        self.on_device.append((alpha, beta, defect))
        return alive

    def check_point(self) -> None:
        """Bring the new entries to the host, and judge them: NaN, then asymmetry.

        This is the one place where the device is waited for.
        """
        xp = self.space.xp
        fresh = to_host(xp.stack([xp.stack(entry) for entry in self.on_device]))
        self.on_device = []
        self.on_host.extend(tuple(step) for step in fresh)
        self.A.require_finite(fresh)
        defect = self.defect
        self.A.require_hermitian(defect if defect > self.allowance else 0.0)

    @property
    def scales(self) -> HostArray:
        """Per run, the running maximum of |T| after each step, (steps, runs)."""
        sizes = [np.maximum(np.abs(alpha), beta) for alpha, beta, _ in self.on_host]
        return np.maximum.accumulate(np.asarray(sizes), axis=0)

    @property
    def ends(self) -> HostArray:
        """Whether a Krylov space had ended, (steps, runs): beta is rounding from there on."""
        betas, defects = (np.asarray([step[i] for step in self.on_host]) for i in (1, 2))
        return np.asarray(betas <= np.maximum(self.factor * self.scales, self.share * defects))

    @property
    def defect(self) -> float:
        """The largest asymmetry seen, relative to the largest entry of T."""
        scale = float(self.scales[-1].max())
        worst = max(float(defect.max()) for _, _, defect in self.on_host)
        return worst / scale if scale > 0 else 0.0

    def lengths(self) -> list[int]:
        """Per run, how many steps there were until its Krylov space ended."""
        ended = self.ends
        return [
            int(np.argmax(ended[:, p])) + 1 if ended[:, p].any() else len(ended)
            for p in range(self.num_runs)
        ]

    def node_errors(self) -> tuple[float, ...]:
        """Per run, a bound on what orthogonalising against less than the vectors moves T by.

        The steps take off F beyond the three terms. With vectors that are orthogonal to those
        just before them, T is off by the second order, ||F||^2 / ||A||; over spectra with
        outliers, clusters and repeated eigenvalues its nodes were off by 0.6 of it at most.
        """
        defects = np.asarray([defect for _, _, defect in self.on_host])
        errors = []
        for p, m in enumerate(self.lengths()):
            scale, F = float(self.scales[m - 1, p]), float(np.linalg.norm(defects[:m, p]))
            errors.append(_SECOND_ORDER * F * (F / scale) if scale > 0 else 0.0)
        return tuple(errors)

    def all_done(self) -> bool:
        """Whether every run broke down before the last step looked at."""
        return bool(np.all(self.ends.any(axis=0)))

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


def _rounding_of_sums(space: VectorSpace) -> float:
    """What the summing alone leaves of beta, relative to alpha, where a start is an eigenvector.

    Of equal terms, such as those of signs and a multiple of the identity, every addition can
    err to the same side by half an eps of double precision.
    """
    return min(space.size, _LONGEST_SUM) / 2 * float(np.finfo(np.float64).eps)
