"""Dask arrays as operators: the matrix on a cluster or in many files, the vectors in this process.

Importing this package does not load Dask: ``matfree.aslinearoperator`` finds it by its entry point
when the first Dask array is passed to it, and Dask has then been imported already.

It may import ``matfree`` and its public modules, but not ``matfree.algorithms`` or another adapter.
"""

from matfree_dask.convert import DaskOperator, adapt

__all__ = ["DaskOperator", "adapt"]
