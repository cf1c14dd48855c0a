"""Calls of models and losses: arguments, output tensors, and torch's own losses as modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from matfree import NonFiniteError, OperatorError
from matfree.protocol import T
from matfree_torch.distributed.dtensors import full_tensor
from matfree_torch.objective.reachable import Reachable
from matfree_torch.vectors.entries import is_differentiable


@final
class FunctionModule(nn.Module):
    """A function of named tensors and inputs as a model.

    Parameters
    ----------
    function : function (dict of tensors by name, inputs) -> outputs
    tensors : mapping
        The point at which the function is differentiated; shared, not copied.
    """

    def __init__(self, function: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = function

        def point() -> Mapping[str, Tensor]:
            return tensors

        # A function, so that the mapping is not one of the attributes that evaluations copy.
        self._point = point
        self._owners = [
            (module, name, key)
            for key, x in tensors.items()
            for module in Reachable(function).modules.values()
            for name, p in module.named_parameters()
            if p is x
        ]
        self.follow()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.evaluate({}, args, kwargs)

    def evaluate(self, tensors: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The function with some tensors replaced by others."""
        return self.function({**dict(self.named_parameters()), **tensors}, *args, **kwargs)

    def follow(self) -> OperatorError | None:
        """Take the tensors that the mapping holds now.

        Returns
        -------
        An error if the function uses a network whose parameters were given, and the network has
        others now.
        """
        point = self._point()
        for name in self._parameters.keys() - point.keys():
            del self._parameters[name]
        for name, x in point.items():  # register_parameter refuses names with dots
            p = self._parameters.get(name)
            if p is None or (p.shape, p.dtype, p.device) != (x.shape, x.dtype, x.device):
                self._parameters[name] = nn.Parameter(x.detach(), is_differentiable(x))
            elif x.layout == torch.strided and p.data_ptr() != x.data_ptr():
                p.data = x.detach()
        for module, name, key in self._owners:
            if dict(module.named_parameters()).get(name) is not point.get(key):
                return OperatorError(
                    f"the tensor {key!r} given to hessian_of was the parameter {name!r} of "
                    f"{type(module).__name__}, which has been replaced or removed since; create "
                    "the operator again with dict(model.named_parameters())."
                )
        return None


def without_graph(function: Callable[[], T]) -> T:
    """Call a function that evaluates a model, without recording a graph if that is possible.

    It is not if the forward pass itself differentiates, as it does for forces and for the residuals
    of differential equations.
    """
    try:
        with torch.no_grad():
            return function()
    except RuntimeError as cause:
        if "does not require grad" not in str(cause):
            raise
    with torch.enable_grad():
        return function()


def output_tensor(outputs: Any) -> Tensor:
    """The tensor that a loss is a function of: the outputs themselves, or their ``logits``.

    Raises
    ------
    OperatorError
        There is no such tensor.
    """
    found = outputs if isinstance(outputs, Tensor) else tensor_entry(outputs, "logits")
    if not isinstance(found, Tensor):
        raise OperatorError(
            "the model's outputs must be one tensor, or contain one as .logits: got "
            f"{type(outputs).__name__}; wrap the model so that it returns the tensor that the loss "
            "takes."
        )
    return full_tensor(found)


def tensor_entry(outputs: Any, name: str) -> Any:
    """The tensor of this name in outputs that are a mapping or an object; None if there is none."""
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return found if isinstance(found, Tensor) else None


def scalar_loss(loss: Any, outputs: Any, targets: Any) -> Tensor:
    """A loss as a real scalar tensor; None stands for ``outputs.loss``.

    Raises
    ------
    OperatorError
        It is not a real scalar, or the outputs contain no loss.
    """
    if loss is None:
        value: Any = tensor_entry(outputs, "loss")
        if value is None:
            raise OperatorError(
                "loss=None requires a model that returns outputs.loss, and this one does not; "
                "pass a loss, or labels in the batch."
            )
    else:
        value = loss(outputs if loss_module(loss) is None else output_tensor(outputs), targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise OperatorError(
            f"the loss must be a scalar tensor: got {shape}; use reduction='mean' or 'sum'."
        )
    if value.is_complex():
        raise OperatorError(f"the loss must be real: got {value.dtype}; return its real part.")
    return full_tensor(value).reshape(())


def loss_options(loss: Any) -> str:
    """A text that differs between losses with other options, as far as they can be read.

    These are the numbers, texts and tensors that a loss module holds, and the keyword arguments of
    a ``functools.partial``. Names that concern one process, such as its rank, do not count.
    """
    if isinstance(loss, functools.partial):
        return f"{loss_options(loss.func)} {_readable_options(loss.keywords)}"
    if not isinstance(loss, nn.Module):
        return str(getattr(loss, "__qualname__", type(loss).__qualname__))
    held = {"training": loss.training, **vars(loss), **loss._buffers}
    inside = [loss_options(module) for module in loss.children()]
    return f"{type(loss).__qualname__} {_readable_options(held)} {inside}"


def _readable_options(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, x in sorted(options.items()):
        if name.startswith("_") or "rank" in name or "device" in name:
            continue
        if isinstance(x, Tensor):
            found.append((name, x.detach().flatten()[:_COMPARED_ENTRIES].tolist()))
        elif isinstance(x, bool | int | float | str):
            found.append((name, x))
    return found


def loss_module(loss: Any) -> nn.Module | None:
    """One of torch's losses as a module, whether it is given as a module or as a function.

    It is None for any other loss.
    """
    if isinstance(loss, nn.modules.loss._Loss):
        return loss
    if isinstance(loss, functools.partial) and not loss.args:
        module = None if isinstance(loss.func, nn.Module) else loss_module(loss.func)
        try:
            return None if module is None else type(module)(**loss.keywords)
        except TypeError:  # an argument that the function has, and the module has not
            return None
    # Compared by identity, because a loss may be an object that cannot be hashed.
    return next((module for function, module in _LOSS_MODULES.items() if function is loss), None)


def require_finite_loss(value: Tensor) -> Tensor:
    """Return the loss of a batch; NonFiniteError if it is NaN or infinite."""
    number = value.detach()
    if not bool(torch.isfinite(number)):
        raise NonFiniteError(
            f"the loss of a batch is {complex(number) if number.is_complex() else float(number)}, "
            "which contains NaN or infinity, even if its derivatives are finite; check that the "
            "inputs, the targets and the weights are finite, and that no output overflows."
        )
    return value


_COMPARED_ENTRIES = 10_000
_LOSS_MODULES: dict[Any, nn.Module] = {
    functional.cross_entropy: nn.CrossEntropyLoss(),
    functional.nll_loss: nn.NLLLoss(),
    functional.mse_loss: nn.MSELoss(),
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}
"""The modules that equal these functions when they are called with outputs and targets alone."""
