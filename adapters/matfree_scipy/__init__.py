"""Conversion from SciPy's sparse matrices and LinearOperators to matfree operators, and back.

SciPy objects can be used without importing this package: ``matfree.aslinearoperator`` finds it by
its entry point when the first SciPy object is passed to it.

It may import ``matfree`` and its public modules, but not ``matfree.algorithms`` or another adapter.
"""

from matfree_scipy.convert import adapt, to_scipy

__all__ = ["adapt", "to_scipy"]
