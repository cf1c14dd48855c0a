"""Ways to walk away from a network: what may name a direction, and how long it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor, nn

from matfree import EigenResult
from matfree_torch.curvature.over_batches import ParameterCurvature
from matfree_torch.vectors.layout import Layout

Direction: TypeAlias = Any
"""One direction: see :func:`matfree_torch.loss_landscape`."""


class Step(NamedTuple):
    """A direction that has been read: what the coordinate 1 adds to the network."""

    name: str
    vector: Tensor
    """(n,), on the flat vector of parameters."""
    buffers: dict[str, Tensor] | None = None
    """What it adds to floating point buffers, on the way to another checkpoint."""

    @property
    def length(self) -> float:
        """The 2-norm of the parameters' part."""
        return float(self.vector.to(torch.float64).norm())


@final
@dataclass(frozen=True)
class Towards:
    """The direction from a network to another checkpoint of it; made by :func:`towards`."""

    state: Mapping[str, Tensor]


def towards(other: nn.Module | Mapping[str, Tensor]) -> Towards:
    """The direction to another checkpoint: coordinate 0 is this network, and 1 the other.

    Parameters
    ----------
    other : nn.Module or state dict
        Of the same architecture. A model may be given as a direction as it is; a state dict
        has to be wrapped, because tensors by name are a direction themselves.

    Returns
    -------
    Towards
        For :func:`loss_landscape`.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import loss_landscape, towards
    >>> model, other = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    >>> data, loss = (torch.ones(4, 1), torch.zeros(4, 1)), torch.nn.MSELoss()
    >>> line = loss_landscape(model, loss, data, towards(other.state_dict()), span=(0, 1))
    >>> bool(abs(line.values[0, -1] - other.weight.item() ** 2) < 1e-6)
    True
    """
    if isinstance(other, nn.Module):
        other = getattr(other, "_orig_mod", other).state_dict()
    return Towards(other)


