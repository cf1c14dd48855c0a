"""Lanczos vectors as they are stored, and the orthogonalisation against them."""

from __future__ import annotations

from typing import ClassVar, final

from matfree.arrays import half_type, is_complex, slabs
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_SCALE = 2.0**15
"""What vectors are multiplied by on their way to 16 bits.

The entries of a unit vector are at most 1 and typically 1 / sqrt(n). Scaled so they stay below
float16's largest number, 65504, whatever the vector, and keep all of its 11 bits down to 2e-9.
One power of two for all vectors: scaling is exact, and the same on every process.
"""

_RECENT = 2  # vectors that the recurrence still has in full precision


@final
class Bases:
    """The Lanczos vectors of every start vector, each in one contiguous (steps, n) array.

    Rows make the projections matrix-vector products over contiguous memory; every other
    layout is several times slower.
    """

    saved = ("filled",)
    by_row: ClassVar = {"filled": 1}

    def __init__(self, space: VectorSpace, V: Array, num_steps: int) -> None:
        self.space = space
        shape = (num_steps, len(space.rows))
        self.rows = [
            space.xp.empty(shape, dtype=space.dtype, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    @property
    def filled(self) -> tuple[Array, ...]:
        """The vectors so far, (steps, n) per start vector."""
        return tuple(basis[: self.size, :] for basis in self.rows)

    @filled.setter
    def filled(self, parts: tuple[Array, ...]) -> None:
        for basis, part in zip(self.rows, parts, strict=True):
            self.size = part.shape[0]
            basis[: self.size, :] = self.space.asarray(part)

    def append(self, V: Array, step: int) -> None:
        """Take in the vectors of a step."""
        self.size = step + 1
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


@final
class HalfBases:
    """The Lanczos vectors in scaled 16-bit numbers, for orthogonalisation only.

    What is stored is v + e with ||e|| <= 2^-11 ||v||, and a vector w orthogonal to it is
    orthogonal to v up to |e^H w|: the largest entry of V V^H - I was 1e-4 for n from 400 to
    20,000. That is semi-orthogonality (Simon 1984): enough to keep converged eigenvalues from
    coming back, and T is off by the square of it, as long as each vector is orthogonal to the
    two before it in full precision. Those two the recurrence still has, so they are left to
    it. A complex vector is stored as two real ones.

    References
    ----------
    H. D. Simon (1984), The Lanczos algorithm with partial reorthogonalization,
    doi:10.1090/S0025-5718-1984-0725988-X.
    """

    saved = ("filled",)
    by_row: ClassVar = {"filled": 2}

    def __init__(self, space: VectorSpace, V: Array, num_steps: int) -> None:
        half = half_type(space.xp)
        if half is None:
            raise ValueError(
                f"reorthogonalize='half' needs 16-bit numbers, which {space.xp.__name__} does not "
                "have; pass reorthogonalize='full' or 'none'."
            )
        self.space, self.half = space, half
        self.complex = is_complex(space.xp, space.dtype)
        shape = (2 if self.complex else 1, num_steps, len(space.rows))
        self.rows = [
            space.xp.empty(shape, dtype=half, device=space.device) for _ in range(V.shape[1])
        ]
        self.append(V, 0)

    @property
    def filled(self) -> tuple[Array, ...]:
        """The vectors so far, (1 or 2 parts, steps, n) per start vector."""
        return tuple(basis[:, : self.size, :] for basis in self.rows)

    @filled.setter
    def filled(self, parts: tuple[Array, ...]) -> None:
        for basis, part in zip(self.rows, parts, strict=True):
            self.size = part.shape[1]
            basis[:, : self.size, :] = self.space.xp.asarray(
                part, dtype=self.half, device=self.space.device
            )

    def append(self, V: Array, step: int) -> None:
        """Take in the vectors of a step."""
        xp, self.size = self.space.xp, step + 1
        for p, basis in enumerate(self.rows):
            v = V[:, p] * _SCALE
            basis[0, step, :] = xp.astype(xp.real(v) if self.complex else v, self.half)
            if self.complex:
                basis[1, step, :] = xp.astype(xp.imag(v), self.half)

    def project_out(self, R: Array) -> Array:
        """R -= its components along all but the last two vectors, in two passes; their lengths."""
        xp, lengths = self.space.xp, []
        if self.size <= _RECENT:
            return xp.zeros_like(self.space.norms(R))
        for p, basis in enumerate(self.rows):
            orthogonal_to = [self._project_out_once(basis, R, p) for _ in range(2)]
            lengths.append(xp.sqrt(xp.sum(xp.abs(orthogonal_to[0] + orthogonal_to[1]) ** 2)))
        return xp.stack(lengths)

    def _project_out_once(self, basis: Array, R: Array, p: int) -> Array:
        space, xp = self.space, self.space.xp
        stored, w = basis[:, : self.size - _RECENT, :], R[:, p : p + 1]
        components = space.gram(stored[0, :, :].T, w)
        if self.complex:
            components = components - 1j * space.gram(stored[1, :, :].T, w)
        components = components / _SCALE
        coefficients = xp.astype(components / _SCALE, space.dtype)
        bytes_a_row = stored.shape[0] * stored.shape[1] * xp.finfo(space.dtype).bits // 8
        for rows in slabs(R.shape[0], bytes_a_row, space.device):  # converted back in the cache
            V = xp.astype(stored[0, :, rows], space.dtype)
            if self.complex:
                V = V + 1j * xp.astype(stored[1, :, rows], space.dtype)
            R[rows, p : p + 1] -= V.T @ coefficients
        return components
