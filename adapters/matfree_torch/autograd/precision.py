"""Float32 arithmetic in full precision: TF32 is used only where it is allowed.

On a GPU, torch may round the factors of float32 products to the 10-bit mantissas of TF32. It does
so for convolutions by default, and for matrix products if ``torch.set_float32_matmul_precision``
says so. Curvature is a difference of large terms, which cancels their leading bits; what remains
depends on the bits that TF32 drops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TF32_EPS = 2.0**-10
"""The relative spacing of TF32 numbers."""


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which float32 products are computed in float32; settings are restored on exit.

    Torch has two generations of switches for this, and raises an error if they contradict each
    other. Setting an old switch also sets the new ones, so the old switches are restored first and
    the new ones afterwards.
    """
    switches = _switches()
    precisions = [switch.fp32_precision for switch in switches]
    matrices = _read_old(torch.get_float32_matmul_precision)
    convolutions = _read_old(lambda: torch.backends.cudnn.allow_tf32)
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
    """A context in which cuDNN is disabled.

    ``torch.backends.cudnn.flags`` is not used, because it would also enable TF32.
    """
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def _switches() -> tuple[Any, ...]:
    """The new switches that the old ones set: matrices on GPU and CPU, and the layers of cuDNN."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    return backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn


def _read_old(read: Callable[[], Any]) -> Any:
    """The value of an old switch; None if the new ones contradict it and torch raises an error."""
    try:
        return read()
    except RuntimeError:
        return None


def _set_old(matrices: str | None, convolutions: bool | None) -> None:
    if matrices is not None:
        torch.set_float32_matmul_precision(matrices)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
