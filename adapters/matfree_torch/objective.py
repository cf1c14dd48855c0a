"""A loss over data as a function of what a model computes: evaluated, and no trace left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matfree import OperatorError
from matfree_torch import guard
from matfree_torch.batches import Batch, Batches, Loss, Normalizer
from matfree_torch.losses import as_module
from matfree_torch.precision import full_precision


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
    ) -> None:
        if loss is not None and not callable(loss):
            raise TypeError(
                "loss must be a function loss(outputs, targets), or None for a model that returns "
                f"outputs.loss: got {type(loss).__name__}."
            )
        self.model, self.loss, self.allow_tf32 = model, loss, allow_tf32
        self.batches = Batches(data, loss, normalizer, ordered=ordered)
        self._random_state = guard.get_random_state(model)

    def guarded(self) -> AbstractContextManager[None]:
        """A context in which the model may run, and is afterwards as it was."""
        return guard.untouched(self.model, self._random_state, allow_tf32=self.allow_tf32)

    def precision(self) -> AbstractContextManager[None]:
        """A context in which float32 products are computed in float32, unless TF32 is allowed."""
        return nullcontext() if self.allow_tf32 else full_precision()

    def outputs(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """What the model makes of a batch, at its own parameters or at others."""
        if isinstance(self.model, Function):
            return self.model(parameters)
        args, kwargs = arguments(batch.inputs)
        if parameters is None:
            return self.model(*args, **kwargs)
        return functional_call(self.model, dict(parameters), args, kwargs)

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch, a differentiable scalar."""
        if self.loss is None:
            value = _entry(outputs, "loss")
            if value is None:
                raise OperatorError(
                    "loss=None takes the loss that the model returns as outputs.loss, and there is "
                    "none; pass a loss, or labels in the batch."
                )
        elif as_module(self.loss) is not None:
            value = self.loss(output_tensor(outputs), targets)
        else:
            value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OperatorError(
                f"the loss must be a scalar tensor: got {shape}; give it reduction='mean' or 'sum'."
            )
        return value.reshape(())

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
        return torch.autograd.grad(
            value, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )


@final
class Function(nn.Module):
    """A function of a dictionary of tensors, dressed as a model.

    Parameters
    ----------
    function : function (dict of tensors by name) -> scalar tensor
    tensors : mapping
        The point; shared, not copied.
    """

    def __init__(self, function: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, x in tensors.items():  # their names may have dots, which torch reserves
            self._parameters[name] = nn.Parameter(x.detach(), x.is_floating_point())

    def forward(self, tensors: Mapping[str, Tensor] | None) -> Any:
        return self.function({**dict(self.named_parameters()), **(tensors or {})})


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the positional and keyword arguments of a model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def output_tensor(outputs: Any) -> Tensor:
    """The one tensor that a loss is a function of: the outputs, or their ``logits``."""
    found = outputs if isinstance(outputs, Tensor) else _entry(outputs, "logits")
    if not isinstance(found, Tensor):
        raise OperatorError(
            "the model's outputs must be one tensor, or hold one as .logits: got "
            f"{type(outputs).__name__}; wrap the model so that it returns what the loss takes."
        )
    return found


def _entry(outputs: Any, name: str) -> Any:
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return found if isinstance(found, Tensor) else None
