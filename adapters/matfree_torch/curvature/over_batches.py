r"""Curvature operators in the parameters of a network, as sums over batches.

.. math::

    A = \frac{1}{d} \sum_b w_b \, A_b + \mathrm{diag}(\lambda),

with the weights w_b and the divisor d of the loss, see
:class:`matfree_torch.objective.objective.Objective`, the curvature A_b of one batch, and weight
decay lambda.
"""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from matfree_torch.curvature.sharded import ShardableCurvature
from matfree_torch.distributed.checksums import Checksum
from matfree_torch.distributed.dtensors import full_tensor, local_tensor
from matfree_torch.hvp.graph_cache import CachePolicy, GraphCache, GraphMemory
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import loss_options
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.entries import real_view
from matfree_torch.vectors.layout import Layout, match_names
from matfree_torch.vectors.parameters import Parameters

WeightDecay: TypeAlias = float | Mapping[str, float]
"""lambda for all parameters, or by patterns of names, of which later ones take precedence."""

_SAME_LOSS = "pass the same loss with the same options, such as reduction=, in all of them"
_SAME_PARAMETERS = "pass the same model, params= and weight_decay= in all of them"


class ParameterCurvature(ShardableCurvature):
    """A second derivative of a loss in the flat vector of parameters, summed over batches.

    A subclass defines what is prepared from a batch and how it is applied to a vector.

    Parameters
    ----------
    objective : the loss over the data
    parameters : the parameters that vectors consist of
    weight_decay : lambda of the term lambda / 2 ||theta||^2
    strategy : the name of the strategy for matvecs
    cache_policy : what is kept of the batches between matvecs
    """

    title: str
    """The name of the matrix, for ``repr``."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay,
        strategy: str,
        cache_policy: CachePolicy,
    ) -> None:
        super().__init__(objective, parameters)
        self.model, self.batches = objective.model, objective.batches
        self.parameters = parameters
        self.strategy = strategy
        self.weight_decay = _decay_by_name(parameters, weight_decay)
        self._last_prepared: Batch | None = None
        self._graphs = GraphCache(objective, parameters, cache_policy)
        if objective.communicator is not None:
            # Processes with other parameters would sum entries that do not belong together.
            crc = zlib.crc32(repr((parameters.names, self.weight_decay)).encode())
            checksum = float(parameters.size), float(crc)
            options = float(zlib.crc32(loss_options(objective.loss).encode()))
            objective.communicator.require_same(
                Checksum("parameters or weight decay", _SAME_PARAMETERS, checksum),
                Checksum("losses or options of the loss", _SAME_LOSS, (options,)),
            )

    @abstractmethod
    def _prepare(self, batch: Batch) -> Any:
        """Compute what matvecs need from a batch, such as the graph of the gradient."""

    def _prepare_checked(self, batch: Batch) -> Any:
        """Prepare a batch, after checking that processes that compute it together agree on it."""
        self.objective.require_same_batch(batch)
        self._last_prepared = None if self._verified else batch
        return self._prepare(batch)

    def _verify(self, batch: Batch, prepared: Any, v: dict[str, Tensor], product: Tensor) -> None:
        """Raise OperatorError if torch lost terms of the product of a batch's curvature with v."""

    @abstractmethod
    def _multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        """The curvature of the batch applied to v, one tensor for each tensor of the layout."""

    @property
    def memory(self) -> GraphMemory:
        """The memory that the graphs of the batches take.

        Unless a matvec has been computed before, the first batch is measured now.
        """
        with self.differentiating(), self.parameters.differentiable():
            return self._graphs.memory(self._prepare_checked)

    def loss(self, direction: Tensor | None = None) -> float:
        """The loss over the same data, at the parameters or a step away from them.

        Parameters
        ----------
        direction : (n,) tensor, optional
            A step in the flat vector of parameters; zero by default. The model itself does not
            change.

        Returns
        -------
        float
            The loss with the weights of the operator and with weight decay. It is the function
            whose second derivative a Hessian is.

        Raises
        ------
        ValueError
            The direction is not of shape (n,).
        NonFiniteError
            The loss of a batch is NaN or infinite.

        Cost
        ----
        One pass over the data, forward only.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> H = hessian(model, torch.nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> round(H.loss(2 - model.weight.detach()[0]), 6)
        4.0
        """
        self.objective.follow()
        steps, given = dict[str, Tensor](), None
        if direction is not None:
            steps = self.layout.unflatten(direction)
            given = self.layout.pack(list(steps.values()), self.dtype)[:, None]

        def local_sum() -> Tensor:
            total = torch.zeros(1, dtype=torch.float64, device=self.layout.device)
            with self.objective.isolated():
                for batch in self.batches:
                    with self.layout.moved(steps):
                        # float64, because many batches of float32 values are summed
                        total += batch.weight * self.objective.loss_of(batch)
            return total

        like = torch.zeros(1, dtype=torch.float64, device=self.layout.device)
        communicator = self.objective.communicator
        reduce = None if communicator is None else communicator.all_reduce
        total = float(self.objective.average(local_sum, like, given, reduce))
        return total + self.decay_term(steps)

    def decay_term(self, steps: Mapping[str, Tensor]) -> float:
        """Half the sum of lambda theta^2 over the parameters, moved by these steps."""
        total = 0.0
        for name, p in zip(self.names, self.layout.tensors, strict=True):
            if name in self.weight_decay:
                moved = p.detach() + steps[name] if name in steps else p.detach()
                square = full_tensor(real_view(moved).to(torch.float64).square().sum())
                total += self.weight_decay[name] / 2 * float(square)
        return total

    def gradient(self) -> Tensor:
        """The gradient of the loss, (n,), over the same data, with weight decay."""
        self.objective.follow()

        def local_sum() -> Tensor:
            total = self._zeros(self.layout)
            with self.parameters.differentiable(), self.objective.isolated():
                for batch in self.batches:
                    with self.objective.isolated():  # with the random numbers of matvecs
                        gradients = self.objective.gradients(batch, self.layout.tensors)
                    total += batch.weight * self.layout.pack(gradients)
            return total

        total = self.objective.average(local_sum, self._zeros(self.layout))
        for name, p in zip(self.names, self.layout.tensors, strict=True):
            decay = self.weight_decay.get(name, 0.0)
            shard = real_view(local_tensor(p.detach()))
            total[self.layout.local_slices[name]] += decay * shard.reshape(-1)
        return self.layout.to_rows(total[:, None])[:, 0]

    def _apply_block(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        block = self.apply_without_decay(X, rows, columns)
        for name in set(rows.names) & set(columns.names) & set(self.weight_decay):
            source, target = columns.local_slices[name], rows.local_slices[name]
            block[target] += self.weight_decay[name] * X[source]
        return block

    def apply_without_decay(
        self,
        X: Tensor,
        rows: Layout,
        columns: Layout,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        zero = X.new_zeros((rows.local_size, X.shape[1]))

        def local_sum() -> Tensor:
            # Contiguous columns are faster to update than those of a block in C order.
            Y = [self._zeros(rows) for _ in X.T]

            def add(weight: float, prepared: Any) -> None:
                whole = rows is columns is self.layout
                for y, x in zip(Y, X.T, strict=True):
                    v = dict(zip(columns.names, columns.unpack(x), strict=True))
                    product = rows.pack(self._multiply(prepared, v, rows), self.dtype)
                    if self._last_prepared is not None and whole and y is Y[-1]:
                        self._verify(self._last_prepared, prepared, v, product)
                        self._verified, self._last_prepared = True, None
                    y += weight * product
                    del product  # it would be in memory while the next one is computed

            with self.parameters.differentiable():
                self._graphs.visit(self._prepare_checked, add)
            return torch.stack(Y, dim=1) if Y else zero

        return self.objective.average(local_sum, zero, X if reduce is None else None, reduce)

    def _zeros(self, layout: Layout) -> Tensor:
        return torch.zeros(layout.local_size, dtype=self.dtype, device=layout.device)

    def for_each_batch(self, visitor: Callable[[Batch, Callable[[Tensor], Tensor]], None]) -> None:
        """Call the visitor with each batch and the function X -> A_b X, without weight decay."""
        self.objective.require_single_process("the curvature of single batches")
        with (
            self.differentiating(),
            self.parameters.differentiable(),
            self.objective.isolated(),
        ):
            for batch in self.batches:
                visitor(batch, partial(self._multiply_columns, self._prepare_checked(batch)))

    def _multiply_columns(self, prepared: Any, X: Tensor) -> Tensor:
        columns = []
        for x in X.T:
            v = dict(zip(self.names, self.layout.unpack(x), strict=True))
            columns.append(self.layout.pack(self._multiply(prepared, v, self.layout), self.dtype))
        return torch.stack(columns, dim=1)

    def __repr__(self) -> str:
        n = self.layout.size
        notes = [f"strategy {self.strategy!r}: {self._graphs.describe()}"]
        notes += ["positive semidefinite"] * self.positive_semidefinite
        notes += ["weight decay"] * bool(self.weight_decay)
        notes += self._precision_note()
        source = type(getattr(self.model, "function", self.model))
        return f"<{n}x{n} {self.title} of {source.__name__}, {', '.join(notes)}, {self.dtype}>"


def _decay_by_name(layout: Layout, given: WeightDecay) -> dict[str, float]:
    """Lambda by the name of the parameter, without the parameters for which it is zero."""
    decay: dict[str, float] = {}
    by_pattern = given if isinstance(given, Mapping) else {"*": given}
    for pattern, value in by_pattern.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative: got {value!r}.")
        decay |= match_names(dict.fromkeys(layout.names, float(value)), pattern, "parameter")
    return {name: value for name, value in decay.items() if value}
