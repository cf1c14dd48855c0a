"""The real numbers of which real and complex tensors consist."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from matfree_torch.distributed.dtensors import dtensor_like, is_dtensor, local_tensor


def real_view(x: Tensor) -> Tensor:
    """The same entries as real numbers: a complex tensor gets a last axis of length 2."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def is_differentiable(x: Tensor) -> bool:
    """Whether derivatives with respect to a tensor exist: it is real or complex."""
    return x.is_floating_point() or x.is_complex()


def num_real(x: Tensor) -> int:
    """The number of real numbers in a whole tensor."""
    return math.prod(x.shape) * (2 if x.is_complex() else 1)


def shaped_like(x: Tensor, dtype: torch.dtype, p: Tensor) -> Tensor:
    """The tensor like p with these real entries, of the dtype or of its complex counterpart."""
    if not p.is_complex():
        if p.shape[-1:] == (2,):
            # The network may read such pairs by torch.view_as_complex, which needs them contiguous
            # and aligned.
            x = x.clone(memory_format=torch.contiguous_format)
        return dtensor_like(x.to(dtype), p)
    return torch.complex(x[..., 0], x[..., 1]).to(dtype.to_complex())


@contextlib.contextmanager
def moved_by(x: Tensor, step: Tensor) -> Iterator[None]:
    """Add a step to a tensor within the context, and restore its exact values afterwards."""
    original = x.data
    if not is_dtensor(x) and not x.is_inference():
        try:
            x.data = (original + step).to(original.dtype)
            yield
        finally:
            x.data = original
        return
    # fully_shard gathers parameters from the storage of their shards, so that the values have to
    # change in that storage. Tensors created in inference mode can only be changed in that mode.
    local = local_tensor(original)
    with torch.inference_mode(x.is_inference()):
        before = local.clone()
        local += local_tensor(step)
    try:
        yield
    finally:
        with torch.inference_mode(x.is_inference()):
            local.copy_(before)
