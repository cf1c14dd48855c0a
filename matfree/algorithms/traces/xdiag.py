r"""XDiag and XNysDiag: leave-one-out estimators of the diagonal.

XTrace applied to every entry: let P_i be the orthogonal projector onto the range of A W without
the i-th probe. Then

.. math:: d_i = \operatorname{diag}(P_i A) + \bar w_i * \left((I - P_i) A w_i\right)

is an unbiased estimate of diag A. The mean over i needs a sketch Q and A Q (XDiag; A^H Q if A
is not Hermitian), or the sketch alone (XNysDiag, for positive semidefinite A).

References
----------
E. N. Epperly, J. A. Tropp, R. J. Webber (2024), doi:10.1137/23M1548323, section 4.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.low_rank.nystrom import nystrom, nystrom_matrices
from matfree.algorithms.low_rank.range_sketch import Columns, IndependentProbes, RangeSketch
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.solving.solver import has_adjoint
from matfree.algorithms.traces.diagpp import require_hermitian_core, row_dots
from matfree.algorithms.traces.hutchinson import DiagonalEstimator, Moments
from matfree.algorithms.traces.xtrace import left_out_directions
from matfree.arguments import slices
from matfree.arrays import conjugate, epsilon, is_complex, real_part, to_host
from matfree.errors import NotHermitianError
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

BOTH_ROLES = 2**0.5
"""The factor from the standard deviation of the mean of the d_i to the standard error.

