"""Tensors as explicit matrices, on the device that holds them."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor

from matfree import DenseOperator, Operator, OperatorError, space_like
from matfree.operators.csr import require_indices
from matfree.protocol import Array


def adapt(obj: Any) -> Operator | None:
    """Return an operator for a dense or sparse matrix, and None for other objects of torch.

    Parameters
    ----------
    obj : Tensor
        A dense or CSR tensor is used without a copy and detached from its autograd graph. The
        formats COO, CSC, BSR and BSC are converted to CSR, which copies them.

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
        raise OperatorError(
            f"a matrix has 2 dimensions: got a tensor of shape {tuple(obj.shape)}; reshape it."
        )
    tensor = obj.detach()
    return DenseOperator(tensor) if tensor.layout == torch.strided else SparseTensor(tensor)


def _require_valid_indices(matrix: Tensor) -> None:
    """Refuse indices out of range, which torch does not check when it builds a tensor."""
    sides = [(0, "row"), (1, "column")]
    if matrix.layout == torch.sparse_coo:
        parts = [(matrix._indices()[side], *sides[side]) for side in (0, 1)]
    elif matrix.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [(matrix.col_indices(), *sides[1])]
    else:
        parts = [(matrix.row_indices(), *sides[0])]
    blocked = matrix.layout in (torch.sparse_bsr, torch.sparse_bsc)
    for indices, side, what in parts:
        size = matrix.shape[side] // (matrix.values().shape[1 + side] if blocked else 1)
        require_indices(indices, size, what)


@final
class SparseTensor(Operator):
    """A sparse tensor as an operator, in CSR format.

    The transpose is stored as well, from the first use of the adjoint.

    Parameters
    ----------
    matrix : (m, n) sparse tensor
    """

    def __init__(self, matrix: Tensor) -> None:
        _require_valid_indices(matrix)
        with warnings.catch_warnings():  # one per process
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            if matrix.layout in (torch.sparse_bsr, torch.sparse_bsc):
                # torch converts blocked formats to CSR only by way of COO.
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
        # torch conjugates lazily, by a flag that sparse products may ignore.
        return (self._transpose @ X.conj().resolve_conj()).conj().resolve_conj()
