"""CuPy's arrays, sparse matrices and LinearOperators, in both directions.

Importing this package loads neither CuPy nor CUDA: ``matfree.aslinearoperator`` finds it by
its entry point when it first meets a CuPy object, and CuPy is then there already.
"""

from matfree import probes
from matfree_cupy.convert import adapt, to_cupyx
from matfree_cupy.signs import rademacher

probes.replace_signs("cupy", rademacher)

__all__ = ["adapt", "to_cupyx"]
