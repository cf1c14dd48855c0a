"""A loss over data as a function of what a model computes: evaluated, and no trace left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matfree import OperatorError
from matfree.probes import resolve_seed
from matfree.protocol import Seed
from matfree_torch.autograd.precision import full_precision
from matfree_torch.distributed.checksums import Checksum, checksum_of_tensors, checksum_of_vectors
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import (
    full_tensor,
    is_dtensor,
    local_tensor,
    mesh_communicator,
    require_disjoint,
)
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Batch, Batches, Loss, Normalizer, checksum_of_batch
from matfree_torch.objective.fsdp import FullySharded, Unsharded
from matfree_torch.objective.model_calls import (
    FunctionModule,
    call_arguments,
    loss_module,
    output_tensor,
    tensor_entry,
)
from matfree_torch.vectors.layout import Parameters, Patterns

T = TypeVar("T")

_SEED = "give all of them the same arguments, an explicit seed= among them"
_BATCHES = "parameters that are cut up need the same data in all processes of their mesh"
_ENTIRE = "copy process 0's to the others with torch.distributed.broadcast"
_ROUNDING = 1e-9  # of the checksums of one batch in several processes
_NOTHING = "no process holds a batch that counts; are the loaders exhausted?"
_BUFFERS = (
    "running statistics are each process's own: copy one's to the others with "
    "torch.distributed.broadcast"
)


@final
class Objective:
    """The sum behind an operator: sum_b weight_b loss(model(inputs_b), targets_b) / divisor.

    Parameters
    ----------
    model : nn.Module
    loss : function (outputs, targets) -> scalar tensor, or None
        None takes the loss that the model itself returns as ``outputs.loss``.
    data : a batch, or a re-iterable of batches
    normalizer : function, optional
    ordered : bool
        Whether every pass must show the same batches in the same order.
    allow_tf32 : bool
        Whether torch's own settings of TF32 hold.
    processes : Processes, optional
        Those among which the data are shared out.
    sharding : Unsharded or FullySharded, optional
        Whose the model is, where ``fully_shard`` was applied: a twin, or the model itself.

    Raises
    ------
    TypeError
        The loss or the data are none.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        data: Any,
        normalizer: Normalizer | None = None,
        *,
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
        self._twin = sharding if isinstance(sharding, Unsharded) else None
        self._layers = sharding if isinstance(sharding, FullySharded) else None
        self.communicator = communicator if sharding is None else sharding.communicator
        self._holders = None if sharding is None else sharding.communicator
        self.mesh_communicator = (
            mesh_communicator(model.parameters()) if self._layers is None else None
        )
        """The processes that compute a batch together, where parameters are cut up over them."""
        require_disjoint(self.mesh_communicator, self.communicator)
        self.batches = Batches(
            data, loss, normalizer, ordered=ordered, share=self.communicator is not None
        )
        self._marks: tuple[Any, list[Checksum]] = (None, [])
        self._random_state = isolation.get_random_state(model)
        if self._layers is not None:
            with self.isolated():
                self._layers.require_same_number(lambda: sum(1 for _ in self.batches))

    def isolated(self) -> AbstractContextManager[None]:
        """A context in which the model may run, and is afterwards as it was."""
        context = isolation.isolated(self.model, self._random_state, allow_tf32=self.allow_tf32)
        return context if self._layers is None else self._layers.around(context)

    def parameters(self, patterns: Patterns | None) -> Parameters:
        """The model's own parameters that an operator is about, chosen by names."""
        nothing = nullcontext()
        with nothing if self._layers is None else self._layers.around(nothing):
            return Parameters(self.model, patterns, self._holders)

    def precision(self) -> AbstractContextManager[None]:
        """A context in which float32 products are computed in float32, unless TF32 is allowed."""
        return nullcontext() if self.allow_tf32 else full_precision()

    def outputs(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """What the model makes of a batch, at its own parameters or at others."""
        if isinstance(self.model, FunctionModule):
            return self.model(parameters)
        args, kwargs = call_arguments(batch.inputs)
        if parameters is None:
            return self.model(*args, **kwargs)
        return functional_call(self.model, dict(parameters), args, kwargs)

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch, a differentiable scalar."""
        if self.loss is None:
            value = tensor_entry(outputs, "loss")
            if value is None:
                raise OperatorError(
                    "loss=None takes the loss that the model returns as outputs.loss, and there is "
                    "none; pass a loss, or labels in the batch."
                )
        elif loss_module(self.loss) is not None:
            value = self.loss(output_tensor(outputs), targets)
        else:
            value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OperatorError(
                f"the loss must be a scalar tensor: got {shape}; give it reduction='mean' or 'sum'."
            )
        return full_tensor(value).reshape(())

    def average(
        self,
        local: Callable[[], Tensor],
        like: Tensor,
        given: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A weighted sum over a pass, divided by what the loss divides by.

        Parameters
        ----------
        local : function
            The sum of what the batches of this process contribute, undivided.
        like : Tensor
            Of its shape, data type and device.
        given : (rows, k) Tensor, optional
            The vectors that it is a function of, the same in all processes.
        reduce : function, optional
            As for :meth:`Communicator.reduce_checked`.
        """
        if self.communicator is None:
            return local() / self.batches.divisor
        marks = self._weights()
        if self._layers is not None:  # whose backward passes have added up what is local
            reduce, like = reduce or _itself, like.new_zeros(like.shape[1:])
        elif given is not None:
            marks = [*marks, checksum_of_vectors("vectors", _SEED, given)]
        total, counted = self.communicator.reduce_checked(
            lambda: (local(), self.batches.total or 0.0), like, marks, reduce
        )
        if not self.batches.averaged:
            return total
        if counted == 0:
            raise ValueError(_NOTHING)
        return total / counted

    def run_checked(self, local: Callable[[], T]) -> T:
        """What a process computes for itself, where a failure in any of them ends all."""
        if self.communicator is None:
            return local()
        found: list[T] = []

        def run() -> tuple[Tensor, float]:
            found.append(local())
            return nothing, 0.0

        nothing = torch.zeros(0, device=self.communicator.device)
        self.communicator.reduce_checked(run, nothing, self._weights())
        return found[0]

    def agreed_seed(self, seed: Seed) -> int:
        """A seed that all processes have: process 0's entropy, where none is given."""
        return (
            resolve_seed(seed) if self.communicator is None else self.communicator.agreed_seed(seed)
        )

    def number_samples(self) -> int:
        """Number this process's samples after those of the processes before it.

        Returns the number of batches before the first one here.
        """
        if self.communicator is None:
            return 0
        counts = self.communicator.all_gather_object(self.batches.count)[: self.communicator.rank]
        self.batches.before = sum(samples for samples, _ in counts)
        return sum(batches for _, batches in counts)

    def gather_items(self, local: Callable[[], list[T]]) -> list[T]:
        """A list of what this process's batches give, and after it the other processes'."""
        if self.communicator is None:
            return local()
        self.communicator.require_same(*self._weights())
        items = [
            item
            for local_tensor in self.communicator.all_gather_object(local)
            for item in local_tensor
        ]
        if not items:
            raise ValueError(_NOTHING)
        return items

    def require_single_process(self, what: str) -> None:
        """Refuse what a process does by itself, where others have data or parameters, too."""
        if self.communicator is not None or self.mesh_communicator is not None:
            raise OperatorError(
                f"{what} is computed by one process, and here batches or parameters are shared out "
                "among several; each sees its own only. Make it of a whole model and all the data."
            )

    def require_unsharded(self, what: str) -> None:
        """Refuse parameters that are cut up."""
        if self.mesh_communicator is not None:
            raise OperatorError(
                f"{what} is not computed where parameters are cut up over processes, because "
                "activations are cut up, too; load the weights into a model that is whole."
            )

    @property
    def num_sharing_memory(self) -> int:
        """How many of the processes that work on this share one memory, at most."""
        groups = [
            group for group in (self.communicator, self.mesh_communicator) if group is not None
        ]
        return math.prod(group.num_sharing_memory for group in groups)

    def gather_over_mesh(self, number: int) -> list[int]:
        """A number in all processes that compute a batch together: they keep the same graphs."""
        return (
            [number]
            if self.mesh_communicator is None
            else self.mesh_communicator.all_gather_object(lambda: number)
        )

    def require_same_batch(self, batch: Batch) -> None:
        """Refuse batches that differ among the processes that compute one together."""
        if self.mesh_communicator is None:
            return
        mark = batch.checksum or checksum_of_batch((batch.inputs, batch.targets))
        tensors = *self.model.parameters(), *self.model.buffers()
        entire = [x for x in tensors if not is_dtensor(x)]
        self.mesh_communicator.require_same(
            Checksum("batches", _BATCHES, mark, _ROUNDING * mark[1]),
            checksum_of_tensors("weights or buffers that are whole", _ENTIRE, entire),
        )

    def _weights(self) -> list[Checksum]:
        """Marks of the model, made again when it changes; a twin takes its weights over first."""
        if self._twin is not None:
            self._twin.follow()
        now = isolation.version_counters(self.model)
        if now != self._marks[0]:
            parameters = [
                local_tensor(p)
                for p in self.model.parameters()
                if self._layers is None or not is_dtensor(p)
            ]
            buffers = list(map(local_tensor, self.model.buffers()))
            marks = [
                checksum_of_tensors("weights", "load the same ones everywhere", parameters),
                checksum_of_tensors("buffers", _BUFFERS, buffers),
            ]
            self._marks = now, marks
        return list(self._marks[1])

    def gradients(
        self, batch: Batch, tensors: Sequence[Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """A batch's gradient with respect to some tensors; zero where one is not used."""
        value = self.value(self.outputs(batch), batch.targets)
        if not value.requires_grad:
            raise OperatorError(
                "the loss does not depend on the parameters in a differentiable way; is the "
                "model's output detached?"
            )
        if self._layers is not None:
            return self._layers.gradients(value, tensors, batch.weight)
        return torch.autograd.grad(
            value, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )


def _itself(x: Tensor) -> Tensor:
    return x
