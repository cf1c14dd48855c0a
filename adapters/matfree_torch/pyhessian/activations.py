"""Activation Hessians layer by layer, with PyHessian's method names."""

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
from matfree_torch.pyhessian.data import Criterion, resolve_data


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
    """The Hessian of a loss with respect to the activations of layers, by default convolutions.

    Parameters
    ----------
    model, criterion, data, dataloader, cuda
        As for :func:`matfree_torch.pyhessian.hessian`.
    modules, at
        The layers, and whether the activations are their inputs ("input"), their outputs
        ("output") or the tensors that they read ("tensor"), as for
        :func:`matfree_torch.activation_hessian`.

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
        model, criterion, resolve_data(model, data, dataloader, cuda), modules, at
    )


@final
class ActivationComputation:
    """Activation Hessians layer by layer, returned by :func:`hessian_with_activation`.

    Hooks are registered during forward passes only, so the model is not changed.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion, data: Any, modules: Selection, at: Where
    ) -> None:
        self._arguments = (model, criterion, data)
        self._ports: dict[str, Any] = {"modules": modules, "at": at}
        self._operator: ActivationHessian | None = None
        self._vectors: list[Tensor] = []
        self._num_draws = 0

    def insert_hook(self) -> None:
        """Find the layers in a forward pass with the first batch."""
        model, criterion, data = self._arguments
        with torch.random.fork_rng(devices=[]):  # the iterator of a loader draws a seed
            first = data if isinstance(data, tuple | Mapping) else next(iter(data))
        operator = activation_hessian(model, criterion, first, **self._ports)
        assert isinstance(operator, ActivationHessian)  # there is no process group
        self._operator = operator

    @property
    def operator(self) -> ActivationHessian:
        """The joint operator of all layers for the first batch."""
        if self._operator is None:
            raise ValueError("the layers have not been found yet; call insert_hook() first.")
        return self._operator

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the layers, one entry per call, in the order of all lists."""
        return self.operator.names

    def get_activ_rand_v(self, *, seed: int = 0) -> list[Tensor]:
        """Draw a new vector of random signs for each layer, in the shape of its activation."""
        A = self.operator
        signs = A.space.probes(1, seed=seed, start=self._num_draws)[:, 0]
        self._num_draws += 1
        self._vectors = list(A.unflatten(signs).values())
        return self._vectors

    def hv_activ(self, v: Sequence[Tensor] | None = None) -> list[Tensor]:
        """H[l, l] v_l for each layer l. By default v holds the last random vectors."""
        A, vectors = self.operator, self._given_or_last(v)
        return [
            (A.block(name) @ x.reshape(-1)).reshape(x.shape)
            for name, x in zip(A.names, vectors, strict=True)
        ]

    def hv_cross(self, row: int, column: int, v: Tensor | None = None) -> Tensor:
        """H[row, column] v, the effect of a change at one layer on the gradient at another."""
        A = self.operator
        x = self._given_or_last(None)[column] if v is None else v
        Hv: Tensor = A.block(A.names[row], A.names[column]) @ x.reshape(-1)
        return Hv.reshape(A.layout.tensors[row].shape)

    def trace_activ(self, maxIter: int = 50, *, seed: Seed = None) -> list[float]:
        """The trace of the Hessian of each layer, over all of the data.

        Parameters
        ----------
        maxIter : int
            Probes per layer and batch, unless the exact trace costs less.
        seed : int, None or numpy.random.Generator
        """
        traces = activation_traces(*self._arguments, **self._ports, num_probes=maxIter, seed=seed)
        return [float(trace) for trace in traces.values()]

    def _given_or_last(self, v: Sequence[Tensor] | None) -> Sequence[Tensor]:
        if v is None and not self._vectors:
            raise ValueError("there are no random vectors yet; call get_activ_rand_v() first.")
        return self._vectors if v is None else v
