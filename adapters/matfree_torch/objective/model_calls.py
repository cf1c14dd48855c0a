"""Calling a model: its arguments, and the tensors in what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional

from matfree import OperatorError
from matfree_torch.distributed.dtensors import full_tensor


@final
class FunctionModule(nn.Module):
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


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the positional and keyword arguments of a model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def output_tensor(outputs: Any) -> Tensor:
    """The one tensor that a loss is a function of: the outputs, or their ``logits``."""
    found = outputs if isinstance(outputs, Tensor) else tensor_entry(outputs, "logits")
    if not isinstance(found, Tensor):
        raise OperatorError(
            "the model's outputs must be one tensor, or hold one as .logits: got "
            f"{type(outputs).__name__}; wrap the model so that it returns what the loss takes."
        )
    return full_tensor(found)


def tensor_entry(outputs: Any, name: str) -> Any:
    """A tensor in outputs that are a mapping or a record; None where there is none."""
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return found if isinstance(found, Tensor) else None


_MODULES: dict[Any, nn.Module] = {
    functional.cross_entropy: nn.CrossEntropyLoss(),
    functional.nll_loss: nn.NLLLoss(),
    functional.mse_loss: nn.MSELoss(),
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}
"""Losses as functions, and the modules they equal when called with outputs and targets alone."""


def loss_module(loss: Any) -> nn.Module | None:
    """One of torch's own losses as a module, also where it is given as a function."""
    if isinstance(loss, nn.modules.loss._Loss):
        return loss
    return next((module for function, module in _MODULES.items() if function is loss), None)
