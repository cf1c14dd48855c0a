"""Named tensors as one flat vector, and back.

A :class:`Layout` concatenates tensors in a fixed order. With tensors that are sharded over
processes there are two distributions of one vector, and every vector is in one of them:

*rows*
    Each process holds a contiguous range of rows of the whole vector. Algorithms and users see
    vectors in this form.
*shards*
    Each process holds its shards of all tensors, concatenated. Derivatives are computed in this
    form.

Without sharded tensors the two are the same.

A complex entry counts as two real ones, its real part followed by its imaginary part, in the order
of ``torch.view_as_real``. A real function of complex parameters thereby has an ordinary gradient
and a symmetric Hessian.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor

from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import (
    local_tensor,
    mesh_communicator,
    shard_like,
)
from matfree_torch.distributed.redistribution import Redistribution, even_rows
from matfree_torch.vectors.entries import (
    moved_by,
    num_real,
    real_view,
    shaped_like,
)

Patterns: TypeAlias = str | Sequence[str] | Mapping[str, Any]
"""Names, or patterns with the wildcards ``*`` and ``?``. The keys of a mapping are names."""


class Layout:
    """Tensors concatenated in the order in which they are given.

    Parameters
    ----------
    tensors : mapping of names to tensors on one device, not empty
    noun : str
        The word for one of the tensors in error messages.
    communicator : Communicator, optional
        The processes over which the rows of vectors are distributed if every process holds
        whole tensors. By default, the processes over which the tensors are sharded.

    Raises
    ------
    ValueError
        The tensors are on several devices, or sharded over several device meshes.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], noun: str, communicator: Communicator | None = None
    ) -> None:
        devices = {p.device for p in tensors.values()}
        if len(devices) > 1:
            raise ValueError(
                f"the {noun}s must be on one device: got {sorted(map(str, devices))}; move the "
                "model to one device, or select some of them."
            )
        self.noun = noun
        self._by_name = dict(tensors)
        self.names = tuple(tensors)
        self.sizes = [num_real(p) for p in self.tensors]
        self.size = sum(self.sizes)
        self.device = self.tensors[0].device
        self.partition = _consecutive_slices(self.names, self.sizes)
        self.redistribution = _redistribution(self.tensors, communicator)
        self._local_shapes = [(*local_tensor(p).shape, *[2] * p.is_complex()) for p in self.tensors]
        self._local_sizes = [math.prod(shape) for shape in self._local_shapes]
        self.local_size = sum(self._local_sizes)
        """Number of entries in the local shards; ``size`` if nothing is sharded."""
        self.local_slices = _consecutive_slices(self.names, self._local_sizes)
        """The slice of each tensor's local shard in the concatenation of all local shards."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in their order."""
        return [self._by_name[name] for name in self.names]

    @property
    def dtype(self) -> torch.dtype:
        """The data type of flat vectors, which is real: the widest, float32 at least."""
        widest = torch.float32  # inner products in half precision would lose all accuracy
        for p in self.tensors:
            widest = torch.promote_types(widest, p.dtype.to_real())
        return widest

    def subset(self, patterns: Patterns) -> Layout:
        """The layout of the tensors whose names match."""
        subset = Layout(
            match_names(dict(zip(self.names, self.tensors, strict=True)), patterns, self.noun),
            self.noun,
            None if self.redistribution is None else self.redistribution.communicator,
        )
        subset._by_name = self._by_name  # so that it follows when tensors are replaced
        return subset

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Split local shards (local_size,) into tensors with the dtypes and shards of the layout's.

        The inverse is :meth:`pack`.
        """
        return self._split(vector, [p.dtype for p in self.tensors])

    def pack(self, tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Concatenate the local shards of tensors, one for each tensor of the layout.

        Returns
        -------
        (local_size,), of the layout's dtype or the given one
        """
        target = dtype or self.dtype
        shards = [shard_like(x.detach(), p) for x, p in zip(tensors, self.tensors, strict=True)]
        return torch.cat([real_view(x).reshape(-1).to(target) for x in shards])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector (rows,) as tensors by name, sharded like the layout's tensors."""
        rows = self.size if self.redistribution is None else len(self.redistribution.rows)
        if tuple(vector.shape) != (rows,):
            raise ValueError(f"vector must have shape ({rows},): got {tuple(vector.shape)}.")
        local = self.to_shards(vector[:, None])[:, 0]
        tensors = self._split(local, [vector.dtype] * len(self.tensors))
        return dict(zip(self.names, tensors, strict=True))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a flat vector (rows,)."""
        if set(tensors) != set(self.names):
            different = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"tensors must name every {self.noun} once: {different} do not match.")
        given = [tensors[name] for name in self.names]
        for name, x, p in zip(self.names, given, self.tensors, strict=True):
            if x.is_complex() != p.is_complex():
                raise ValueError(
                    f"the {self.noun} {name!r} is {p.dtype}: got a tensor of {x.dtype}; real and "
                    "complex numbers are not converted to each other."
                )
        return self.to_rows(self.pack(given)[:, None])[:, 0]

    def to_shards(self, X: Tensor) -> Tensor:
        """Redistribute a block from rows, (rows, k), to local shards, (local_size, k)."""
        return X if self.redistribution is None else self.redistribution.to_shards(X)

    def to_rows(self, Y: Tensor) -> Tensor:
        """Redistribute a block from local shards, (local_size, k), to rows, (rows, k)."""
        return Y if self.redistribution is None else self.redistribution.to_rows(Y)

    def _split(self, vector: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        """Split local shards (local_size,) into tensors of these dtypes."""
        local = torch.split(vector, self._local_sizes)
        parts = zip(local, self._local_shapes, dtypes, self.tensors, strict=True)
        return [shaped_like(x.reshape(shape), dtype, p) for x, shape, dtype, p in parts]

    @contextlib.contextmanager
    def moved(self, steps: Mapping[str, Tensor]) -> Iterator[None]:
        """Add steps to some of the tensors within the context; restore them exactly afterwards.

        The tensors themselves are moved, so that everything that reads them sees the new values,
        such as a penalty in the loss.
        """
        with contextlib.ExitStack() as stack:
            for name, x in zip(self.names, self.tensors, strict=True):
                if name in steps:
                    stack.enter_context(moved_by(x, steps[name]))
            yield


def match_names(things: Mapping[str, Any], patterns: Patterns, noun: str) -> dict[str, Any]:
    """Return the entries whose names match one of the patterns.

    Raises
    ------
    ValueError
        A pattern matches no name.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if isinstance(patterns, Mapping):  # names, not patterns
        wanted = list(map(glob.escape, wanted))
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in things):
            raise ValueError(
                f"no {noun} matches {pattern!r}; the names are "
                f"{', '.join(list(things)[:12])}{' ...' * (len(things) > 12)}."
            )
    return {
        name: thing
        for name, thing in things.items()
        if any(fnmatchcase(name, pattern) for pattern in wanted)
    }


def _consecutive_slices(names: Sequence[str], sizes: Sequence[int]) -> dict[str, slice]:
    """The slices of consecutive segments of these sizes."""
    edges = [0, *itertools.accumulate(sizes)]
    return {name: slice(*pair) for name, pair in zip(names, itertools.pairwise(edges), strict=True)}


def _redistribution(
    tensors: list[Tensor], communicator: Communicator | None
) -> Redistribution | None:
    """The map between rows and shards; None if every process holds whole vectors."""
    communicator = communicator or mesh_communicator(tensors)
    if communicator is None:
        return None
    if any(p.is_complex() for p in tensors):
        raise ValueError(
            "vectors of complex parameters cannot be divided over processes; hold real and "
            "imaginary parts in a real parameter, and use torch.view_as_complex in the forward "
            "pass."
        )
    size = sum(map(num_real, tensors))
    return Redistribution(communicator, tensors, even_rows(size, communicator.size))
