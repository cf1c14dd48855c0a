"""Named tensors as one flat vector, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor

Patterns: TypeAlias = str | Sequence[str]
"""Names, or patterns with ``*`` and ``?`` for several of them."""


class Layout:
    """Tensors laid end to end, in the order they are given.

    Parameters
    ----------
    tensors : mapping of names to tensors of one device, not empty
    noun : str
        What error messages call one of them.

    Raises
    ------
    ValueError
        The tensors lie on several devices.
    """

    def __init__(self, tensors: Mapping[str, Tensor], noun: str) -> None:
        devices = {p.device for p in tensors.values()}
        if len(devices) > 1:
            raise ValueError(
                f"the {noun}s lie on {sorted(map(str, devices))}; move the model to one device, "
                "or choose some of them."
            )
        self.noun = noun
        self.tensors = list(tensors.values())
        self.names = tuple(tensors)
        self.sizes = [math.prod(p.shape) for p in self.tensors]
        self.size = sum(self.sizes)
        self.device = self.tensors[0].device
        ends = [sum(self.sizes[: j + 1]) for j in range(len(self.sizes))]
        starts = [0, *ends[:-1]]
        self.partition = {
            name: slice(start, end)
            for name, start, end in zip(self.names, starts, ends, strict=True)
        }

    @property
    def dtype(self) -> torch.dtype:
        """The widest data type among them, float32 at least: that of the flat vectors."""
        widest = torch.float32
        for p in self.tensors:
            widest = torch.promote_types(widest, p.dtype)
        return widest

    def subset(self, patterns: Patterns) -> Layout:
        """Those whose names match, as a layout of their own."""
        return Layout(
            matching(dict(zip(self.names, self.tensors, strict=True)), patterns, self.noun),
            self.noun,
        )

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """A flat vector cut into the tensors' shapes and data types."""
        return [
            part.reshape(p.shape).to(p.dtype)
            for part, p in zip(torch.split(vector, self.sizes), self.tensors, strict=True)
        ]

    def flat(self, pieces: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Tensors of these shapes as one vector, (n,), of the layout's dtype or the one given."""
        target = dtype or self.dtype
        return torch.cat([piece.detach().reshape(-1).to(target) for piece in pieces])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (n,) as tensors by name."""
        if tuple(vector.shape) != (self.size,):
            raise ValueError(f"vector must have shape ({self.size},): got {tuple(vector.shape)}.")
        parts = torch.split(vector, self.sizes)
        return {
            name: part.reshape(p.shape)
            for name, part, p in zip(self.names, parts, self.tensors, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a flat vector (n,)."""
        if set(tensors) != set(self.names):
            different = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"tensors must name every {self.noun} once: {different} do not match.")
        return self.flat([tensors[name] for name in self.names])


def matching(everything: Mapping[str, Any], patterns: Patterns, noun: str) -> dict[str, Any]:
    """The entries whose names match; ValueError where a pattern matches none."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ValueError(
                f"no {noun} matches {pattern!r}; the names are "
                f"{', '.join(list(everything)[:12])}{' ...' * (len(everything) > 12)}."
            )
    return {
        name: thing
        for name, thing in everything.items()
        if any(fnmatchcase(name, pattern) for pattern in wanted)
    }
