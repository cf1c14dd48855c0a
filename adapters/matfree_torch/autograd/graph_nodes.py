"""The nodes of an autograd graph: the operations and the leaves that a tensor depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nodes_behind(value: Tensor, through: Tensor | None = None) -> Iterator[Any]:
    """The nodes of the graph of a tensor, each once.

    Parameters
    ----------
    value : Tensor
    through : Tensor, optional
        Paths that lead through this tensor are not followed beyond it.
    """
    end = None if through is None else (through.grad_fn, through.output_nr)
    seen, waiting = set[Any](), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [child for child, number in node.next_functions if (child, number) != end]


def leaves_behind(value: Tensor, through: Tensor | None = None) -> Iterator[Tensor]:
    """The leaves that a tensor depends on, not counting paths that lead through another tensor."""
    for node in nodes_behind(value, through):
        if hasattr(node, "variable"):
            yield node.variable
