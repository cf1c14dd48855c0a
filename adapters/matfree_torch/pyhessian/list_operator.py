"""Operators on flat vectors from functions of lists of tensors, for subclasses of ``hessian``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from matfree import Operator
from matfree.protocol import Array
from matfree_torch.curvature.hessian import HessianOperator
from matfree_torch.pyhessian.utils import require_shapes

ListFunction = Callable[[list[Tensor]], Sequence[Tensor]]


@final
class ParameterLists:
    """Flat vectors of a Hessian as lists of tensors in an order of parameters, and back.

    Parameters
    ----------
    operator : HessianOperator
    names : the parameters' names, in the order of the lists
    """

    def __init__(self, operator: HessianOperator, names: Sequence[str]) -> None:
        self.operator, self.names = operator, list(names)

    def tensors(self) -> list[Tensor]:
        """The parameters themselves."""
        layout = self.operator.layout
        by_name = dict(zip(layout.names, layout.tensors, strict=True))
        return [by_name[name] for name in self.names]

    def from_flat(self, vector: Tensor) -> list[Tensor]:
        """A flat vector as a list of tensors."""
        by_name = self.operator.unflatten(vector)
        return [by_name[name] for name in self.names]

    def to_flat(self, v: Sequence[Tensor], what: str = "v") -> Tensor:
        """A list of tensors as a flat vector. ValueError if the shapes do not match."""
        require_shapes(v, self.tensors(), what)
        device = self.operator.layout.device
        return self.operator.flatten(
            {name: x.to(device) for name, x in zip(self.names, v, strict=True)}
        )


@final
class ListOperator(Operator):
    """The symmetric operator whose matvec is a function of lists of tensors."""

    def __init__(self, lists: ParameterLists, function: ListFunction) -> None:
        super().__init__(lists.operator.space)
        self.lists, self.function = lists, function

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector as tensors by name."""
        return self.lists.operator.unflatten(vector)

    def _apply(self, X: Array) -> Array:
        with torch.inference_mode(False), torch.enable_grad():
            columns = [
                self.lists.to_flat(self.function(self.lists.from_flat(x)), "the matvec's result")
                for x in X.clone().T
            ]
        return torch.stack(columns, dim=1) if columns else X.clone()

    _apply_adjoint = _apply
