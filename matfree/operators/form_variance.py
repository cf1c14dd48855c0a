r"""The variance of quadratic forms w^H A w over random probes w, from the entries of A.

For a Hermitian A it is

.. math:: c \Bigl(\|A\|_F^2 - \sum_i |a_{ii}|^2\Bigr) \ \text{(signs, roots of unity)}, \quad
    c \, \|A\|_F^2 \ \text{(Gaussian)}, \quad
    \frac{c \, n}{n + c} \Bigl(\|A\|_F^2 - \frac{|\operatorname{tr} A|^2}{n}\Bigr)
    \ \text{(sphere)}

with c = 2 for real probes and c = 1 for complex ones. Otherwise it is an upper bound, because the
norm of the Hermitian part of A is at most that of A.
"""

from __future__ import annotations

from matfree.arrays import is_complex, real_part, slabs, widest
from matfree.protocol import Array, ProbeKind
from matfree.spaces import VectorSpace

_LEAST_OFF_DIAGONAL = 1e-6  # of the squares; fewer would be lost in rounding


def sum_of_squares(space: VectorSpace, entries: Array) -> float:
    """The sum of the squares of the absolute entries of an array with two dimensions."""
    xp, total = space.xp, 0.0
    wide = widest(xp, space.dtype, space.device)
    for slab in slabs(entries.shape[0], entries.shape[1] * xp.finfo(wide).bits // 8, space.device):
        column = xp.reshape(entries[slab, :], (-1, 1))
        total += float(real_part(xp, space.partial_gram(column, column))[0, 0])
    return total


def variance_of_forms(
    space: VectorSpace, squares: float, diagonal: Array, kind: ProbeKind
) -> float | None:
    """The variance of w^H A w, or None if A is almost diagonal, or not square.

    Parameters
    ----------
    space : VectorSpace
    squares : float
        ||A||_F^2.
    diagonal : (n, 1)
    kind : str
        The distribution of the probes.
    """
    xp, n = space.xp, space.size
    inside = sum_of_squares(space, diagonal)
    if squares - inside <= _LEAST_OFF_DIAGONAL * squares:
        return None
    c = 2.0 if kind == "rademacher" or not is_complex(xp, space.dtype) else 1.0
    if kind == "gaussian":
        return c * squares
    if kind == "sphere":
        trace = complex(space.partial_gram(xp.ones_like(diagonal), diagonal)[0, 0])
        return float(c * (squares - abs(trace) ** 2 / n) * n / (n + c))
    return c * (squares - inside)
