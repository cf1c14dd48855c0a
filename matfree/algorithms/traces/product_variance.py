r"""The variance of quadratic forms x = w^H B w of a Hermitian B, from the products B w.

Every probe yields a deviation whose mean square is the variance of x; see
``matfree.results.intervals``. For random signs the deviations are those of d = Re conj(w) * (B w),
whose mean is the diagonal, from the mean of the earlier probes (Welford's update, which is
unbiased):

.. math:: \delta_i^2 = 2 \, \frac{i - 1}{i} \, \Bigl\| d_i -
    \frac{1}{i - 1} \sum_{j < i} d_j \Bigr\|^2, \qquad i \ge 2.

The identity needs a Hermitian B. The numbers w_0^H (B w_j) and (B w_0)^H w_j of the probes are
compared: those of an operator that is not Hermitian differ, and its variance is computed from the
scatter of the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import numpy as np

from matfree.arguments import slices
from matfree.arrays import conjugate, is_complex, real_part, to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_GRAM_WIDTH = 64  # columns whose Gram matrix is computed at once
_ASYMMETRY = 1e-6  # of the squares; far above rounding, and an error of the variance of that size


@final
class SymmetryCheck:
    """The comparison of numbers that are equal if B is Hermitian, for every probe and the first.

    A single pair says little: those of a sparse operator and of random signs may agree by chance.

    Parameters
    ----------
    space : VectorSpace
    rows : int
        The number of local rows of the vectors.
    """

    saved = ("count", "image", "asymmetry")
    by_row: ClassVar = {"image": 0}

    def __init__(self, space: VectorSpace, rows: int) -> None:
        self.space, self._none = space, space.zeros(0)[:rows, :]
        self.count = 0
        self.image: Array = self._none
        """B w_0, (rows, 1), unless an asymmetry was found; else (rows, 0)."""
        self.asymmetry: HostArray = np.zeros(2)
        """The sums of |w_0^H B w_j - (B w_0)^H w_j|^2, and of the squares of both."""

    @property
    def passed(self) -> bool:
        """Whether no asymmetry was found so far."""
        return bool(self.asymmetry[0] <= _ASYMMETRY * self.asymmetry[1])

    @property
    def hermitian(self) -> bool:
        """Whether B was found to be Hermitian, which takes two probes."""
        return self.passed and self.count > 1

    def sums(self, first: Callable[[], Array], W: Array, Z: Array) -> list[Array]:
        """The local sums to be compared, (1, b) each; none if an asymmetry was found.

        Parameters
        ----------
        first : function
            Returns the first of all probes, (rows, 1).
        W : (rows, b), the next probes
        Z : (rows, b), B W
        """
        if not self.passed:
            return []
        if not self.count:
            self.image = self.space.xp.asarray(Z[:, :1], copy=True)
        w = first() if self.count else W[:, :1]
        return [self.space.partial_gram(w, Z), self.space.partial_gram(self.image, W)]

    def add(self, numbers: HostArray, num_probes: int) -> None:
        """Compare the sums, (2, b), unless there are none."""
        skipped = max(0, 1 - self.count)
        self.count += num_probes
        if not len(numbers):
            return
        forwards, backwards = numbers[:, skipped:]
        total = np.sum(np.abs(forwards) ** 2 + np.abs(backwards) ** 2)
        found = np.asarray([np.sum(np.abs(forwards - backwards) ** 2), total])
        self.asymmetry = self.asymmetry + found
        if not self.passed:
            self.image = self._none


@final
class ProductVariance:
    """The deviations of the quadratic forms of successive probes.

    Parameters
    ----------
    space : VectorSpace
    kind : str
        The distribution of the probes.
    rows : int, optional
        The number of local rows of the vectors, if they are those of a diagonal block.
    checked : bool
        Whether to find out if B is Hermitian.
    """

    saved = ("check", "count", "mean")
    by_row: ClassVar = {"mean": 0}

    def __init__(
        self, space: VectorSpace, kind: str, rows: int | None = None, *, checked: bool = True
    ) -> None:
        rows = len(space.rows) if rows is None else rows
        self.space, self.kind, self.checked = space, kind, checked
        self.check = SymmetryCheck(space, rows)
        self.count = 0
        self.mean: Array = real_part(space.xp, space.zeros(0)[:rows, :])
        """The mean of d over the probes so far, (rows, 1), for random signs; else (rows, 0)."""

    @property
    def discrete(self) -> bool:
        """Whether the diagonal does not contribute to the variance."""
        return self.kind in ("rademacher", "z4")

    def add(self, first: Callable[[], Array], W: Array, Z: Array) -> tuple[HostArray, HostArray]:
        """The quadratic forms of a block of probes, and their deviations.

        Parameters
        ----------
        first, W, Z
            As for ``SymmetryCheck.sums``.

        Returns
        -------
        (b,) and (b,); the deviations are one fewer for the first block of random signs.
        """
        if W.shape[1] > _GRAM_WIDTH:
            columns = list(slices(W.shape[1], _GRAM_WIDTH))
            parts = [self.add(first, W[:, part], Z[:, part]) for part in columns]
            return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
        space, xp = self.space, self.space.xp
        forms = space.partial_dots(W, Z)[None, :]
        compared = self.check.sums(first, W, Z) if self.checked else []
        E = self._distances(W, Z, forms)
        rest = space.partial_gram(E, E) if self.discrete else space.partial_dots(E, E)[None, :]
        numbers = to_host(space.all_reduce(xp.concat([forms, *compared, rest], axis=0)))
        self.check.add(numbers[1 : 1 + len(compared)], W.shape[1])
        squares, scale = numbers[1 + len(compared) :].real, 2.0
        if self.discrete:
            squares = _welford(squares, self.count)
        else:
            squares, scale = squares[0], 1.0 if is_complex(xp, space.dtype) else 2.0
        self.count += W.shape[1]
        return numbers[0], np.sqrt(scale * np.maximum(squares, 0.0))

    def _distances(self, W: Array, Z: Array, forms: Array) -> Array:
        """What the deviations are the norms of; for random signs, before the mean is updated."""
        space, xp = self.space, self.space.xp
        if self.kind == "gaussian":
            return Z
        if self.kind == "sphere":
            x = space.all_reduce(forms)[0, :] / space.size
            return Z - W * xp.astype(x, W.dtype)[None, :]
        D = real_part(xp, conjugate(xp, W) * Z)
        # The distances from the first probe have no cancellation if the diagonal dominates.
        center = self.mean if self.count else xp.asarray(D[:, :1], copy=True)
        D = D - center
        self.mean = center + xp.sum(D, axis=1, keepdims=True) / (self.count + D.shape[1])
        return D


@final
class BlockVariances:
    """The deviations of the quadratic forms of diagonal blocks.

    Parameters
    ----------
    space : VectorSpace
    kind : str
        The distribution of the probes.
    parts : list of slice
        The local rows of every block, which do not overlap.
    joint : bool
        Whether the quadratic forms w_b^H (A w)_b contain the off-diagonal blocks. Their variance
        is at most the mean square of the deviations then.
    """

    saved = ("check", "counts", "means", "images", "asymmetries")
    by_row: ClassVar = {"means": 0, "images": 0}

    def __init__(self, space: VectorSpace, kind: str, parts: list[slice], *, joint: bool) -> None:
        self.space, self.parts, self.joint = space, parts, joint
        self.check = SymmetryCheck(space, len(space.rows))
        # A part of a vector on a sphere is not on a sphere, but the Gaussian bound holds for it.
        kind = "gaussian" if kind == "sphere" else kind
        self.blocks = [
            ProductVariance(space, kind, part.stop - part.start, checked=not joint)
            for part in parts
        ]

    def hermitian(self, b: int) -> bool:
        """Whether the deviations of a block may be used."""
        return self.check.hermitian if self.joint else self.blocks[b].check.hermitian

    def compare(self, first: Callable[[], Array], W: Array, Z: Array) -> None:
        """Compare the products with whole probes; see ``SymmetryCheck.sums``."""
        sums = self.check.sums(first, W, Z)
        total = self.space.all_reduce(self.space.xp.concat(sums, axis=0)) if sums else None
        self.check.add(np.zeros((0, 0)) if total is None else to_host(total), W.shape[1])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of probes of every block."""
        return tuple(block.count for block in self.blocks)

    @counts.setter
    def counts(self, stored: tuple[int, ...]) -> None:
        for block, count in zip(self.blocks, stored, strict=True):
            block.count = block.check.count = count

    @property
    def asymmetries(self) -> HostArray:
        """The asymmetries of all blocks, (blocks, 2)."""
        return np.stack([block.check.asymmetry for block in self.blocks])

    @asymmetries.setter
    def asymmetries(self, stored: HostArray) -> None:
        for block, asymmetry in zip(self.blocks, stored, strict=True):
            block.check.asymmetry = asymmetry

    @property
    def means(self) -> Array:
        """The means of all blocks in one vector, (rows, 1)."""
        return self._joined([block.mean for block in self.blocks])

    @means.setter
    def means(self, stored: Array) -> None:
        for block, part in zip(self.blocks, self.parts, strict=True):
            if block.count and block.discrete:
                block.mean = real_part(self.space.xp, stored[part, :])

    @property
    def images(self) -> Array:
        """The images of the first probes of all blocks in one vector, (rows, 1)."""
        return self._joined([block.check.image for block in self.blocks])

    @images.setter
    def images(self, stored: Array) -> None:
        for block, part in zip(self.blocks, self.parts, strict=True):
            if block.count:
                block.check.image = stored[part, :]

    def _joined(self, columns: list[Array]) -> Array:
        whole = self.space.zeros(1)
        for part, column in zip(self.parts, columns, strict=True):
            if column.shape[1]:
                whole[part, :] = self.space.xp.astype(column, whole.dtype)
        return whole


def _welford(gram: HostArray, before: int) -> HostArray:
    """The squares of the distances of columns from the mean of all earlier columns.

    Parameters
    ----------
    gram : (b, b)
        The Gram matrix of the columns, relative to the mean of the columns before the block (to
        the first column if there are none).
    before : int
        The number of columns before the block.
    """
    b = len(gram)
    first = 0 if before else 1
    counts = np.arange(before + first, before + b, dtype=np.float64)
    earlier = np.triu(np.ones((b, b)), 1)[:, first:] / counts
    M = np.eye(b)[:, first:] - earlier
    return np.asarray(np.sum(M * (gram @ M), axis=0) * counts / (counts + 1))
