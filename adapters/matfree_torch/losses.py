"""Torch's own losses, recognised as modules and as functions."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

_MODULES: dict[Any, nn.Module] = {
    functional.cross_entropy: nn.CrossEntropyLoss(),
    functional.nll_loss: nn.NLLLoss(),
    functional.mse_loss: nn.MSELoss(),
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}
"""Losses as functions, and the modules they equal when called with outputs and targets alone."""


def as_module(loss: Any) -> nn.Module | None:
    """One of torch's own losses as a module, also where it is given as a function."""
    if isinstance(loss, nn.modules.loss._Loss):
        return loss
    return next((module for function, module in _MODULES.items() if function is loss), None)
