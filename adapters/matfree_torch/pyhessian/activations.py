"""PyHessian's way of asking for activation Hessians: layer by layer, with its method names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree.protocol import Seed
from matfree_torch.activations.activation_hessian import activation_hessian
from matfree_torch.activations.activation_traces import activation_traces
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.pyhessian.data import Criterion, handed_over


def hessian_with_activation(
    model: nn.Module,
    criterion: Criterion,
    data: Any = None,
    dataloader: Any = None,
    cuda: bool = False,
    *,
    modules: Selection = nn.Conv2d,
    at: Where = "input",
) -> ActivationComputation:
    """The Hessian of a loss in the activations of some layers, convolutions by default.

    Parameters
    ----------
    model, criterion, data, dataloader, cuda
        As for :func:`matfree_torch.pyhessian.hessian`.
    modules, at
        As for :func:`matfree_torch.activation_hessian`: which layers, and their inputs
        ("input"), outputs ("output"), or the tensors that they read ("tensor").

    Returns
    -------
    ActivationComputation

    Raises
    ------
    ValueError
        As for :func:`matfree_torch.pyhessian.hessian`.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import hessian_with_activation
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
    >>> data = torch.ones(4, 1, 3, 3), torch.tensor([0, 1, 1, 0])
    >>> hessian_comp = hessian_with_activation(model, torch.nn.CrossEntropyLoss(), data=data)
    >>> hessian_comp.insert_hook()
    >>> hessian_comp.get_activ_rand_v()[0].shape
    torch.Size([4, 1, 3, 3])
    >>> len(hessian_comp.trace_activ())
    1
    """
    return ActivationComputation(
        model, criterion, handed_over(model, data, dataloader, cuda), modules, at
    )


@final
class ActivationComputation:
    """Activation Hessians layer by layer; made by :func:`hessian_with_activation`.

    Nothing stays on the model: hooks are there during a forward pass only.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion, data: Any, modules: Selection, at: Where
    ) -> None:
        self._arguments = (model, criterion, data)
        self._where: dict[str, Any] = {"modules": modules, "at": at}
        self._operator: ActivationHessian | None = None
        self._vectors: list[Tensor] = []
        self._draws = 0

    def insert_hook(self) -> None:
        """Find the layers; with one batch, from a forward pass."""
        model, criterion, data = self._arguments
        with torch.random.fork_rng(devices=[]):  # a loader's iterator draws a seed
            first = data if isinstance(data, tuple | Mapping) else next(iter(data))
        operator = activation_hessian(model, criterion, first, **self._where)
        assert isinstance(operator, ActivationHessian)  # there is no process group
        self._operator = operator

    @property
    def operator(self) -> ActivationHessian:
        """The joint operator over all layers, of the first batch."""
        if self._operator is None:
            raise ValueError("the layers are not known yet; call insert_hook() first.")
        return self._operator

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers, one entry a call, in the order of all lists."""
        return self.operator.names

    def get_activ_rand_v(self, *, seed: int = 0) -> list[Tensor]:
        """Draw a random sign vector for each layer, in its activation's shape; new every time."""
        A = self.operator
        signs = A.space.probes(1, seed=seed, start=self._draws)[:, 0]
        self._draws += 1
        self._vectors = list(A.unflatten(signs).values())
        return self._vectors

    def hv_activ(self, v: Sequence[Tensor] | None = None) -> list[Tensor]:
        """H[l, l] v_l for every layer l by itself; the random vectors by default."""
        A, vectors = self.operator, self._given(v)
        return [
            (A.block(name) @ x.reshape(-1)).reshape(x.shape)
            for name, x in zip(A.names, vectors, strict=True)
        ]

    def hv_cross(self, row: int, column: int, v: Tensor | None = None) -> Tensor:
        """H[row, column] v: what a change at one layer does to the gradient at another."""
        A = self.operator
        x = self._given(None)[column] if v is None else v
        product: Tensor = A.block(A.names[row], A.names[column]) @ x.reshape(-1)
        return product.reshape(A.layout.tensors[row].shape)

    def trace_activ(self, maxIter: int = 50, *, seed: Seed = None) -> list[float]:
        """The trace of every layer's own Hessian, over all of the data.

        Parameters
        ----------
        maxIter : int
            Probes a layer, where the trace cannot be had exactly for less.
        seed : int, None or numpy.random.Generator
        """
        traces = activation_traces(*self._arguments, **self._where, num_probes=maxIter, seed=seed)
        return [float(trace) for trace in traces.values()]

    def _given(self, v: Sequence[Tensor] | None) -> Sequence[Tensor]:
        if v is None and not self._vectors:
            raise ValueError("there is no random vector yet; call get_activ_rand_v() first.")
        return self._vectors if v is None else v
