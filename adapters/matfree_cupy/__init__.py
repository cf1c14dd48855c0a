"""Conversion from CuPy's arrays, sparse matrices and LinearOperators to operators, and back.

Importing this package loads neither CuPy nor CUDA: ``matfree.aslinearoperator`` finds it by its
entry point when the first CuPy object is passed to it, and CuPy has then been imported already.

It may import ``matfree`` and its public modules, but not ``matfree.algorithms`` or another adapter.
"""

from matfree import probes
from matfree_cupy.convert import adapt, to_cupyx
from matfree_cupy.signs import rademacher_on_device

probes.replace_signs("cupy", rademacher_on_device)

__all__ = ["adapt", "to_cupyx"]
