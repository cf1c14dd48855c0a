"""Single precision means single precision: TF32 is used where it is asked for, and nowhere else.

On a GPU torch may round the factors of float32 products to the ten bits of TF32: convolutions by
default, matrices where ``torch.set_float32_matmul_precision`` says so. Curvature is a difference
of large terms, and those bits are the ones that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TF32_EPS = 2.0**-10
"""The relative spacing of TF32's numbers."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Have float32 products computed in float32; torch's settings come back as they were.

    Torch has two sets of switches for this, and complains where they contradict each other: the
    old ones are set first, which sets the new ones too, and then the new ones are put back.
    """
    switches = _switches()
    precisions = [switch.fp32_precision for switch in switches]
    matrices = _told(torch.get_float32_matmul_precision)
    convolutions = _told(lambda: torch.backends.cudnn.allow_tf32)
    try:
        _set_old(None if matrices is None else "highest", None if convolutions is None else False)
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        _set_old(matrices, convolutions)
        for switch, precision in zip(switches, precisions, strict=True):
            switch.fp32_precision = precision


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Have cuDNN left aside; ``torch.backends.cudnn.flags`` would switch TF32 on besides."""
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def _switches() -> tuple[Any, ...]:
    """What the old switches reach: matrices on either kind of device, and cuDNN's layers."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    return backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn


def _told(read: Callable[[], Any]) -> Any:
    """What an old switch says; None where the new ones contradict it, and it does not tell."""
    try:
        return read()
    except RuntimeError:
        return None


def _set_old(matrices: str | None, convolutions: bool | None) -> None:
    if matrices is not None:
        torch.set_float32_matmul_precision(matrices)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
