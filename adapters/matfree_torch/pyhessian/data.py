"""Data given the way PyHessian takes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree_torch.objective import isolation

Criterion = Callable[[Any, Any], Tensor]


def handed_over(model: nn.Module, data: Any, dataloader: Any, cuda: bool) -> Any:
    """The one of the two that is given, on the model's device."""
    if (data is None) == (dataloader is None):
        raise ValueError("give either data=(inputs, targets) or dataloader, not both.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if cuda and device.type != "cuda":
        missing = (
            "there is no CUDA device" if not torch.cuda.is_available() else "call model.cuda()"
        )
        raise ValueError(f"cuda=True, but the model is on {device}: {missing}; or pass cuda=False.")
    layer = isolation.layer_with_batch_statistics(model)
    if layer is not None:
        warnings.warn(
            f"{layer} is in training mode, which is kept here, where PyHessian would have called "
            "model.eval(); call it for the same numbers.",
            UserWarning,
            stacklevel=3,
        )
    if dataloader is None:
        batch = _to(data, device)
        return tuple(batch) if isinstance(batch, list) else batch
    return dataloader if device.type == "cpu" else _Moved(dataloader, device)


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {name: _to(value, device) for name, value in x.items()}
    return type(x)(_to(item, device) for item in x) if isinstance(x, tuple | list) else x


@final
class _Moved:
    """A loader whose batches go to the model's device."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.sampler = getattr(loader, "sampler", None)

    def __iter__(self) -> Iterator[Any]:
        return (_to(batch, self.device) for batch in self.loader)
