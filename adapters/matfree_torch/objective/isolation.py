"""Running somebody's model without leaving a trace, and finding what would spoil products."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from matfree_torch.autograd.composites import composites
from matfree_torch.autograd.precision import full_precision, without_cudnn
from matfree_torch.distributed.dtensors import local_tensor, twice_differentiable

_BATCH_NORMS = nn.modules.batchnorm._NormBase
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.RReLU)


@contextlib.contextmanager
def isolated(model: nn.Module, random_state: Any, *, allow_tf32: bool = False) -> Iterator[None]:
    """Run a forward pass that changes nothing, with the same random numbers every time.

    Buffers are replaced by copies for a while, so that running statistics go nowhere, and so
    are tensors that modules keep as plain attributes; the random state is set to
    ``random_state`` and put back; gradients are recorded whatever the caller's mode; attention
    runs under its mathematical kernel, because the fused ones have no second derivative, and
    functions without a right one run as compositions; float32 products are computed in float32,
    unless ``allow_tf32`` leaves that to torch's settings.
    """
    owners = [module for module in model.modules() if module._buffers]
    originals = [dict(module._buffers) for module in owners]
    attributes = [(module, name, x) for module in model.modules() for name, x in _plain(module)]
    before = get_random_state(model)
    try:
        for module in owners:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()
        set_random_state(random_state)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            contextlib.nullcontext() if allow_tf32 else full_precision(),
            _without_fused_recurrences(model),
            composites(),
            twice_differentiable(),
        ):
            yield
    finally:
        set_random_state(before)
        for module, buffers in zip(owners, originals, strict=True):
            module._buffers.update(buffers)
        for module, name, x in attributes:
            module.__dict__[name] = x


def _without_fused_recurrences(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """On a GPU the library that fuses recurrent layers has no second derivative of them."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return without_cudnn()
    return contextlib.nullcontext()


def _plain(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Tensors kept outside parameters and buffers: weight normalisation by hooks has one."""
    return [(name, x) for name, x in vars(module).items() if isinstance(x, torch.Tensor)]


def get_random_state(model: nn.Module) -> dict[Any, torch.Tensor]:
    """The states of the global generators that a forward pass may use."""
    states: dict[Any, torch.Tensor] = {"cpu": torch.get_rng_state()}
    for device in {p.device for p in model.parameters() if p.device.type == "cuda"}:
        states[device] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[Any, torch.Tensor]) -> None:
    """Put the global generators into states that were read before."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def refuse_random_layers(model: nn.Module) -> None:
    """Raise ValueError naming a layer that draws random numbers in its present mode."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        rate = getattr(module, "dropout", 0.0)  # recurrent and attention layers
        active = isinstance(module, _DROPOUTS) and getattr(module, "p", 1.0) > 0
        inside = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and float(rate) > 0
        if active or inside:
            raise ValueError(
                f"{type(module).__name__} layer {name!r} is active and random, so that two "
                "products would differ; call model.eval() first, or set its rate to 0."
            )


def layer_with_batch_statistics(model: nn.Module) -> str | None:
    """A layer that normalises over the batch in its present mode, as a message names it."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.training:
            return f"{type(module).__name__} layer {name!r}"
    return None


def warn_of_batch_statistics(model: nn.Module) -> None:
    """Warn where normalisation over the batch makes the sum over batches something else."""
    layer = layer_with_batch_statistics(model)
    if layer is not None:
        warnings.warn(
            f"{layer} is in training mode: its statistics are those of each batch, so the "
            "curvature over several batches is not that of all data at once; call model.eval(), "
            "or pass one batch.",
            UserWarning,
            stacklevel=4,
        )


def version_counters(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a weight, a buffer or a mode does."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b is not None)]
    return tuple(map(version_counter, tensors)), tuple(
        module.training for module in model.modules()
    )


def version_counter(x: torch.Tensor) -> tuple[int, int]:
    """Changes whenever a tensor is written to, or replaced; inference tensors do not tell."""
    here = local_tensor(x)
    place = here.data_ptr() if x.layout == torch.strided else id(x)
    if x.is_inference():
        return place, 0
    # A tensor that is cut up counts what is written to it, its part what is written to that.
    return place, x._version + (here._version if here is not x else 0)
