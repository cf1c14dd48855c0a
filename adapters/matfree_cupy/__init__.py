"""CuPy's arrays, sparse matrices and LinearOperators, in both directions.

Importing this package loads neither CuPy nor CUDA: ``matfree.aslinearoperator`` finds it by
its entry point when it first meets a CuPy object, and CuPy is then there already.
"""

from matfree_cupy.convert import adapt, to_cupyx

__all__ = ["adapt", "to_cupyx"]
