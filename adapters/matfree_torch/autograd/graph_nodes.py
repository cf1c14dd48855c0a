"""The nodes of an autograd graph: the operations and the leaves that a tensor depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def graph_nodes(value: Tensor, through: Tensor | None = None) -> Iterator[Any]:
    """Iterate over the nodes of the autograd graph of a tensor, each once.

    Parameters
    ----------
    value : Tensor
    through : Tensor, optional
        The nodes from which only this tensor was computed are left out.
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


def graph_leaves(value: Tensor, through: Tensor | None = None) -> Iterator[Tensor]:
    """Iterate over the leaves of the graph, except those reached only via ``through``."""
    for node in graph_nodes(value, through):
        if hasattr(node, "variable"):
            yield node.variable
