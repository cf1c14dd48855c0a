"""A program recorded once on a device, and replayed: its launches cost the host nothing more.

A product of a small network is a thousand short kernels, and launching them takes longer than
running them. A CUDA graph launches them all at once, on the memory that they were recorded with:
arguments are copied into it, and the result out of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, final

import torch
from torch import Tensor

Program: TypeAlias = Callable[..., Sequence[Tensor]]
"""A function of tensors to tensors: always of the same shapes, and without a look at values."""

_WARM_UPS = 3
"""Runs before the recording, in which libraries choose their kernels and take their memory."""


class Recording(NamedTuple):
    """Work that was recorded."""

    replay: Callable[[], None]
    """Do it again, on the memory that it was recorded with."""
    result: Tensor
    """Where it leaves its result."""


class Recorder(Protocol):
    """What can record the work of a device."""

    def record(self, work: Callable[[], Tensor], /) -> Recording:
        """The work, recorded; RuntimeError where something in it cannot be."""


def recorder_for(device: torch.device) -> Recorder | None:
    """What records the work of this device; None where nothing is gained."""
    return CudaGraphs(device) if device.type == "cuda" else None


@final
class CudaGraphs:
    """CUDA's own recording.

    Parameters
    ----------
    device : a CUDA device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, work: Callable[[], Tensor], /) -> Recording:
        """The work in a CUDA graph, after a few runs on a stream aside."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
            aside.wait_stream(current)
            try:
                with torch.cuda.stream(aside):
                    for _ in range(_WARM_UPS):
                        work()
                graph = torch.cuda.CUDAGraph()
                # What other threads do meanwhile, a loader's for one, is none of its business.
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    result = work()
            finally:
                torch.cuda.set_stream(current)  # which torch omits where a capture fails
            current.wait_stream(aside)

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return Recording(replay, result)


@final
class Captured:
    """A program that is recorded at its first call and replayed from then on.

    Where it cannot be recorded it runs as it is, and a warning says so once.

    Parameters
    ----------
    program : function (tensors) -> tensors of one data type
        Kept for as long as the recording, which reads the program's own tensors.
    recorder : what records it
    """

    def __init__(self, program: Program, recorder: Recorder) -> None:
        self._program, self._recorder = program, recorder
        self._inputs: list[Tensor] = []
        self._shapes: list[torch.Size] = []
        self._recording: Recording | None = None
        self._refused = False

    def __call__(self, *pieces: Tensor) -> Sequence[Tensor]:
        """What the program returns, in memory of its own."""
        if self._recording is None and not self._refused:
            self._record(pieces)
        if self._recording is None:
            return self._program(*pieces)
        torch._foreach_copy_(self._inputs, list(pieces))
        self._recording.replay()
        flat = self._recording.result.clone()  # the next replay writes over it
        parts = torch.split(flat, [shape.numel() for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _record(self, pieces: Sequence[Tensor]) -> None:
        self._inputs = [piece.clone() for piece in pieces]
        try:
            self._recording = self._recorder.record(self._work)
        except RuntimeError as refusal:
            self._refused, self._inputs = True, []
            warnings.warn(
                "the folded product cannot be captured in a CUDA graph "
                f"({str(refusal).splitlines()[0][:160]}); it runs operation by operation, with "
                "the same numbers.",
                UserWarning,
                stacklevel=2,
            )

    def _work(self) -> Tensor:
        outputs = self._program(*self._inputs)
        self._shapes = [x.shape for x in outputs]
        return torch.cat([x.reshape(-1) for x in outputs])
