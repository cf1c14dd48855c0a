"""Directions in parameter space, in all forms in which users may pass them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor, nn

from matfree import EigenResult
from matfree_torch.curvature.over_batches import ParameterCurvature
from matfree_torch.vectors.entries import real_view
from matfree_torch.vectors.layout import Layout

Direction: TypeAlias = Any
"""One direction, in a form that :func:`matfree_torch.loss_landscape` accepts."""


class Displacement(NamedTuple):
    """What one unit along a direction adds to the network."""

    name: str
    vector: Tensor
    """(n,), added to the flat vector of parameters."""
    buffers: dict[str, Tensor] | None = None
    """Added to floating-point buffers, if the direction leads to another checkpoint."""

    @property
    def length(self) -> float:
        """The 2-norm of ``vector``."""
        return float(self.vector.to(torch.float64).norm())


@final
@dataclass(frozen=True)
class Towards:
    """The direction to another checkpoint of a network, returned by :func:`towards`."""

    state: Mapping[str, Tensor]


def towards(other: nn.Module | Mapping[str, Tensor]) -> Towards:
    """The direction to another checkpoint: coordinate 0 is this network, 1 is the other.

    Parameters
    ----------
    other : nn.Module or state dict
        A network of the same architecture. A module may also be passed as a direction without
        this function. A state dict may not, because a mapping of names to tensors is itself a
        direction.

    Returns
    -------
    Towards
        A direction for :func:`loss_landscape`.

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
        other = getattr(other, "_orig_mod", other).state_dict()  # names without torch.compile's
    return Towards(other)