Each probe adds variance twice, about equally: as a sample, and as a column of the sketch of the
other samples. The deviations of the d_i show only the former. Without this factor, nominal 95 %
intervals cover 83 to 96 % of the entries; with it, at least 93 %.
"""


class LeaveOneOutDiagonal(DiagonalEstimator):
    """A vector common to all d_i, plus the mean of one vector per probe."""

    first_check = 8
    check_growth = 2.0
    mergeable = False

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan)

    def reserve(self, num_probes: int) -> None:
        self.sketch.reserve(num_probes)

    def _averaged(
        self,
        common: Array,
        probes: IndependentProbes,
        left: tuple[Array, HostArray],
        right: tuple[Array, HostArray],
    ) -> Summary:
        """The mean over i of common + left_i * conj(right_i + w_i), and its standard error.

        ``left`` and ``right`` are given as (basis, coefficients) for the independent probes. The
        vectors of probes that are not essential are 0 in the mean, because P_i A w_i = A w_i.
        """
        moments = self._moments(probes.numbers, left, right)
        essential, mean = probes.essential, moments.mean
        if not essential.all():
            L, R = ((basis, small[:, essential]) for basis, small in (left, right))
            mean = self._moments(probes.numbers[essential], L, R).mean * int(essential.sum())
            mean = mean / self.sketch.num_probes
        return self._summary(common + mean, moments.stderr() * BOTH_ROLES, moments.count - 1)

    def _moments(
        self, index: HostArray, left: tuple[Array, HostArray], right: tuple[Array, HostArray]
    ) -> Moments:
        """The moments of left_i * conj(right_i + w_i) over the probes with these numbers.

        They are computed block by block, because all of these vectors would need as much memory
        as the sketch.
        """
        space, (L, L_small), (R, R_small) = self.space, left, right
        moments, begin, xp = Moments(self.space), 0, self.space.xp
        for W in self.sketch.probe_blocks():
            end = begin + W.shape[1]
            mine = (index >= begin) & (index < end)
            if mine.any():
                if mine.sum() < W.shape[1]:
                    W = xp.take(W, _as_index(space, index[mine] - begin), axis=1)
                tested = R @ space.asarray(R_small[:, mine]) + W
                block = (L @ space.asarray(L_small[:, mine])) * conjugate(xp, tested)
                moments.add(xp.astype(real_part(xp, block), self.space.dtype))
            begin = end
        return moments

    @abstractmethod
    def summary(self) -> Summary: ...


@final
class XDiag(LeaveOneOutDiagonal):
    """XDiag: two matvecs per probe, and 2 num_probes vectors, Q and A^H Q.

    A Hermitian operator needs no adjoint. The probes of the sketch show whether it is one.
    """

    method = "xdiag"
    cost = 2
    saved = ("sketch", "AQ", "units", "is_hermitian")
    stored_as: ClassVar = {"AQ": "products"}

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.AQ = Columns(self.space)
        self.is_hermitian = True
        """Whether A Q is A^H Q."""

    def reserve(self, num_probes: int) -> None:
        super().reserve(num_probes)
        self.AQ.reserve(num_probes)

    def advance(self, start: int, count: int) -> None:
        fresh = self.sketch.extend(count)
        if not self.AQ.count:
            self.is_hermitian = self._seems_hermitian()
        if fresh.shape[1] and self.is_hermitian:
            self.AQ.append(self.A(fresh))
        elif fresh.shape[1]:
            self.AQ.append(self.A.operator.rmatmat(fresh))
            self.A.num_matvecs += fresh.shape[1]

    def _seems_hermitian(self) -> bool:
        """Whether W^H A W is Hermitian for the first probes, or there is no adjoint to use.

        The diagonal of a complex operator that is not Hermitian is complex, and not estimated here.
        """
        space, xp = self.space, self.space.xp
        if is_complex(xp, space.dtype):
            return True
        W = next(iter(self.sketch.probe_blocks()))
        H = to_host(space.gram(W, self.sketch.Q)) @ self.sketch.R[:, : W.shape[1]]
        try:
            require_hermitian_core(self.A, H)
        except NotHermitianError:
            return not has_adjoint(self.A.operator)
        return True

    def summary(self) -> Summary:
        space, Q, R = self.space, self.sketch.Q, self.sketch.R
        Z = self.AQ.block
        H = to_host(space.gram(Q, Z))
        if self.is_hermitian:
            require_hermitian_core(self.A, H)
        self.A.require_finite(H)
        common = row_dots(space, Q, Z)
        probes = self.sketch.independent_probes()
        R = R[:, probes.numbers]
        S = left_out_directions(R)
        if not S.any():  # Q spans the whole range of A, so that P A = A
            return self._summary(common, space.xp.zeros_like(common), R.shape[1] - 1)
        scale = np.sum(S.conj() * R, axis=0)  # s_i^H r_i
        return self._averaged(common, probes, (Q, S * scale), (Z, -S / scale.conj()))


@final
class XNysDiag(LeaveOneOutDiagonal):
    """XNysDiag for positive semidefinite operators: one matvec and one vector per probe."""

    method = "xnysdiag"
    cost = 1
    saved = ("sketch", "units")

    def advance(self, start: int, count: int) -> None:
        self.sketch.extend(count)

    def summary(self) -> Summary:
        space, probes = self.space, self.sketch.independent_probes()
        small = nystrom_matrices(self.sketch).of_probes(probes.numbers)
        ny = nystrom(small, space.size, epsilon(space.xp, space.dtype))
        Q, roots = self.sketch.Q, ny.Y @ ny.roots
        common = self.space.zeros(1)[:, 0] - ny.nu
        for part in slices(roots.shape[1], self.plan.block_size):
            F = Q @ space.asarray(roots[:, part])
            common = common + row_dots(space, F, F)
        if not ny.full_rank:
            freedom = small.R.shape[1] - 1
            # The missed trace, divided equally among the entries. One probe can vanish by chance.
            share = ny.missed / space.size if freedom else math.inf
            stderr = space.xp.full_like(real_part(space.xp, common), share)
            return self._summary(common, stderr, freedom)
        weight = np.diag(ny.inverse).real
        Z = ny.Y @ ny.inverse  # z_i = Q Z_i / sqrt(weight_i), and z_i^H w_i = 1 / sqrt(weight_i)
        return self._averaged(common, probes, (Q, Z / weight), (Q, -Z))


def _as_index(space: VectorSpace, index: HostArray) -> Array:
    return space.xp.asarray(index, dtype=space.xp.int64, device=space.device)
