"""Programs captured in a CUDA graph at their first call and replayed afterwards.

A Hessian-vector product of a small network consists of a thousand short kernels, and launching
them takes longer than running them. A CUDA graph launches all of them at once. It always reads
and writes the memory that it was captured with, so that arguments are copied into that memory
and results out of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, final

import torch
from torch import Tensor

Program: TypeAlias = Callable[..., Sequence[Tensor]]
"""A function from tensors to tensors of fixed shapes that does not branch on values."""

_WARM_UPS = 3
"""Runs before the capture, in which libraries select kernels and allocate workspaces."""


class Recording(NamedTuple):
    """Captured work."""

    replay: Callable[[], None]
    """Run the work again on the memory that it was captured with."""
    result: Tensor
    """The tensor that every replay overwrites with its result."""


class Recorder(Protocol):
    """An object that can capture the work of a device."""

    def record(self, work: Callable[[], Tensor], /) -> Recording:
        """Capture the work; RuntimeError if some of it cannot be captured."""


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder of a device, or None if capturing its work would save nothing."""
    return CudaGraphs(device) if device.type == "cuda" else None


@final
class CudaGraphs:
    """A recorder that captures work in CUDA graphs.

    Parameters
    ----------
    device : a CUDA device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, work: Callable[[], Tensor], /) -> Recording:
        """Capture the work in a CUDA graph, after a few warm-up runs on a side stream."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UPS):
                        work()
                graph = torch.cuda.CUDAGraph()
                # "thread_local", because CUDA calls of other threads, such as those of a data
                # loader, would otherwise make the capture fail.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    result = work()
            finally:
                # torch.cuda.graph does not restore the stream if the capture fails.
                torch.cuda.set_stream(current)
            current.wait_stream(side)

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return Recording(replay, result)


@final
class CapturedProgram:
    """A program that is captured at its first call and replayed at later ones.

    If it cannot be captured, it runs operation by operation, and one warning is issued.

    Parameters
    ----------
    program : function (tensors) -> tensors of one data type
        It is kept as long as the recording, which reads the program's own tensors.
    recorder : Recorder
    """

    def __init__(self, program: Program, recorder: Recorder) -> None:
        self._program, self._recorder = program, recorder
        self._inputs: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._recording: Recording | None = None
        self._refused = False

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run the program. The results are in new memory, owned by the caller."""
        if self._recording is None and not self._refused:
            self._record(inputs)
        if self._recording is None:
            return self._program(*inputs)
        torch._foreach_copy_(self._inputs, list(inputs))
        self._recording.replay()
        flat = self._recording.result.clone()  # the next replay overwrites the result
        outputs = torch.split(flat, [shape.numel() for shape in self._shapes])
        return [output.reshape(shape) for output, shape in zip(outputs, self._shapes, strict=True)]

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        try:
            self._recording = self._recorder.record(self._work)
        except RuntimeError as refusal:
            self._refused, self._inputs = True, []
            warnings.warn(
                "the folded Hessian-vector product cannot be captured in a CUDA graph "
                f"({str(refusal).splitlines()[0][:160]}); it runs operation by operation instead, "
                "with the same results.",
                UserWarning,
                stacklevel=2,
            )

    def _work(self) -> Tensor:
        outputs = self._program(*self._inputs)
        self._shapes = [x.shape for x in outputs]
        return torch.cat([x.reshape(-1) for x in outputs])
