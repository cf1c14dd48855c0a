"""The parameters of a network as one flat vector, and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor, nn


@final
class Parameters:
    """Some parameters of a network, in the order of ``named_parameters``.

    A parameter shared by several modules counts once, under its first name.

    Parameters
    ----------
    model : nn.Module
    patterns : str or sequence of str, optional
        Names to take, with ``*`` and ``?`` as wildcards; by default everything that
        requires a gradient. Named ones are taken even if they are frozen.

    Raises
    ------
    ValueError
        Nothing is left, a pattern matches nothing, or devices differ.
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str] | None = None) -> None:
        everything: dict[str, Tensor] = dict(model.named_parameters())
        if patterns is None:
            chosen = {name: p for name, p in everything.items() if p.requires_grad}
        else:
            chosen = _matching(everything, [patterns] if isinstance(patterns, str) else patterns)
        chosen = {name: p for name, p in chosen.items() if p.is_floating_point()}
        if not chosen:
            raise ValueError(
                f"the model has no parameter to differentiate ({len(everything)} in all, none "
                "that requires a gradient); unfreeze some, or name them with params=."
            )
        devices = {p.device for p in chosen.values()}
        if len(devices) > 1:
            raise ValueError(
                f"the parameters lie on {sorted(map(str, devices))}; move the model to one device, "
                "or choose some with params=."
            )
        self.tensors = list(chosen.values())
        self.names = tuple(chosen)
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

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """A flat vector cut into the parameters' shapes and data types."""
        return [
            part.reshape(p.shape).to(p.dtype)
            for part, p in zip(torch.split(vector, self.sizes), self.tensors, strict=True)
        ]

    def flat(self, pieces: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one vector, (n,)."""
        return torch.cat([piece.detach().reshape(-1).to(self.dtype) for piece in pieces])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (n,) as tensors by parameter name."""
        if tuple(vector.shape) != (self.size,):
            raise ValueError(f"vector must have shape ({self.size},): got {tuple(vector.shape)}.")
        parts = torch.split(vector, self.sizes)
        return {
            name: part.reshape(p.shape)
            for name, part, p in zip(self.names, parts, self.tensors, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by parameter name as a flat vector (n,)."""
        if set(tensors) != set(self.names):
            different = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"tensors must name every parameter once: {different} do not match.")
        return self.flat([tensors[name] for name in self.names])

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let frozen parameters require gradients for a while."""
        frozen = [p for p in self.tensors if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)


def _matching(everything: dict[str, Tensor], patterns: Sequence[str]) -> dict[str, Tensor]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise ValueError(
                f"params: no parameter matches {pattern!r}; the names are "
                f"{', '.join(list(everything)[:12])}{' ...' * (len(everything) > 12)}."
            )
    return {
        name: p
        for name, p in everything.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
