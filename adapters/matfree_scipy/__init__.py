"""SciPy's sparse matrices and LinearOperators, in both directions.

Importing this package is not needed to use SciPy objects: ``matfree.aslinearoperator``
finds it by its entry point when it first meets one.
"""

from matfree_scipy.convert import adapt, to_scipy

__all__ = ["adapt", "to_scipy"]
