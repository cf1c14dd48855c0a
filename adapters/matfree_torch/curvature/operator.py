"""The common base of all second derivatives of a network: names, blocks, a symmetry check."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, final

import numpy as np
import torch
from torch import Tensor

from matfree import NonFiniteError, Operator, VectorSpace, space_like
from matfree.arrays import to_host
from matfree.probes import CHECK
from matfree.protocol import Array
from matfree_torch.autograd.graph_memory import columns_at_once
from matfree_torch.autograd.precision import TF32_EPS
from matfree_torch.derivative_checks import faulty_modules
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.space import ShardedSpace
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Patterns

_HALF_PRECISION = 1e-4  # float16 and bfloat16 have a larger eps, float32 a smaller one


class CurvatureOperator(Operator):
    r"""A symmetric operator on the concatenation of named tensors.

    Two random sign vectors u and w are appended to the first block that the operator is applied
    to, and

    .. math::

        | u^T A w - w^T A u | \, / \, \| A w \|

    is compared with the rounding error. An operation whose second derivative torch computes
    wrongly shows up as asymmetry.

    Parameters
    ----------
    objective : the loss over the data
    layout : the tensors that vectors consist of
    """

    positive_semidefinite = False
    """Whether x^T A x >= 0 for every x, by construction."""

    def __init__(self, objective: Objective, layout: Layout) -> None:
        super().__init__(_layout_space(layout, layout.dtype, objective.communicator))
        self.objective, self.layout = objective, layout
        self._inspected = self._verified = False
        self._noise, self._structure = 0.0, objective.state.structure
        self._max_columns: int | None = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} can neither be copied nor pickled, because it holds a model, data and "
            "graphs of this process; build it again where it is needed."
        )

    @property
    def noise(self) -> float:
        """The measured relative rounding error of matvecs, |u^T A w - w^T A u| / ||A w||.

        u and w are random sign vectors that do not depend on any seed. In half precision, and
        on a GPU with TF32 allowed, it is the root mean square over three pairs. The rounding
        error of A w has about this relative size. No eigenvalue or trace can be computed more
        accurately, and tolerances below it cannot be met.
        """
        self.inspect()
        return self._noise

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the flat vector."""
        return self.layout.names

    @property
    def partition(self) -> dict[str, slice]:
        """The slice of each tensor in the flat vector."""
        return dict(self.layout.partition)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a flat vector (n,), or its local rows if vectors are sharded."""
        return self.layout.flatten(tensors)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (n,), or its local rows if vectors are sharded, as tensors by name."""
        return self.layout.unflatten(vector)

    def block(self, rows: Patterns, columns: Patterns | None = None) -> BlockOperator:
        """The block A[rows, columns] of the tensors with these names.

        Parameters
        ----------
        rows, columns : str or sequence of str
            Names, or patterns with the wildcards ``*`` and ``?``. Without ``columns``, the block
            is the principal submatrix A[rows, rows].

        Returns
        -------
        BlockOperator
            Rectangular if the two differ, with the adjoint A[columns, rows].

        Raises
        ------
        ValueError
            A pattern matches no name.

        Cost
        ----
        A matvec costs at most as much as one with the whole operator: only the operations that
        connect the columns with the rows are differentiated.

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
    def _apply_block(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        """A[rows, columns] @ X, where X and the result consist of local shards."""

    @final
    def apply_block(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        """A[rows, columns] @ X, where X and the result consist of rows of vectors.

        It may be called in any autograd mode, and errors of torch name the faulty module.
        """
        # While a device computes the hash of the weights, the matvecs already run. They are
        # repeated in the rare case that the hash differs.
        result = self._apply_in_steps(X, rows, columns, wait=False)
        if self.objective.following.values_are_current():
            return result
        return self._apply_in_steps(X, rows, columns, wait=True)

    def _apply_in_steps(self, X: Tensor, rows: Layout, columns: Layout, *, wait: bool) -> Tensor:
        with self.differentiating(wait=wait):
            step = self._columns_per_pass(X.shape[1])
            # Autograd cannot save tensors that were created in inference mode; it can save clones.
            results = [
                rows.to_rows(
                    self._apply_block(columns.to_shards(X[:, j : j + step].clone()), rows, columns)
                )
                for j in range(0, max(X.shape[1], 1), step)
            ]
            return results[0] if len(results) == 1 else torch.cat(results, dim=1)

    def _columns_per_pass(self, k: int) -> int:
        """The number of columns to process at once, of a block of k.

        It is limited only if the rows of vectors are sharded and parameters are whole, because
        then whole vectors are assembled in every process.
        """
        redistribution = self.layout.redistribution
        if redistribution is None or not redistribution.unsharded:
            return max(k, 1)
        if self._max_columns is None:
            self._max_columns = columns_at_once(
                redistribution.communicator, self.layout.size, self.dtype
            )
        return self._max_columns

    @contextlib.contextmanager
    def differentiating(self, *, wait: bool = True) -> Iterator[None]:
        """The autograd mode and precision that second derivatives need, at the present weights."""
        self.objective.follow(wait=wait)
        if self._structure != self.objective.state.structure:  # other modules, not yet inspected
            self._structure = self.objective.state.structure
            self._inspected = self._verified = False
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.objective.precision(),
            faulty_modules.explain_missing_derivatives(self.objective),
        ):
            yield

    def _apply(self, X: Array) -> Array:
        if self._inspected:
            Y = self.apply_block(X, self.layout, self.layout)
            if self._inspected:  # still, because no module was exchanged
                return Y
        # Two probes form one pair, three probes form three.
        count = 2 if self._eps() < _HALF_PRECISION else 3
        probes = self.space.probes(count, seed=0, stream=CHECK)
        Y = self.apply_block(torch.cat((X, probes), dim=1), self.layout, self.layout)
        self._inspect(probes, Y[:, -count:])
        return Y[:, :-count]

    _apply_adjoint = _apply

    def inspect(self) -> None:
        """Check finiteness and symmetry now, unless an earlier matvec has done so."""
        if not self._inspected:
            self._apply(self.space.zeros(0))

    def _inspect(self, probes: Tensor, images: Tensor) -> None:
        """Raise an error if A is not finite or not symmetric on these probes."""
        norms = to_host(self.space.norms(images))
        if not all(norm < float("inf") for norm in norms):
            raise NonFiniteError(
                "the first Hessian-vector product contains NaN or infinity; check that the loss "
                "and the inputs are finite, and look for operations with infinite curvature, such "
                "as a square root at 0."
            )
        forms = to_host(self.space.gram(probes, images))  # w_i^T A w_j
        gaps = abs(forms - forms.T)[np.triu_indices(len(forms), 1)]
        size = norms.max()
        if size > 0:
            self._noise = float(np.sqrt(np.mean(gaps**2)) / size)
        if gaps.max() > faulty_modules.symmetry_limit(self._eps()) * size:
            # Each process searches its own data for the faulty module. An error in one process
            # is raised in all of them.
            self.objective.run_checked(lambda: self._report_asymmetry(float(gaps.max() / size)))
        self._inspected = True

    def _report_asymmetry(self, defect: float) -> None:
        """Raise an error or warn, because the operator is not symmetric."""
        faulty_modules.report_asymmetry(self.objective, defect)

    def _eps(self) -> float:
        """The largest eps among the precisions that matvecs are computed in."""
        eps = max(torch.finfo(x.dtype).eps for x in self.layout.tensors)
        single = eps == torch.finfo(torch.float32).eps
        tf32 = self.objective.allow_tf32 and self.layout.device.type == "cuda"
        return TF32_EPS if single and tf32 else eps

    def _precision_note(self) -> list[str]:
        """For ``repr``: whether TF32 is allowed, and the measured noise."""
        if not self.objective.allow_tf32:
            return []
        noise = f"{self._noise:.0e}" if self._inspected else "not yet measured"
        return [f"TF32 allowed, noise {noise}"]


@final
class BlockOperator(Operator):
    """A block of a curvature operator, returned by its ``block`` method.

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
        space = _layout_space(rows, whole.dtype, peers)
        super().__init__(
            space, space if rows is columns else _layout_space(columns, whole.dtype, peers)
        )
        self.whole, self.rows, self.columns = whole, rows, columns

    def _apply(self, X: Array) -> Array:
        self.whole.inspect()
        return self.whole.apply_block(X, self.rows, self.columns)

    def _apply_adjoint(self, X: Array) -> Array:
        self.whole.inspect()
        return self.whole.apply_block(X, self.columns, self.rows)

    def __repr__(self) -> str:
        sides = [_name_range(self.rows)]
        sides += [_name_range(self.columns)] * (self.rows is not self.columns)
        m, n = self.shape
        return f"<{m}x{n} block {' x '.join(sides)} of {self.whole!r}>"


def _layout_space(layout: Layout, dtype: torch.dtype, peers: Communicator | None) -> VectorSpace:
    """The space of the layout's vectors: sharded if the layout redistributes rows."""
    if layout.redistribution is not None:
        counts = [len(rows) for rows in layout.redistribution.row_ranges]
        return ShardedSpace(layout.redistribution.communicator, counts, dtype)
    example = torch.empty(0, dtype=dtype, device=layout.device)
    return space_like(example, layout.size, peers=peers)


def _name_range(layout: Layout) -> str:
    first, last = layout.names[0], layout.names[-1]
    return first if first == last else f"{first} ... {last}"
