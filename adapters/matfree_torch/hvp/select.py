"""Which way of making Hessian-vector products goes by which name."""

from __future__ import annotations

from matfree_torch.hvp.constant_folding import FoldedProducts
from matfree_torch.hvp.strategies import (
    DoubleBackward,
    FiniteDifference,
    ForwardOverReverse,
    Products,
    Strategy,
    graph_retention,
    require_strategy,
)
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Parameters


def products_by(
    strategy: Strategy, objective: Objective, parameters: Parameters, memory: int | None
) -> Products:
    """The way of making products that goes by this name."""
    require_strategy(strategy, Strategy, memory)
    if strategy == "forward":
        return ForwardOverReverse(objective, parameters)
    if strategy == "folded":
        return FoldedProducts(objective, parameters, memory)
    if strategy == "finite-difference":
        return FiniteDifference(objective, parameters)
    return DoubleBackward(objective, parameters, graph_retention(strategy, memory))
