"""Evaluation of a user's model without side effects, and checks that a pass is reproducible."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from matfree.errors import warn
from matfree_torch.autograd.composites import composites
from matfree_torch.autograd.precision import full_precision, without_cudnn
from matfree_torch.distributed.dtensors import local_tensor, twice_differentiable

_BATCH_NORMS = nn.modules.batchnorm._NormBase
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.RReLU)


@contextlib.contextmanager
def isolated_model(
    model: nn.Module, random_state: Any, *, allow_tf32: bool = False
) -> Iterator[None]:
    """A context in which forward passes have no side effects and draw the same random numbers.

    * Buffers are replaced by copies, so that running statistics are not updated, and tensors that
      modules hold as plain attributes are restored.
    * The states of the random generators are set to ``random_state``, and restored on exit.
    * Gradients are recorded, whatever the mode of the caller.
    * Attention uses its mathematical kernel, because the fused ones have no second derivative, and
      functions without a correct second derivative are replaced by composites.
    * Compiled models, modules and losses run eagerly; compiled code has no second derivative.
    * Float32 products are computed in float32, unless ``allow_tf32`` keeps torch's settings.
    """
    owners = [module for module in model.modules() if module._buffers]
    originals = [dict(module._buffers) for module in owners]
    attributes = [
        (module, name, x) for module in model.modules() for name, x in _plain_tensors(module)
    ]
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
            _without_compilation(),
        ):
            yield
    finally:
        set_random_state(before)
        for module, buffers in zip(owners, originals, strict=True):
            for (
                name,
                buffer,
            ) in buffers.items():  # the buffers of a scripted module have no update()
                module._buffers[name] = buffer
        for module, name, x in attributes:
            module.__dict__[name] = x


def _without_fused_recurrences(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context without cuDNN if a model has recurrent layers: cuDNN cannot differentiate twice."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return without_cudnn()
    return contextlib.nullcontext()


def _without_compilation() -> contextlib.AbstractContextManager[None]:
    """A context in which everything that ``torch.compile`` has compiled runs eagerly."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return contextlib.nullcontext()
    return cast(contextlib.AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def _plain_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Tensors that are neither parameters nor buffers; weight normalization by hooks has one."""
    return [(name, x) for name, x in vars(module).items() if isinstance(x, torch.Tensor)]


def get_random_state(model: nn.Module) -> dict[Any, torch.Tensor]:
    """The states of the global random generators that a forward pass may use, by device."""
    states: dict[Any, torch.Tensor] = {"cpu": torch.get_rng_state()}
    for device in {p.device for p in model.parameters() if p.device.type == "cuda"}:
        states[device] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[Any, torch.Tensor]) -> None:
    """Set the global random generators to states returned by :func:`get_random_state`."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def refuse_random_layers(model: nn.Module) -> None:
    """Raise ValueError if a layer draws random numbers in its current mode."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        rate = getattr(module, "dropout", 0.0)  # recurrent and attention layers
        active = isinstance(module, _DROPOUTS) and getattr(module, "p", 1.0) > 0
        inside = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and float(rate) > 0
        if active or inside:
            raise ValueError(
                f"{type(module).__name__} layer {name!r} is in training mode and draws random "
                "numbers, so that two matvecs would differ; call model.eval() first, or set its "
                "rate to 0."
            )


def layer_with_batch_statistics(model: nn.Module) -> str | None:
    """The type and name of a layer that normalizes over the batch in its current mode, or None."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.training:
            return f"{type(module).__name__} layer {name!r}"
    return None


def warn_of_batch_statistics(model: nn.Module) -> None:
    """Warn if a layer normalizes over the batch, which couples the samples of each batch."""
    layer = layer_with_batch_statistics(model)
    if layer is not None:
        warn(
            f"{layer} is in training mode and normalizes each batch by its own statistics, so that "
            "the curvature over several batches is not that of all data in one batch; call "
            "model.eval(), or pass one batch.",
            UserWarning,
        )


def version_counters(model: nn.Module) -> tuple[Any, ...]:
    """A value that changes whenever a weight, a buffer or a mode of the model changes."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b is not None)]
    return tuple(map(version_counter, tensors)), tuple(m.training for m in model.modules())


def version_counter(x: torch.Tensor) -> tuple[int, int]:
    """The address and torch's version counter, which change when a tensor is replaced or modified.

    Inference tensors have no version counter; for them the second number is 0.
    """
    local = local_tensor(x)
    address = local.data_ptr() if x.layout == torch.strided else id(x)
    if x.is_inference():
        return address, 0
    # Modifications of a DTensor and of its local shard increment different counters.
    return address, x._version + (local._version if local is not x else 0)
