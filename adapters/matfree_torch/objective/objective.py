r"""A loss over data as a function of a model's parameters, evaluated without side effects.

Curvature operators are derivatives of

.. math::

    L(\theta) = \frac{1}{W} \sum_b w_b \, \ell(f(x_b; \theta), y_b), \qquad W = \sum_b w_b ,

a sum over the batches of all processes. The objective evaluates one batch at a time, in a context
that restores the model, and reduces what the batches contribute over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matfree import OperatorError
from matfree.probes import resolve_seed
from matfree.protocol import Seed, T
from matfree_torch.autograd.composites import Substituted
from matfree_torch.autograd.precision import full_precision
from matfree_torch.data.reduction import Reduction, observed
from matfree_torch.data.structure import call_arguments
from matfree_torch.distributed.checksums import checksum_of_vectors
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import mesh_communicator
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Batch, Batches, Loss, Normalizer
from matfree_torch.objective.following import Following
from matfree_torch.objective.fsdp import FullySharded, Unsharded
from matfree_torch.objective.model_calls import (
    FunctionModule,
    require_finite_loss,
    scalar_loss,
    without_graph,
)
from matfree_torch.objective.model_checksums import require_same_batch, require_same_divisors
from matfree_torch.objective.process_groups import ProcessGroups
from matfree_torch.vectors.layout import Patterns
from matfree_torch.vectors.parameters import Parameters

_REMEDY_ARGUMENTS = "pass the same arguments in all processes, including an explicit seed="
_NO_BATCH = "no process holds a batch with a weight above 0; pass loaders that are not exhausted"


@final
class Objective(ProcessGroups):
    """The loss of a model over data, as a weighted mean or a sum over batches.

    Parameters
    ----------
    model, loss, data, normalizer, batch, ordered : as for :class:`Batches`
    allow_tf32 : bool
        Whether torch's settings of TF32 are left unchanged.
    communicator : Communicator, optional
        The processes among which the data are divided.
    sharding : Unsharded or FullySharded, optional
        The owner of a model to which ``fully_shard`` was applied.

    Raises
    ------
    TypeError
        The loss is not callable, or as for :class:`Batches`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        data: Any,
        normalizer: Normalizer | None = None,
        *,
        batch: bool | None = None,
        ordered: bool = False,
        allow_tf32: bool = False,
        communicator: Communicator | None = None,
        sharding: Unsharded | FullySharded | None = None,
    ) -> None:
        if loss is not None and not callable(loss):
            raise TypeError(
                "loss must be a function loss(outputs, targets), or None for a model that returns "
                f"outputs.loss: got {type(loss).__name__}."
            )
        self.model, self.loss, self.allow_tf32 = model, loss, allow_tf32
        self._unsharded = sharding if isinstance(sharding, Unsharded) else None
        self._fully_sharded = sharding if isinstance(sharding, FullySharded) else None
        super().__init__(
            communicator if sharding is None else sharding.communicator,
            mesh_communicator(model.parameters()) if self._fully_sharded is None else None,
        )
        self._fsdp_communicator = None if sharding is None else sharding.communicator
        self.batches = Batches(
            data,
            loss,
            normalizer,
            model=model,
            observe=self._reduction if self._fully_sharded is None else None,
            batch=batch,
            ordered=ordered,
            share=self.communicator is not None,
        )
        shared = self.communicator is not None
        self.following = Following(model, loss, self.batches, sharding, distributed=shared)
        self.state = self.following.state
        self.last_value: Tensor | None = None
        """The last finite loss of a batch."""
        self._random_state = isolation.get_random_state(self.state.modules)
        if self.communicator is not None:
            with self.isolated():
                require_same_divisors(self.communicator, self.batches, sharding, self._reduction)

    def isolated(self) -> AbstractContextManager[None]:
        """A context in which the model may be evaluated without side effects."""
        named, found = dict(self.state.named_modules()), self.state.found
        context = isolation.isolated_modules(
            named, found, self._random_state, allow_tf32=self.allow_tf32
        )
        return self.following.sharded(context)

    def parameters(self, patterns: Patterns | None) -> Parameters:
        """The model's parameters whose names match the patterns; all of them for None."""
        with self.following.sharded():
            chosen = Parameters(self.model, patterns, self._fsdp_communicator)
        self.following.parameters = chosen
        return chosen

    def follow(self, *, wait: bool = True) -> None:
        """Adopt changes of the model, the loss and data in memory, see :meth:`Following.update`.

        It is called before every block of matvecs, and before everything else that is computed.
        With a communicator, the next reduction raises an error in all processes.
        """
        self.following.update(wait=wait)

    def precision(self) -> AbstractContextManager[None]:
        """A context in which float32 products are computed in float32, unless TF32 is allowed."""
        return nullcontext() if self.allow_tf32 else full_precision()

    def outputs(self, batch: Batch) -> Any:
        """The outputs of the model for a batch."""
        args, kwargs = call_arguments(self.model, batch.inputs)
        return self.model(*args, **kwargs)

    def value_at(self, batch: Batch, tensors: dict[str, Tensor]) -> Tensor:
        """The loss of a batch with other tensors in place of parameters and buffers.

        They also replace the parameters on which the loss depends directly, as a penalty does.
        """
        args, kwargs = call_arguments(self.model, batch.inputs)
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with Substituted({id(own[name]): x for name, x in tensors.items()}):
            if isinstance(self.model, FunctionModule):
                outputs = self.model.evaluate(tensors, args, kwargs)
            else:
                outputs = functional_call(self.model, tensors, args, kwargs)
            return self.value(outputs, batch.targets)

    def loss_of(self, batch: Batch, buffers: Any = None, *, finite: bool = True) -> float:
        """The loss of a batch with some buffers replaced; NonFiniteError unless it is finite."""

        def evaluate() -> float:
            with self.isolated():
                for name, buffer in (buffers or {}).items():
                    self.model.get_buffer(name).copy_(buffer)  # a copy, which is dropped on exit
                value = self.value(self.outputs(batch), batch.targets)
                return float((require_finite_loss(value) if finite else value).detach())

        return without_graph(evaluate)

    def _reduction(self, batch: Batch) -> Reduction:
        """The denominator of the mean that the loss takes over a batch."""

        def evaluate() -> Reduction:
            with self.isolated():
                return observed(self.value, self.outputs(batch), batch.targets)[1]

        return without_graph(evaluate)

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch as a differentiable scalar."""
        return scalar_loss(self.loss, outputs, targets)

    def finite_value(self, outputs: Any, targets: Any) -> Tensor:
        """The same, after a check that it is finite; NonFiniteError otherwise."""
        value = require_finite_loss(self.value(outputs, targets))
        self.last_value = value.detach()
        return value

    def average(
        self,
        local: Callable[[], Tensor],
        like: Tensor,
        vectors: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The weighted mean (or the sum, if the loss is one) over the batches of all processes.

        Parameters
        ----------
        local : function
            Computes the weighted sum over the batches of this process.
        like : Tensor
            A tensor of its shape, data type and device.
        vectors : (n, k) Tensor, optional
            The vectors that ``local`` multiplies, which must be the same in all processes.
        reduce : function, optional
            As for :meth:`Communicator.reduce_checked`.
        """
        if self.communicator is None:
            return local() / self.batches.divisor
        checksums = self.state.checksums()
        if self._fully_sharded is not None:  # the backward pass has reduced the local sum already
            reduce, like = reduce or (lambda x: x), like.new_zeros(like.shape[1:])
        elif vectors is not None:
            checksums += (checksum_of_vectors("vectors", _REMEDY_ARGUMENTS, vectors),)
        total, weight = self.communicator.reduce_checked(
            lambda: (self._followed(local), self.batches.total or 0.0), like, checksums, reduce
        )
        if not self.batches.averaged:
            return total
        if weight == 0:
            raise ValueError(_NO_BATCH)
        return total / weight

    def run_checked(self, local: Callable[[], T]) -> T:
        """Call ``local``, which communicates nothing; if one process fails, all raise an error."""
        if self.communicator is None:
            return local()
        self.follow()
        results: list[T] = []

        def run() -> tuple[Tensor, float]:
            results.append(self._followed(local))
            return empty, 0.0

        empty = torch.zeros(0, device=self.communicator.device)
        self.communicator.reduce_checked(run, empty, self.state.checksums())
        return results[0]

    def _followed(self, local: Callable[[], T]) -> T:
        """Call ``local``, unless :meth:`follow` has found that the model cannot be followed."""
        if self.following.failure is not None:
            raise self.following.failure
        return local()

    def agreed_seed(self, seed: Seed) -> int:
        """The seed of all processes, or entropy drawn by process 0 if it is None."""
        return (
            resolve_seed(seed) if self.communicator is None else self.communicator.agreed_seed(seed)
        )

    def number_samples(self) -> int:
        """Number the samples of this process after those of the processes with lower ranks.

        Returns the number of batches of those processes.
        """
        if self.communicator is None:
            return 0
        counts = self.communicator.all_gather_object(self.batches.count)[: self.communicator.rank]
        self.batches.num_preceding = sum(samples for samples, _ in counts)
        return sum(batches for _, batches in counts)

    def gather_items(self, local: Callable[[], list[T]]) -> list[T]:
        """The concatenated lists that ``local`` returns in all processes, in rank order."""
        if self.communicator is None:
            return local()
        self.follow()
        self.communicator.require_same(*self.state.checksums())
        items = [item for found in self.communicator.all_gather_object(local) for item in found]
        if not items:
            raise ValueError(_NO_BATCH)
        return items

    def require_same_batch(self, batch: Batch) -> None:
        """Raise OperatorError if processes that compute a batch together have different ones."""
        if self.mesh_communicator is not None:
            require_same_batch(self.mesh_communicator, self.model, batch)

    def gradients(
        self, batch: Batch, tensors: Sequence[Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """The gradient of a batch's loss in some tensors; zero for tensors that it does not use."""
        value = self.finite_value(self.outputs(batch), batch.targets)
        if not value.requires_grad:
            raise OperatorError(
                "the loss does not depend on the parameters in a differentiable way; make sure "
                "that the model's output is not detached."
            )
        if self._fully_sharded is not None:
            return self._fully_sharded.gradients(value, tensors, batch.weight)
        return torch.autograd.grad(
            value, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