@final
class Reader:
    """Reads directions for one network.

    Parameters
    ----------
    curvature : the loss and the parameters
    seed : int
        Of random directions; the j-th asked for is probe j.
    """

    def __init__(self, curvature: ParameterCurvature, seed: int) -> None:
        self.curvature, self.seed = curvature, seed
        self.layout: Layout = curvature.layout
        self._random = 0
        self._gradient: Tensor | None = None

    def read(self, directions: Any) -> tuple[list[Step], bool]:
        """The steps, and whether they span a surface; otherwise each is a curve of its own."""
        if isinstance(directions, Mapping) and not self._by_parameter(directions):
            if not directions:
                raise ValueError("directions is an empty mapping; name at least one direction.")
            return [self._step(d, name) for name, d in directions.items()], False
        columns = _columns(directions)
        if columns is not None:
            names = _column_names(directions, len(columns))
            steps = [self._step(d, n) for d, n in zip(columns, names, strict=True)]
        elif isinstance(directions, tuple | list):
            if len(directions) not in (1, 2):
                raise ValueError(
                    f"a sequence holds two directions, which span a surface: got "
                    f"{len(directions)}; for several curves pass a mapping of names to them."
                )
            steps = [self._step(d, None, j + 1) for j, d in enumerate(directions)]
            if len({step.name for step in steps}) == 1 < len(steps):
                steps = [s._replace(name=f"{s.name} {j + 1}") for j, s in enumerate(steps)]
        else:
            steps = [self._step(directions, None)]
        return steps, len(steps) == 2

    def _step(self, direction: Direction, name: str | None, number: int = 1) -> Step:
        if isinstance(direction, str):
            return Step(name or direction, self._named(direction))
        if isinstance(direction, nn.Module):
            direction = towards(direction)
        if isinstance(direction, Towards):
            return Step(name or "to the other checkpoint", *self._difference(direction.state))
        if isinstance(direction, EigenResult):
            column = _columns(direction)
            assert column is not None  # it has columns
            return Step(name or "eigenvector 1", self._vector(column[0]))
        if isinstance(direction, Mapping):
            return Step(name or f"direction {number}", self.layout.flatten(direction))
        return Step(name or f"direction {number}", self._vector(direction))

    def _vector(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        if tuple(x.shape) != (self.layout.size,):
            raise ValueError(
                f"a direction must have shape ({self.layout.size},), the number of parameters "
                f"chosen: got {tuple(x.shape)}."
            )
        vector: Tensor = x.detach().to(dtype=self.curvature.dtype, device=self.layout.device)
        return vector

    def _named(self, name: str) -> Tensor:
        """A unit vector: the gradient, or the next random one."""
        if name == "gradient":
            if self._gradient is None:
                self._gradient = self.curvature.gradient()
            x = self._gradient
        elif name == "random":
            space = self.curvature.space
            x = space.probes(1, seed=self.seed, start=self._random, kind="gaussian")[:, 0]
            self._random += 1
        else:
            raise ValueError(f"a direction's name must be 'random' or 'gradient': got {name!r}.")
        length = x.to(torch.float64).norm().to(x.dtype)
        if not length > 0:
            raise ValueError(f"the {name} has length {float(length)}, and no direction.")
        unit: Tensor = x / length
        return unit

    def _difference(self, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The way to another checkpoint, in the parameters chosen and in buffers."""
        pieces = []
        for name, p in zip(self.layout.names, self.layout.tensors, strict=True):
            if name not in state or state[name].shape != p.shape:
                what = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"the other checkpoint must have a parameter {name!r} of shape "
                    f"{tuple(p.shape)}: got {what}."
                )
            pieces.append(state[name].to(p.device, torch.float64) - p.detach().to(torch.float64))
        buffers = {
            name: state[name].to(b.device, b.dtype) - b
            for name, b in self.curvature.model.named_buffers()
            if b.is_floating_point() and name in state
        }
        return self.layout.pack(pieces, self.curvature.dtype), buffers

    def _by_parameter(self, directions: Mapping[str, Any]) -> bool:
        """Whether a mapping is one direction, by names of parameters."""
        buffers = {name for name, _ in self.curvature.model.named_buffers()}
        if buffers & set(directions):
            raise ValueError(
                "a state dict, with buffers, is no direction; pass towards(state_dict) for the "
                "line to that checkpoint, or tensors for the parameters alone."
            )
        return bool(set(self.layout.names) & set(directions))


def filter_normalized(step: Step, layout: Layout) -> Step:
    """A direction whose filters are as long as the network's own (Li et al. 2018).

    A filter is what a weight with two or more dimensions holds at one place of its first.
    Biases and the parameters of normalisations, which have one dimension, get zero.
    """
    if step.buffers is not None:
        raise ValueError(
            "filter_normalize would take the line to another checkpoint elsewhere; leave it out."
        )
    pieces = []
    for d, p in zip(layout.unflatten(step.vector).values(), layout.tensors, strict=True):
        if p.ndim < 2:
            pieces.append(torch.zeros_like(d))
            continue
        wanted = p.detach().to(torch.float64).flatten(1).norm(dim=1)
        own = d.to(torch.float64).flatten(1).norm(dim=1)
        scale = torch.where(own > 0, wanted / own, 0.0)
        pieces.append(d * scale.reshape(-1, *[1] * (p.ndim - 1)).to(d.dtype))
    return step._replace(vector=layout.pack(pieces, step.vector.dtype))


def _columns(directions: Any) -> list[Any] | None:
    """The one or two vectors of an EigenResult, or of a block; None for anything else."""
    if isinstance(directions, EigenResult):
        return [directions.vectors[:, j] for j in range(min(2, directions.vectors.shape[1]))]
    if getattr(directions, "ndim", 0) != 2:
        return None
    if directions.shape[1] not in (1, 2):
        raise ValueError(
            f"a block of directions has one or two columns: got shape {tuple(directions.shape)}; "
            "for several curves pass a mapping of names to vectors."
        )
    return [directions[:, j] for j in range(directions.shape[1])]


def _column_names(directions: Any, count: int) -> list[str]:
    noun = "eigenvector" if isinstance(directions, EigenResult) else "direction"
    return [f"{noun} {j + 1}" for j in range(count)]
