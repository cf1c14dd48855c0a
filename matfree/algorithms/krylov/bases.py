"""Storage of Lanczos vectors, in full precision or in 16 bits, and orthogonalization."""

from __future__ import annotations

from typing import ClassVar, final

from matfree.arrays import half_type, is_complex, slabs
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_HALF_SCALE = 2.0**15
"""The factor by which vectors are multiplied before they are rounded to 16 bits.

The entries of a unit vector are at most 1 and typically 1 / sqrt(n). Multiplied by this factor,
they are below 65504, the largest float16 number, and entries down to 2e-9 keep all 11 bits. A
power of two for all vectors makes the scaling exact and the same on every process.
"""

_NUM_RECENT = 2  # Lanczos vectors that the recurrence keeps in full precision


@final
class Bases:
    """The Lanczos vectors of every start vector, in one contiguous (steps, rows) array each.

    With one Lanczos vector per row of the array, a projection reads contiguous memory. Every
    other layout is several times slower.

    Parameters
    ----------
    space : VectorSpace
    V : (rows, k)
        The first Lanczos vector of every start vector.
    num_steps : int
        The number of Lanczos vectors for which memory is allocated.
    """

    saved = ("stored",)
    stored_as: ClassVar = {"stored": "filled"}
    by_row: ClassVar = {"filled": 1}

    def __init__(self, space: VectorSpace, V: Array, num_steps: int) -> None:
        self.space = space
        shape = (num_steps, len(space.rows))
        self.arrays = [
            space.xp.empty(shape, dtype=space.dtype, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    @property
    def stored(self) -> tuple[Array, ...]:
        """The vectors so far, (steps, rows) per start vector."""
        return tuple(basis[: self.size, :] for basis in self.arrays)

    @stored.setter
    def stored(self, blocks: tuple[Array, ...]) -> None:
        for basis, block in zip(self.arrays, blocks, strict=True):
            self.size = block.shape[0]
            basis[: self.size, :] = self.space.asarray(block)

    def append(self, V: Array, step: int) -> None:
        """Store the Lanczos vectors V, (rows, k), of a step."""
        self.size = step + 1
        for p, basis in enumerate(self.arrays):
            basis[step, :] = V[:, p]

    def trimmed(self, alphas: tuple[HostArray, ...]) -> tuple[Array, ...]:
        """The basis of every start vector, shortened to as many vectors as it has alphas."""
        return tuple(b[: len(a), :] for b, a in zip(self.arrays, alphas, strict=True))

    def orthogonalize(self, W: Array, step: int, beta: Array | None) -> tuple[Array, Array, Array]:
        """Orthogonalize W = A V against the bases by two passes of classical Gram-Schmidt.

        Parameters
        ----------
        W : (rows, k)
        step : int
            The index of the step whose Lanczos vectors are V, the newest.
        beta : (k,) or None
            The off-diagonal entries of T for the step before; None in the first step.

        Returns
        -------
        R : (rows, k), the remainder
        alpha : (k,), the components along V
        defect : (k,)
            The asymmetry of A, at no additional cost. If A is Hermitian, the component along
            the vector before V is beta, and those along earlier vectors are rounding errors.
        """
        xp, space = self.space.xp, self.space
        R, alphas, defects = space.zeros(len(self.arrays)), [], []
        for p, basis in enumerate(self.arrays):
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


@final
class HalfBases:
    r"""The Lanczos vectors in scaled 16-bit numbers, for orthogonalization only.

    The stored vector is v + e with ||e|| <= 2^-11 ||v||. A vector w that is orthogonal to it is
    orthogonal to v up to |e^H w|, and the largest entry of V V^H - I was 1e-4 for n from 400 to
    20,000. This is semi-orthogonality (Simon 1984). It suffices to prevent copies of converged
    eigenvalues, and the error of T is of the order of its square,

    .. math:: \|\Delta T\| = O\bigl(\|V V^H - I\|^2\bigr) \, \|A\|,

    provided that every vector is orthogonal to the two before it in full precision. The
    recurrence still has those two and orthogonalizes against them.

    Parameters
    ----------
    space : VectorSpace
    V : (rows, k)
        The first Lanczos vector of every start vector.
    num_steps : int
        The number of Lanczos vectors for which memory is allocated.

    Raises
    ------
    ValueError
        The array library has no 16-bit numbers.

    References
    ----------
    H. D. Simon (1984), The Lanczos algorithm with partial reorthogonalization,
    doi:10.1090/S0025-5718-1984-0725988-X.
    """

    saved = ("stored",)
    stored_as: ClassVar = {"stored": "filled"}
    by_row: ClassVar = {"filled": 2}

    def __init__(self, space: VectorSpace, V: Array, num_steps: int) -> None:
        half = half_type(space.xp)
        if half is None:
            raise ValueError(
                f"reorthogonalize='half' needs 16-bit numbers, which {space.xp.__name__} does not "
                "provide; pass reorthogonalize='full' or 'none'."
            )
        self.space, self.half = space, half
        self.complex = is_complex(space.xp, space.dtype)
        shape = (2 if self.complex else 1, num_steps, len(space.rows))
        self.arrays = [
            space.xp.empty(shape, dtype=half, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    @property
    def stored(self) -> tuple[Array, ...]:
        """The vectors so far, (1, steps, rows) per start vector, or (2, steps, rows) if complex."""
        return tuple(basis[:, : self.size, :] for basis in self.arrays)

    @stored.setter
    def stored(self, blocks: tuple[Array, ...]) -> None:
        for basis, block in zip(self.arrays, blocks, strict=True):
            self.size = block.shape[1]
            basis[:, : self.size, :] = self.space.xp.asarray(
                block, dtype=self.half, device=self.space.device
            )

    def append(self, V: Array, step: int) -> None:
        """Store the Lanczos vectors V, (rows, k), of a step."""
        xp, self.size = self.space.xp, step + 1
        for p, basis in enumerate(self.arrays):
            v = V[:, p] * _HALF_SCALE
            basis[0, step, :] = xp.astype(xp.real(v) if self.complex else v, self.half)
            if self.complex:
                basis[1, step, :] = xp.astype(xp.imag(v), self.half)

    def project_out(self, R: Array) -> Array:
        """Project all but the last two vectors out of R in place, in two passes.

        Returns
        -------
        (k,), the norms of the components that were subtracted.
        """
        xp, lengths = self.space.xp, []
        if self.size <= _NUM_RECENT:
            return xp.zeros_like(self.space.norms(R))
        for p, basis in enumerate(self.arrays):
            components = [self._project_out_once(basis, R, p) for _ in range(2)]
            lengths.append(xp.sqrt(xp.sum(xp.abs(components[0] + components[1]) ** 2)))
        return xp.stack(lengths)

    def _project_out_once(self, basis: Array, R: Array, p: int) -> Array:
        """Subtract the components of column p along one basis; return the components."""
        space, xp = self.space, self.space.xp
        stored, w = basis[:, : self.size - _NUM_RECENT, :], R[:, p : p + 1]
        components = space.gram(stored[0, :, :].T, w)
        if self.complex:
            components = components - 1j * space.gram(stored[1, :, :].T, w)
        components = components / _HALF_SCALE
        coefficients = xp.astype(components / _HALF_SCALE, space.dtype)
        bytes_per_row = stored.shape[0] * stored.shape[1] * xp.finfo(space.dtype).bits // 8
        for rows in slabs(R.shape[0], bytes_per_row, space.device):
            # Converted back in slabs that fit the cache: a copy of the basis would cost the
            # memory that 16 bits save.
            V = xp.astype(stored[0, :, rows], space.dtype)
            if self.complex:
                V = V + 1j * xp.astype(stored[1, :, rows], space.dtype)
            R[rows, p : p + 1] -= V.T @ coefficients
        return components
