"""Look up the implementation of Hessian-vector products by the name of its strategy."""

from __future__ import annotations

from matfree_torch.hvp.constant_folding import FoldedForwardOverReverse
from matfree_torch.hvp.strategies import (
    DoubleBackward,
    FiniteDifference,
    ForwardOverReverse,
    HvpStrategy,
    Strategy,
    graph_cache_policy,
    require_strategy,
)
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.parameters import Parameters


def make_strategy(
    strategy: Strategy, objective: Objective, parameters: Parameters, memory: int | None
) -> HvpStrategy:
    """Return the implementation of this strategy, after checking its name and ``memory``."""
    require_strategy(strategy, Strategy, memory)
    if strategy == "forward":
        return ForwardOverReverse(objective, parameters)
    if strategy == "folded":
        return FoldedForwardOverReverse(objective, parameters, memory)
    if strategy == "finite-difference":
        return FiniteDifference(objective, parameters)
    return DoubleBackward(objective, parameters, graph_cache_policy(strategy, memory))
