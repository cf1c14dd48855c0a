"""Evaluation of a user's model without side effects, and checks that a pass is reproducible."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from matfree.errors import warn
from matfree_torch.autograd.composites import composites
from matfree_torch.autograd.precision import full_precision, without_cudnn
from matfree_torch.distributed.dtensors import local_tensor, twice_differentiable
from matfree_torch.objective.module_attributes import protected

_BATCH_NORMS = nn.modules.batchnorm._NormBase
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.RReLU)
NOT_REGISTERED = "(not registered)"
"""The end of the names of modules that neither the model nor the loss has as a submodule."""


@contextlib.contextmanager
def isolated_modules(
    named_modules: Mapping[str, nn.Module],
    found: list[nn.Module],
    random_state: Any,
    *,
    allow_tf32: bool = False,
) -> Iterator[None]:
    """A context in which forward passes have no side effects and draw the same random numbers.

    * Modules work on copies of their buffers and of what else they keep between calls, so that
      running statistics, hidden states and counters are not changed.
    * The states of the random generators of torch, NumPy and Python are set to ``random_state``,
      and restored on exit.
    * Gradients are recorded, whatever the mode of the caller.
    * Attention uses its mathematical kernel, because the fused ones have no second derivative, and
      functions without a correct second derivative are replaced by composites.
    * Compiled models, modules and losses run eagerly; compiled code has no second derivative.
    * Float32 products are computed in float32, unless ``allow_tf32`` keeps torch's settings.

    Parameters
    ----------
    named_modules : mapping of names to modules
        All modules of the model and of the loss, including submodules.
    found : list of modules
        Others that are called in the context are appended, such as modules in a list. They are
        treated in the same way.
    random_state : states returned by :func:`get_random_state`
    allow_tf32 : bool
    """
    modules = list(named_modules.values())
    before = get_random_state(modules)
    try:
        set_random_state(random_state)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            protected(modules) as include,
            _examined_calls(named_modules, found, include),
            sdpa_kernel(SDPBackend.MATH),
            contextlib.nullcontext() if allow_tf32 else full_precision(),
            _without_fused_recurrences(modules),
            composites(),
            twice_differentiable(),
            _without_compilation(),
        ):
            yield
    finally:
        set_random_state(before)


@contextlib.contextmanager
def _examined_calls(
    named_modules: Mapping[str, nn.Module],
    found: list[nn.Module],
    include: Callable[[nn.Module], None],
) -> Iterator[None]:
    """A context in which every module that is called is examined, also those of no other module.

    ``model.eval()`` and ``model.modules()`` do not reach modules that are kept in a list, in an
    object or in a global variable.
    """
    names = {id(module): name for name, module in named_modules.items()}
    thread = threading.get_ident()

    def examine(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            if id(module) not in names:
                names[id(module)] = NOT_REGISTERED
                found.append(module)
                include(module)
            refuse_random_layers([(names[id(module)], module)])

    compiled = any(type(module).__name__ == "OptimizedModule" for module in named_modules.values())
    handle = nn.modules.module.register_module_forward_pre_hook(examine)
    try:
        with warnings.catch_warnings() if compiled else contextlib.nullcontext():
            if compiled:  # a second call of the hook for a compiled module does no harm
                warnings.filterwarnings("ignore", message="Using `torch.compile")
            yield
    finally:
        handle.remove()


def _without_fused_recurrences(
    modules: Iterable[nn.Module],
) -> contextlib.AbstractContextManager[None]:
    """A context without cuDNN if there are recurrent layers: cuDNN cannot differentiate twice."""
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return without_cudnn()
    return contextlib.nullcontext()


def _without_compilation() -> contextlib.AbstractContextManager[None]:
    """A context in which everything that ``torch.compile`` has compiled runs eagerly."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return contextlib.nullcontext()
    return cast(contextlib.AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def get_random_state(modules: Iterable[nn.Module]) -> dict[Any, Any]:
    """The states of the global random generators that a forward pass may use."""
    states: dict[Any, Any] = {
        "cpu": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    parameters = (p for module in modules for p in module._parameters.values() if p is not None)
    for device in {p.device for p in parameters if p.device.type == "cuda"}:
        states[device] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[Any, Any]) -> None:
    """Set the global random generators to states returned by :func:`get_random_state`."""
    setters: dict[Any, Callable[[Any], None]] = {
        "cpu": torch.set_rng_state,
        "numpy": np.random.set_state,
        "python": random.setstate,
    }
    for source, state in states.items():
        if source in setters:
            setters[source](state)
        else:
            torch.cuda.set_rng_state(state, source)


def refuse_random_layers(named_modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise ValueError if a layer draws random numbers in its current mode."""
    for name, module in named_modules:
        if not module.training:
            continue
        rate = getattr(module, "dropout", 0.0)  # recurrent and attention layers
        active = isinstance(module, _DROPOUTS) and getattr(module, "p", 1.0) > 0
        inside = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and float(rate) > 0
        if active or inside:
            cure = (
                "call its own eval(), because model.eval() reaches registered submodules only, or "
                "keep it in an nn.ModuleList"
                if name.endswith(NOT_REGISTERED)
                else "call eval() of the model or the loss that contains it first"
            )
            raise ValueError(
                f"{type(module).__name__} layer {name!r} is in training mode and draws random "
                f"numbers, so that two matvecs would differ; {cure}, or set its rate to 0."
            )


def layer_with_batch_statistics(named_modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """The type and name of a layer that normalizes over the batch in its current mode, or None."""
    for name, module in named_modules:
        if isinstance(module, _BATCH_NORMS) and module.training:
            return f"{type(module).__name__} layer {name!r}"
    return None


def warn_of_batch_statistics(layer: str) -> None:
    """Warn that a layer normalizes over the batch, which couples the samples of each batch."""
    warn(
        f"{layer} is in training mode and normalizes each batch by its own statistics, so that "
        "the curvature over several batches is not that of all data in one batch; call "
        "model.eval(), or pass one batch.",
        UserWarning,
    )


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
