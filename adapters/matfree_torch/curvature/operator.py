"""What every second derivative of a network has in common: names, blocks, and a look at itself."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from matfree import NonFiniteError, Operator, VectorSpace, space_like
from matfree.arrays import to_host
from matfree.probes import CHECK
from matfree.protocol import Array
from matfree_torch.autograd.graph_memory import columns_at_once
from matfree_torch.autograd.precision import TF32_EPS
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.space import ShardedSpace
from matfree_torch.objective import faulty_modules
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Patterns

_HALF = 1e-4  # eps of half precision is 1e-3 and 8e-3, of single precision 1e-7


class CurvatureOperator(Operator):
    """A symmetric operator on named tensors laid end to end.

    Its first product carries two probes u, w of its own, from which |u^T A w - w^T A u| tells
    whether the second derivatives are right: an operation that torch differentiates twice
    wrongly shows as asymmetry.

    Parameters
    ----------
    objective : the loss over the data
    layout : the tensors that vectors consist of
    """

    positive_semidefinite = False
    """Whether x^T A x >= 0 for every x, by construction."""

    def __init__(self, objective: Objective, layout: Layout) -> None:
        super().__init__(_space(layout, layout.dtype, objective.communicator))
        self.objective, self.layout = objective, layout
        self._inspected, self._noise = False, 0.0
        self._fitting: int | None = None

    @property
    def noise(self) -> float:
        """The relative rounding error of products: |u^T A w - w^T A u| / ||A w||, measured.

        Signs u and w of the operator's own; in half precision, and where TF32 is allowed on a
        GPU, the root mean square over three pairs. What rounding adds to A w has about this
        size, and no eigenvalue, trace or tolerance is known better.
        """
        self.inspect()
        return self._noise

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the flat vector."""
        return self.layout.names

    @property
    def partition(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector."""
        return dict(self.layout.partition)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a flat vector (n,), or the rows of it that are here."""
        return self.layout.flatten(tensors)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (n,), or the rows of it that are here, as tensors by name."""
        return self.layout.unflatten(vector)

    def block(self, rows: Patterns, columns: Patterns | None = None) -> BlockOperator:
        """A[rows, columns], chosen by names; the principal submatrix without ``columns``.

        Parameters
        ----------
        rows, columns : str or sequence of str
            Names, or patterns with ``*`` and ``?``.

        Returns
        -------
        BlockOperator
            Rectangular where the two differ, with its adjoint A[columns, rows].

        Raises
        ------
        ValueError
            A pattern matches no name.

        Cost
        ----
        A product costs at most one of the whole operator: only what lies between the columns
        and the rows is differentiated.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> model = torch.nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> H = hessian(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1)))
        >>> H.block("weight", "bias").to_dense()
        tensor([[1.],
                [2.]])
        """
        chosen = self.layout.subset(rows)
        other = chosen if columns is None else self.layout.subset(columns)
        return BlockOperator(self, chosen, other)

    @abstractmethod
    def _between(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        """A[rows, columns] @ X, both of them as the parts of tensors that are here."""

    @final
    def between(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        """The same whatever mode the caller is in, and with torch's refusals explained."""
        with self.differentiating():
            step = self._columns_at_once(X.shape[1])
            parts = [
                rows.to_rows(
                    self._between(columns.to_shards(X[:, j : j + step].clone()), rows, columns)
                )
                for j in range(0, max(X.shape[1], 1), step)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _columns_at_once(self, k: int) -> int:
        """Columns of a block of k for which whole vectors fit, where these are made at all."""
        redistribution = self.layout.redistribution
        if redistribution is None or not redistribution.unsharded:
            return max(k, 1)
        if self._fitting is None:
            self._fitting = columns_at_once(
                redistribution.communicator, self.layout.size, self.dtype
            )
        return self._fitting

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[None]:
        """Torch in the mode that products need."""
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.objective.precision(),
            faulty_modules.explain_missing_derivatives(self.objective),
        ):
            yield

    def _apply(self, X: Array) -> Array:
        if self._inspected:
            return self.between(X, self.layout, self.layout)
        count = 2 if self._eps() < _HALF else 3  # pairs: 1, or 3
        probes = self.space.probes(count, seed=0, stream=CHECK)
        Y = self.between(torch.cat((X, probes), dim=1), self.layout, self.layout)
        self._inspect(probes, Y[:, -count:])
        return Y[:, :-count]

    _apply_adjoint = _apply

    def inspect(self) -> None:
        """Make the first product, if none was made: its own two probes and nothing else."""
        if not self._inspected:
            self._apply(self.space.zeros(0))

    def _inspect(self, probes: Tensor, products: Tensor) -> None:
        """Refuse what is not finite, or not symmetric."""
        lengths = to_host(self.space.norms(products))
        if not all(length < float("inf") for length in lengths):
            raise NonFiniteError(
                "the first Hessian-vector product holds NaN or infinity: look at the loss itself, "
                "at inputs that are not finite, and at operations with infinite curvature "
                "(a square root at 0)."
            )
        crossed = to_host(self.space.gram(probes, products))
        gaps = abs(crossed - crossed.T)[np.triu_indices(len(crossed), 1)]
        size = lengths.max()
        if size > 0:
            self._noise = float(np.sqrt(np.mean(gaps**2)) / size)
        if gaps.max() > faulty_modules.symmetry_limit(self._eps()) * size:
            # Each process looks for the culprit in its own data: one that finds it ends all.
            self.objective.run_checked(lambda: self._refuse_asymmetry(float(gaps.max() / size)))
        self._inspected = True

    def _refuse_asymmetry(self, defect: float) -> None:
        """Raise or warn: the operator is not symmetric."""
        faulty_modules.report_asymmetry(self.objective, defect)

    def _eps(self) -> float:
        """The coarsest eps that products are computed with."""
        eps = max(torch.finfo(x.dtype).eps for x in self.layout.tensors)
        single = eps == torch.finfo(torch.float32).eps
        tf32 = self.objective.allow_tf32 and self.layout.device.type == "cuda"
        return TF32_EPS if single and tf32 else eps

    def _precision_note(self) -> list[str]:
        """For ``repr``: that TF32 is allowed, and the noise that products were seen to have."""
        if not self.objective.allow_tf32:
            return []
        return [
            "TF32 allowed, noise " + (f"{self._noise:.0e}" if self._inspected else "not yet seen")
        ]


