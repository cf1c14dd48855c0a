"""Dask arrays as operators: the matrix on a cluster or in many files, the vectors here.

Importing this package does not load Dask: ``matfree.aslinearoperator`` finds it by its
entry point when it first meets a Dask array, and Dask is then there already.
"""

from matfree_dask.convert import DaskOperator, adapt

__all__ = ["DaskOperator", "adapt"]
