"""The vectors that a function of an operator is applied to, as start vectors of recurrences.

Zero columns need no recurrence. Complex columns with a real operator are two real ones, because
f(A) (x + i y) = f(A) x + i f(A) y. Columns are multiplied by powers of 2, so that their squares are
in the range of floating-point numbers.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from matfree.algorithms.krylov.lanczos import start_block
from matfree.arrays import is_complex, to_host
from matfree.operators.base import complex_space
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


@final
class ArgumentVectors:
    """The columns of B, and the start vectors into which they are divided.

    Parameters
    ----------
    space : VectorSpace
    B : (rows,) or (rows, k), real or complex

    Raises
    ------
    ValueError
        B has another shape, or contains NaN or infinity.
    """

    def __init__(self, space: VectorSpace, B: Any) -> None:
        self.space, xp = space, space.xp
        self.is_vector = np.ndim(B) == 1 if isinstance(B, list | tuple) else B_ndim(B) == 1
        parts = _real_parts(space, B) if not is_complex(xp, space.dtype) else None
        blocks = [start_block(space, part, "B") for part in parts or [B]]
        self.num_columns, self.is_complex = int(blocks[0].shape[1]), len(blocks) == 2
        block = xp.concat(blocks, axis=1) if self.is_complex else blocks[0]
        exponents = self._exponents(block)
        factors = space.asarray(np.asarray([2.0**-e for e in exponents]))
        block = block * factors[None, :]
        lengths = to_host(space.norms(block))
        if not np.all(np.isfinite(lengths)):
            column = int(np.flatnonzero(~np.isfinite(lengths))[0]) % self.num_columns
            raise ValueError(f"B contains NaN or infinity in column {column}; pass finite vectors.")
        self.indices = np.flatnonzero(lengths > 0)
        """The numbers of the columns of [Re B, Im B], or of B, that are not zero."""
        self.lengths = lengths[self.indices] * 2.0 ** np.asarray(exponents)[self.indices]
        """Their norms."""
        select = xp.asarray(self.indices, device=space.device)
        self.start = xp.take(block, select, axis=1)
        """These columns, (rows, r), up to factors."""

    def _exponents(self, block: Array) -> list[int]:
        """The binary exponents of the largest entries of the columns."""
        space, xp = self.space, self.space.xp
        sizes = np.zeros(block.shape[1])
        if block.shape[0]:
            sizes = to_host(xp.max(xp.abs(block), axis=0)).astype(np.float64)
        if space.is_sharded:  # all processes have to use the same factors
            sizes = np.real(to_host(space.all_reduce(space.asarray(sizes))))
        most = 1020 if xp.finfo(space.dtype).bits > 32 else 120
        regular = (sizes > 0) & np.isfinite(sizes)
        return [
            max(-most, min(most, math.frexp(size)[1])) if ok else 0
            for size, ok in zip(sizes, regular, strict=True)
        ]

    def assemble(self, X: list[Array], t_shape: tuple[int, ...], complex_f: bool) -> Array:
        """The values for all columns of B, of the shape of ``FunctionValues.values``.

        Parameters
        ----------
        X : per start vector (rows, T), or (rows, 2 T) with real and imaginary parts
        t_shape : () or (T,)
        complex_f : bool
            Whether f has complex values.
        """
        space, xp = self.space, self.space.xp
        num_times = t_shape[0] if t_shape else 1
        wide = space if not (complex_f or self.is_complex) else complex_space(space)
        columns = [wide.zeros(num_times) for _ in range(self.num_columns)]
        for index, x in zip(self.indices.tolist(), X, strict=True):
            part = xp.astype(x[:, :num_times], wide.dtype)
            if x.shape[1] > num_times:
                part = part + 1j * xp.astype(x[:, num_times:], wide.dtype)
            column, imaginary = index % self.num_columns, index >= self.num_columns
            columns[column] = columns[column] + (1j * part if imaginary else part)
        values = xp.permute_dims(xp.stack(columns, axis=2), (1, 0, 2))  # (T, rows, k)
        values = values[:, :, 0] if self.is_vector else values
        return values if t_shape else xp.asarray(values[0, ...], copy=True)

    def per_column(self, numbers: HostArray) -> HostArray:
        """The root sum of squares over the start vectors of each column, (T, k).

        Parameters
        ----------
        numbers : (r, T), one number per start vector and function
        """
        total = np.zeros((numbers.shape[1], self.num_columns))
        for index, row in zip(self.indices.tolist(), numbers, strict=True):
            column = total[:, index % self.num_columns]
            np.hypot(column, row, out=column)
        return total


def B_ndim(B: Any) -> int:
    """The number of dimensions of an array, 0 for anything else."""
    return int(getattr(B, "ndim", 0))


def _real_parts(space: VectorSpace, B: Any) -> list[Array] | None:
    """[Re B, Im B] for a complex B; None otherwise."""
    if isinstance(B, list | tuple):
        B = np.asarray(B)
    if not hasattr(B, "ndim"):
        return None
    block = space.xp.asarray(B, device=space.device)
    if not is_complex(space.xp, block.dtype):
        return None
    return [space.xp.real(block), space.xp.imag(block)]
