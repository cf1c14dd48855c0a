"""The entries of T computed by the Lanczos recurrence, with checks of the operator."""

from __future__ import annotations

from typing import final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import real_part, rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_HALF_ASYMMETRY = 2.0**-9
"""The asymmetry that a basis in 16 bits can cause: a few rounding errors of 2^-11."""

_HALF_SHARE = 2.0**-10
"""The fraction of the components subtracted along such a basis that is rounding error."""

_LONGEST_SUM = 1 << 13  # the most terms that slabs and kernels add sequentially

_SECOND_ORDER = 4.0  # factor of the bound over the second-order term; 0.6 was measured at most


@final
class Coefficients:
    """The entries of T, which are copied from the device to the host at check points.

    Parameters
    ----------
    A : CountedOperator
    num_runs : int
        The number k of start vectors.
    half : bool
        Whether the basis is stored in 16 bits.
    """

    saved = ("entries",)

    def __init__(self, A: CountedOperator, num_runs: int, *, half: bool) -> None:
        self.A, self.space = A, A.space
        self.allowance = _HALF_ASYMMETRY if half else 0.0
        self.share = _HALF_SHARE if half else 0.0
        self.factor = max(rounding(self.space.xp, self.space.dtype), _rounding_of_sums(self.space))
        self.on_device: list[tuple[Array, Array, Array]] = []
        self.on_host: list[tuple[HostArray, ...]] = []
        self.alpha: Array | None = None
        self.beta: Array | None = None
        self.scale: Array | None = None
        self.alive: Array | None = None
        self.num_runs = num_runs

    @property
    def entries(self) -> HostArray:
        """alpha, beta and defect of every checked step, (steps, 3, runs) float64."""
        return np.asarray(self.on_host).reshape(-1, 3, self.num_runs)

    @entries.setter
    def entries(self, stored: HostArray) -> None:
        self.on_host = [tuple(step) for step in stored]
        if self.on_host:
            ended = self.ends.any(axis=0)
            wide = self.space.norms(self.space.zeros(0)).dtype  # the data type of norms
            self.scale, self.alpha, self.beta, self.alive = (
                self.space.xp.asarray(x, dtype=dtype, device=self.space.device)
                for x, dtype in (
                    (self.scales[-1], wide),
                    (stored[-1, 0], wide),
                    (stored[-1, 1], wide),
                    (~ended, self.space.xp.bool),
                )
            )

    def add(self, alpha: Array, beta: Array, defect: Array) -> Array:
        """Record one step, and return which of the runs continue, (k,) bool on the device.

        A run ends when beta is a rounding error, because its Krylov space is invariant then.
        """
        xp = self.space.xp
        alpha = real_part(xp, alpha)
        scale = xp.maximum(xp.abs(alpha), beta)
        if self.scale is not None:
            scale = xp.maximum(self.scale, scale)
        # Beta is compared with rounding errors: of the matvec, relative to the entries of T, and of
        # the projections, relative to what they subtracted.
        alive = beta > xp.maximum(self.factor * scale, self.share * defect)
        if self.alive is not None:  # an ended run produces only rounding errors
            alive = alive & self.alive
            defect = xp.where(self.alive, defect, xp.zeros_like(defect))
        self.scale, self.alive, self.alpha, self.beta = scale, alive, alpha, beta
        self.on_device.append((alpha, beta, defect))
        return alive

    def check_point(self) -> None:
        """Copy the new entries to the host, and check them for NaN and then for asymmetry.

        The recurrence synchronizes with the device nowhere else.
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
        """The largest absolute entry of T up to every step, (steps, runs)."""
        sizes = [np.maximum(np.abs(alpha), beta) for alpha, beta, _ in self.on_host]
        return np.maximum.accumulate(np.asarray(sizes), axis=0)

    @property
    def ends(self) -> HostArray:
        """Whether beta is a rounding error, (steps, runs) bool: the Krylov space is invariant."""
        betas, defects = (np.asarray([step[i] for step in self.on_host]) for i in (1, 2))
        return np.asarray(betas <= np.maximum(self.factor * self.scales, self.share * defects))

    @property
    def defect(self) -> float:
        """The largest asymmetry observed, relative to the largest entry of T."""
        scale = float(self.scales[-1].max())
        worst = max(float(defect.max()) for _, _, defect in self.on_host)
        return worst / scale if scale > 0 else 0.0

    def run_lengths(self) -> list[int]:
        """The number of steps of every run until its Krylov space was invariant."""
        ended = self.ends
        return [
            int(np.argmax(ended[:, p])) + 1 if ended[:, p].any() else len(ended)
            for p in range(self.num_runs)
        ]

    def node_errors(self) -> tuple[float, ...]:
        r"""For every run, a bound on the error of the nodes due to a basis in 16 bits.

        Let F be the components that the steps subtract in addition to the three terms. If every
        vector is orthogonal to the two before it, the error of T is of second order,

        .. math:: \|F\|^2 / \|A\|.

        For spectra with outliers, clusters and repeated eigenvalues, the errors of the nodes
        were at most 0.6 times this number.
        """
        defects = np.asarray([defect for _, _, defect in self.on_host])
        errors = []
        for p, m in enumerate(self.run_lengths()):
            scale, F = float(self.scales[m - 1, p]), float(np.linalg.norm(defects[:m, p]))
            errors.append(_SECOND_ORDER * F * (F / scale) if scale > 0 else 0.0)
        return tuple(errors)

    def all_done(self) -> bool:
        """Whether the Krylov space of every run is invariant."""
        return bool(np.all(self.ends.any(axis=0)))

    def trimmed(self) -> tuple[tuple[HostArray, ...], tuple[HostArray, ...], tuple[float, ...]]:
        """alphas, betas and residual norm of every run, without the steps after its end."""
        alphas = np.asarray([alpha for alpha, _, _ in self.on_host])
        betas = np.asarray([beta for _, beta, _ in self.on_host])
        ends = self.run_lengths()
        return (
            tuple(alphas[:m, p] for p, m in enumerate(ends)),
            tuple(betas[: m - 1, p] for p, m in enumerate(ends)),
            tuple(float(betas[m - 1, p]) for p, m in enumerate(ends)),
        )


def _rounding_of_sums(space: VectorSpace) -> float:
    """The beta that summation errors alone produce, relative to alpha, for an eigenvector.

    If all terms are equal, such as those of a vector of signs and a multiple of the identity,
    every addition can have a rounding error of eps / 2 with the same sign.
    """
    return min(space.size, _LONGEST_SUM) / 2 * float(np.finfo(np.float64).eps)
