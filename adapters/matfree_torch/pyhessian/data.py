"""PyHessian's arguments ``data``, ``dataloader`` and ``cuda``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree.errors import warn
from matfree_torch.data.nested import moved_to_device
from matfree_torch.objective import isolation

Criterion = Callable[[Any, Any], Tensor]


def resolve_data(model: nn.Module, data: Any, dataloader: Any, cuda: bool) -> Any:
    """Return ``data`` or ``dataloader``, whichever is given, on the device of the model."""
    if (data is None) == (dataloader is None):
        raise ValueError("give either data=(inputs, targets) or dataloader, not both.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if cuda and device.type != "cuda":
        missing = (
            "there is no CUDA device" if not torch.cuda.is_available() else "call model.cuda()"
        )
        raise ValueError(f"cuda=True, but the model is on {device}: {missing}; or pass cuda=False.")
    layer = isolation.layer_with_batch_statistics(model.named_modules())
    if layer is not None:
        warn(
            f"{layer} is in training mode and stays so, whereas PyHessian would have called "
            "model.eval(); call model.eval() to get the same numbers.",
            UserWarning,
        )
    if dataloader is None:
        batch = moved_to_device(data, device)
        return tuple(batch) if isinstance(batch, list) else batch
    return dataloader if device.type == "cpu" else _LoaderOnDevice(dataloader, device)


@final
class _LoaderOnDevice:
    """A loader that moves its batches to a device."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.sampler = getattr(loader, "sampler", None)  # error messages name it

    def __iter__(self) -> Iterator[Any]:
        return (moved_to_device(batch, self.device) for batch in self.loader)
