"""Named tensors as one flat vector, and back.

Tensors that are cut up over processes lie end to end as if they were whole; a process has some
rows of the vector, and works on the parts of the tensors that it holds, end to end likewise.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import (
    dtensor_like,
    local_tensor,
    mesh_communicator,
    shard_like,
)
from matfree_torch.distributed.redistribution import Redistribution, even_rows

Patterns: TypeAlias = str | Sequence[str]
"""Names, or patterns with ``*`` and ``?`` for several of them."""


class Layout:
    """Tensors laid end to end, in the order they are given.

    Parameters
    ----------
    tensors : mapping of names to tensors of one device, not empty
    noun : str
        What error messages call one of them.
    processes : Processes, optional
        Those that share out the rows of vectors, where tensors are whole in all of them; by
        default those that tensors are cut up over.

    Raises
    ------
    ValueError
        The tensors lie on several devices, or are cut up over several meshes.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], noun: str, communicator: Communicator | None = None
    ) -> None:
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
        self.partition = _laid(self.names, self.sizes)
        self.redistribution = _redistribution(self.tensors, communicator)
        self._shapes = [local_tensor(p).shape for p in self.tensors]
        self._lengths = [math.prod(shape) for shape in self._shapes]
        self.local_size = sum(self._lengths)
        """Entries of the parts that are here: ``size`` where nothing is cut up."""
        self.local_slices = _laid(self.names, self._lengths)
        """Where the part of each tensor that is here lies among the others."""

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
            None if self.redistribution is None else self.redistribution.communicator,
        )

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """The parts that are here, (held,), as tensors cut up as the layout's, of their dtypes."""
        return [
            dtensor_like(x.reshape(shape).to(p.dtype), p)
            for x, shape, p in zip(
                torch.split(vector, self._lengths), self._shapes, self.tensors, strict=True
            )
        ]

    def pack(self, pieces: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """The parts that are here, (held,), of the layout's dtype or the one given."""
        target = dtype or self.dtype
        parts = [
            shard_like(piece.detach(), p) for piece, p in zip(pieces, self.tensors, strict=True)
        ]
        return torch.cat([x.reshape(-1).to(target) for x in parts])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (rows,) as tensors by name, cut up as the layout's are."""
        rows = self.size if self.redistribution is None else len(self.redistribution.rows)
        if tuple(vector.shape) != (rows,):
            raise ValueError(f"vector must have shape ({rows},): got {tuple(vector.shape)}.")
        if self.redistribution is not None:
            vector = self.redistribution.to_shards(vector[:, None])[:, 0]
        parts = zip(torch.split(vector, self._lengths), self._shapes, self.tensors, strict=True)
        joined = [dtensor_like(x.reshape(shape), p) for x, shape, p in parts]
        return dict(zip(self.names, joined, strict=True))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a flat vector, (rows,)."""
        if set(tensors) != set(self.names):
            different = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"tensors must name every {self.noun} once: {different} do not match.")
        return self.to_rows(self.pack([tensors[name] for name in self.names])[:, None])[:, 0]

    def to_shards(self, X: Tensor) -> Tensor:
        """Rows of vectors (rows, k) as the parts of the tensors that are here, (held, k)."""
        return X if self.redistribution is None else self.redistribution.to_shards(X)

    def to_rows(self, Y: Tensor) -> Tensor:
        """The parts that are here, (held, k), as the rows of vectors that are, (rows, k)."""
        return Y if self.redistribution is None else self.redistribution.to_rows(Y)


def _laid(names: Sequence[str], sizes: Sequence[int]) -> dict[str, slice]:
    """Where each of some things lies that are laid end to end."""
    edges = [0, *itertools.accumulate(sizes)]
    return {name: slice(*pair) for name, pair in zip(names, itertools.pairwise(edges), strict=True)}


def _redistribution(
    tensors: list[Tensor], communicator: Communicator | None
) -> Redistribution | None:
    """The way from rows to parts and back, where processes share out the rows."""
    communicator = communicator or mesh_communicator(tensors)
    if communicator is None:
        return None
    size = sum(math.prod(p.shape) for p in tensors)
    return Redistribution(communicator, tensors, even_rows(size, communicator.size))


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


@final
class Parameters(Layout):
    """Some parameters of a network, in the order of ``named_parameters``.

    A parameter shared by several modules counts once, under its first name.

    Parameters
    ----------
    model : nn.Module
    patterns : str or sequence of str, optional
        Names to take, with ``*`` and ``?`` as wildcards; by default everything that
        requires a gradient. Named ones are taken even if they are frozen.
    processes : Processes, optional
        As for :class:`Layout`.

    Raises
    ------
    ValueError
        Nothing is left, a pattern matches nothing, or devices differ.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Patterns | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        everything: dict[str, Tensor] = dict(model.named_parameters())
        if patterns is None:
            chosen = {name: p for name, p in everything.items() if p.requires_grad}
        else:
            chosen = matching(everything, patterns, "parameter")
        chosen = {name: p for name, p in chosen.items() if p.is_floating_point()}
        if not chosen:
            raise ValueError(
                f"the model has no parameter to differentiate ({len(everything)} in all, none "
                "that requires a gradient); unfreeze some, or name them with params=."
            )
        super().__init__(chosen, "parameter", communicator)

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
