"""PyTorch tensors as matrices, and the curvature of networks as operators.

``matfree.aslinearoperator`` finds this package by its entry point when it first meets a
tensor; ``hessian`` is imported from here.
"""

from matfree_torch.hessian import HessianOperator, hessian
from matfree_torch.tensors import adapt

__all__ = ["HessianOperator", "adapt", "hessian"]