@final
class BlockOperator(Operator):
    """Some rows and columns of a curvature; made by its ``block``.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import hessian
    >>> model = torch.nn.Linear(2, 1)
    >>> H = hessian(model, torch.nn.MSELoss(), (torch.eye(2), torch.ones(2, 1)))
    >>> H.block("weight").shape, H.block("weight", "bias").H.shape
    ((2, 2), (1, 2))
    """

    def __init__(self, whole: CurvatureOperator, rows: Layout, columns: Layout) -> None:
        peers = whole.objective.communicator
        space = _space(rows, whole.dtype, peers)
        super().__init__(space, space if rows is columns else _space(columns, whole.dtype, peers))
        self.whole, self.rows, self.columns = whole, rows, columns

    def _apply(self, X: Array) -> Array:
        self.whole.inspect()
        return self.whole.between(X, self.rows, self.columns)

    def _apply_adjoint(self, X: Array) -> Array:
        self.whole.inspect()
        return self.whole.between(X, self.columns, self.rows)

    def __repr__(self) -> str:
        sides = [_named(self.rows)] + [_named(self.columns)] * (self.rows is not self.columns)
        m, n = self.shape
        return f"<{m}x{n} block {' x '.join(sides)} of {self.whole!r}>"


def _space(layout: Layout, dtype: torch.dtype, peers: Communicator | None) -> VectorSpace:
    if layout.redistribution is not None:
        counts = [len(rows) for rows in layout.redistribution.row_ranges]
        return ShardedSpace(layout.redistribution.communicator, counts, dtype)
    example = torch.empty(0, dtype=dtype, device=layout.device)
    return space_like(example, layout.size, peers=peers)


def _named(layout: Layout) -> str:
    first, last = layout.names[0], layout.names[-1]
    return first if first == last else f"{first} ... {last}"
