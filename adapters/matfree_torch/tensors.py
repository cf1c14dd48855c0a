"""Tensors as explicit matrices, on the device where they lie."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor

from matfree import DenseOperator, Operator, OperatorError, space_like
from matfree.protocol import Array


def adapt(obj: Any) -> Operator | None:
    """A 2-D tensor, dense or sparse, as an operator; None for other objects of torch's.

    Parameters
    ----------
    obj : Tensor
        Dense or sparse CSR tensors are used as they are, detached from any graph; COO, CSC
        and blocked formats are converted to CSR, which copies them.

    Returns
    -------
    Operator or None

    Raises
    ------
    OperatorError
        The tensor does not have 2 dimensions.

    Examples
    --------
    >>> import matfree as mf, torch
    >>> mf.trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])), num_probes=1, seed=0).value
    6.0
    """
    if not isinstance(obj, Tensor):
        return None
    if obj.ndim != 2:
        raise OperatorError(f"a matrix has 2 dimensions: got a tensor of shape {tuple(obj.shape)}.")
    tensor = obj.detach()
    return DenseOperator(tensor) if tensor.layout == torch.strided else SparseTensor(tensor)


@final
class SparseTensor(Operator):
    """A sparse tensor. The transpose is made when the adjoint is first used.

    Parameters
    ----------
    matrix : (m, n) sparse tensor
    """

    def __init__(self, matrix: Tensor) -> None:
        with warnings.catch_warnings():  # torch calls its CSR format a beta once a process
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            if matrix.layout in (torch.sparse_bsr, torch.sparse_bsc):
                # Torch has no way from blocks to rows but by coordinates.
                matrix = matrix.to_sparse(layout=torch.sparse_coo)
            csr = matrix.to_sparse_csr()
        example = csr.values()
        super().__init__(space_like(example, matrix.shape[0]), space_like(example, matrix.shape[1]))
        self.matrix = csr.to(self.dtype)
        self._transpose: Tensor | None = None

    def _apply(self, X: Array) -> Array:
        return self.matrix @ X

    def _apply_adjoint(self, X: Array) -> Array:
        if self._transpose is None:
            self._transpose = self.matrix.transpose(0, 1).to_sparse_csr()
        # Torch conjugates by a mark on the tensor, which its sparse products need not know.
        return (self._transpose @ X.conj().resolve_conj()).conj().resolve_conj()