@final
class DirectionResolver:
    """Converts the user's directions to displacements of one network.

    Parameters
    ----------
    curvature : the loss and the parameters
    seed : int
        The seed of random directions. The j-th random direction is probe j.
    """

    def __init__(self, curvature: ParameterCurvature, seed: int) -> None:
        self.curvature, self.seed = curvature, seed
        self.layout: Layout = curvature.layout
        self._num_random = 0
        self._gradient: Tensor | None = None

    def resolve(self, directions: Any) -> tuple[list[Displacement], bool]:
        """The displacements, and whether they span a surface instead of giving a curve each."""
        if isinstance(directions, Mapping) and not self._is_by_parameter(directions):
            if not directions:
                raise ValueError("directions is an empty mapping; name at least one direction.")
            return [self._displacement(d, name) for name, d in directions.items()], False
        columns = _columns(directions)
        if columns is not None:
            names = _column_names(directions, len(columns))
            found = [self._displacement(d, n) for d, n in zip(columns, names, strict=True)]
        elif isinstance(directions, tuple | list):
            if len(directions) not in (1, 2):
                raise ValueError(
                    f"a sequence must hold two directions, which span a surface: got "
                    f"{len(directions)}; for several curves pass a mapping of names to directions."
                )
            found = [self._displacement(d, None, j + 1) for j, d in enumerate(directions)]
            if len({d.name for d in found}) == 1 < len(found):
                found = [d._replace(name=f"{d.name} {j + 1}") for j, d in enumerate(found)]
        else:
            found = [self._displacement(directions, None)]
        return found, len(found) == 2

    def _displacement(
        self, direction: Direction, name: str | None, number: int = 1
    ) -> Displacement:
        if isinstance(direction, str):
            return Displacement(name or direction, self._unit_vector(direction))
        if isinstance(direction, nn.Module):
            direction = towards(direction)
        if isinstance(direction, Towards):
            difference = self._difference(direction.state)
            return Displacement(name or "to the other checkpoint", *difference)
        if isinstance(direction, EigenResult):
            column = _columns(direction)
            assert column is not None  # an EigenResult has columns
            return Displacement(name or "eigenvector 1", self._vector(column[0]))
        if isinstance(direction, Mapping):
            return Displacement(name or f"direction {number}", self.layout.flatten(direction))
        return Displacement(name or f"direction {number}", self._vector(direction))

    def _vector(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        if tuple(x.shape) != (self.layout.size,):
            raise ValueError(
                f"a direction must have shape ({self.layout.size},), the number of parameters "
                f"chosen: got {tuple(x.shape)}; pass H.flatten(tensors) for tensors by name."
            )
        vector: Tensor = x.detach().to(dtype=self.curvature.dtype, device=self.layout.device)
        return vector

    def _unit_vector(self, kind: str) -> Tensor:
        """The normalized gradient, or the next random direction, normalized."""
        if kind == "gradient":
            if self._gradient is None:
                self._gradient = self.curvature.gradient()
            x = self._gradient
        elif kind == "random":
            space = self.curvature.space
            x = space.probes(1, seed=self.seed, start=self._num_random, kind="gaussian")[:, 0]
            self._num_random += 1
        else:
            raise ValueError(
                f"a direction given by name must be 'random' or 'gradient': got {kind!r}."
            )
        length = x.to(torch.float64).norm().to(x.dtype)
        if not length > 0:
            raise ValueError(
                f"the {kind} has length {float(length)} and therefore no direction; pass another "
                "direction, for example 'random'."
            )
        unit: Tensor = x / length
        return unit

    def _difference(self, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The difference to another checkpoint, in the chosen parameters and in buffers."""
        state = _renamed(state, (*self.layout.names, *dict(self.curvature.model.named_buffers())))
        differences = []
        for name, p in zip(self.layout.names, self.layout.tensors, strict=True):
            if name not in state or state[name].shape != p.shape:
                got = f"shape {tuple(state[name].shape)}" if name in state else "no such parameter"
                raise ValueError(
                    f"the other checkpoint must have a parameter {name!r} of shape "
                    f"{tuple(p.shape)}: got {got}; pass a checkpoint of the same architecture."
                )
            # Weights of similar size cancel; double precision keeps the digits that are left.
            wide = torch.promote_types(p.dtype, torch.float64)
            differences.append(state[name].to(p.device, wide) - p.detach().to(wide))
        buffers = {
            name: state[name].to(b.device, b.dtype) - b
            for name, b in self.curvature.model.named_buffers()
            if b.is_floating_point() and name in state
        }
        return self.layout.pack(differences, self.curvature.dtype), buffers

    def _is_by_parameter(self, directions: Mapping[str, Any]) -> bool:
        """Whether a mapping is a single direction, given as tensors by parameter name."""
        buffers = {name for name, _ in self.curvature.model.named_buffers()}
        if buffers & set(directions):
            raise ValueError(
                "a state dict with buffers is not a direction; pass towards(state_dict) for the "
                "line to that checkpoint, or a mapping of only the parameters."
            )
        return bool(set(self.layout.names) & set(directions))


def _renamed(state: Mapping[str, Tensor], names: Sequence[str]) -> Mapping[str, Tensor]:
    """A state dict with this network's names, whatever wrappers its own names contain.

    DistributedDataParallel adds the prefix ``module.``, and torch.compile ``_orig_mod.``.
    """
    by_plain_name = {_plain_name(name): x for name, x in state.items()}
    if all(name in state for name in names) or len(by_plain_name) < len(state):
        return state
    plain = {name: _plain_name(name) for name in (*names, *map(str, by_plain_name))}
    found = {name: by_plain_name[p] for name, p in plain.items() if p in by_plain_name}
    return {**by_plain_name, **found}


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def filter_normalized(displacement: Displacement, layout: Layout) -> Displacement:
    """Scale the filters of a direction to the norms of the network's filters (Li et al. 2018).

    A filter is a slice of a weight along its first axis. Parameters with one dimension, such as
    biases and the parameters of normalization layers, get zero.
    """
    if displacement.buffers is not None:
        raise ValueError(
            "filter_normalize=True would change the line to another checkpoint so that it misses "
            "the checkpoint; leave filter_normalize out."
        )
    scaled = []
    tensors = layout.unflatten(displacement.vector).values()
    for d, p in zip(tensors, layout.tensors, strict=True):
        if p.ndim < 2:
            scaled.append(torch.zeros_like(d))
            continue
        wanted = real_view(p.detach()).to(torch.float64).flatten(1).norm(dim=1)
        own = real_view(d).to(torch.float64).flatten(1).norm(dim=1)
        scale = torch.where(own > 0, wanted / own, 0.0)
        scaled.append(d * scale.reshape(-1, *[1] * (p.ndim - 1)).to(d.dtype))
    return displacement._replace(vector=layout.pack(scaled, displacement.vector.dtype))


def _columns(directions: Any) -> list[Any] | None:
    """The one or two vectors of an EigenResult or of a block; None for anything else."""
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
