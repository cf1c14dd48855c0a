"""The choice among the strategies for multiplying a CSR matrix."""

from __future__ import annotations

from typing import Any, final

from matfree.protocol import Array
from matfree_scipy.compiled_products import CompiledProducts, compiled_products
from matfree_scipy.sliced_products import sliced_products


@final
class CsrStrategies:
    """The kernels of a SciPy CSR matrix: the first strategy that suits a block, or SciPy's own.

    Parameters
    ----------
    matrix : csr_array, of a real or complex floating-point type
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix
        candidates = (compiled_products(matrix), sliced_products(matrix))
        self._strategies = [strategy for strategy in candidates if strategy is not None]
        """The strategies that are faster for wide blocks come before those for narrow blocks."""
        self.fused = bool(self._strategies)
        by_numba = any(isinstance(strategy, CompiledProducts) for strategy in self._strategies)
        self.description = "products compiled by numba" if by_numba else ""

    def matmat(self, X: Array) -> Array:
        """A @ X for a block (n, k), in C order."""
        Y = self._first("matmat", X)
        return self._matrix @ X if Y is None else Y

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """One step of the recurrence, whose remainder overwrites ``previous``."""
        return self._first("lanczos_step", V, previous, beta, scale)  # type: ignore[no-any-return]

    def quadratic_forms(self, X: Array) -> Array | None:
        """The numbers x_j^H A x_j for the columns of a block, without storing A @ X."""
        return self._first("quadratic_forms", X)

    def _first(self, name: str, *blocks: Array) -> Any:
        """The result of the first strategy that suits the blocks; None if there is none."""
        results = (getattr(strategy, name)(*blocks) for strategy in self._strategies)
        return next((result for result in results if result is not None), None)
