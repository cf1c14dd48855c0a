"""PyHessian's class ``hessian_with_activation``: activation Hessians layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matfree.protocol import Seed
from matfree_torch.activations.activation_traces import activation_traces
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.ports import Selection, Where, choose_modules
from matfree_torch.pyhessian.data import Criterion
from matfree_torch.pyhessian.hessian import hessian
from matfree_torch.pyhessian.layers import (
    layer_products,
    mean_layer_products,
    modules_ending_with,
    operator_of_layers,
    print_layers,
    warn_of_branches,
)
from matfree_torch.pyhessian.recorded import Recorded, record
from matfree_torch.pyhessian.sampled_traces import sampled_traces
from matfree_torch.pyhessian.utils import group_product


class hessian_with_activation(hessian):  # noqa: N801 - the name is PyHessian's
    """The Hessian of a loss with respect to the activations of layers, by default convolutions.

    It has all methods of :class:`matfree_torch.pyhessian.hessian`, which are about the parameters.
    The methods whose names contain ``activ``, and ``operator``, are about the activations of the
    layers that ``insert_hook`` has chosen. Hooks are registered during forward passes only, so the
    model is not changed.

    Parameters
    ----------
    model, criterion, data, dataloader, cuda
        As for :class:`matfree_torch.pyhessian.hessian`.
    modules, at
        The layers that ``insert_hook()`` chooses, and whether the activations are their inputs
        ("input"), their outputs ("output") or the tensors that they read ("tensor"), as for
        :func:`matfree_torch.activation_hessian`.

    Raises
    ------
    ValueError
        As for :class:`matfree_torch.pyhessian.hessian`.

    Warns
    -----
    UserWarning
        Once, by the first method that runs the model: a chosen layer reads a tensor that other
        operations read as well (a residual branch), where PyHessian's values are not those of a
        Hessian.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import hessian_with_activation
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
    >>> data = torch.ones(4, 1, 3, 3), torch.tensor([0, 1, 1, 0])
    >>> hessian_comp = hessian_with_activation(model, torch.nn.CrossEntropyLoss(), data=data)
    >>> hessian_comp.insert_hook()
    >>> v = hessian_comp.get_activ_rand_v(show_layer=True)
    0: activation of shape (4, 1, 3, 3)
    >>> v[0].shape, hessian_comp.activations["0"][0].shape
    (torch.Size([4, 1, 3, 3]), torch.Size([4, 1, 3, 3]))
    >>> Hv = hessian_comp.hv_activ(v)[0]
    >>> torch.equal(Hv, hessian_comp.hv_cross(0, 0))
    True
    >>> vHv, _ = hessian_comp.dataloader_activation_hv_product(v)
    >>> bool(torch.isclose(torch.tensor(vHv), (v[0] * Hv).sum()))
    True
    >>> activations, gradients = hessian_comp.get_same_size_activ_grad()
    >>> hessian_comp.reset_reg_active()
    >>> rows = hessian_comp.trace_activ(maxIter=20)  # one list per probe, one number per layer
    >>> len(rows[-1])
    1
    >>> top_eigenvalues, top_eigenvector = hessian_comp.eigenvalues()  # of the parameters
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: Any = None,
        dataloader: Any = None,
        cuda: bool = False,
        *,
        modules: Selection = nn.Conv2d,
        at: Where = "input",
    ) -> None:
        super().__init__(model, criterion, data, dataloader, cuda)
        self._modules, self._at = modules, at
        self._chosen: set[str] = set()
        self._first_batch: Any = None if self.full_dataset else self.data
        self._activation_operator: ActivationHessian | None = None
        self._recorded: Recorded | None = None
        self._vectors: list[Tensor] = []
        self._num_draws, self._warned = 0, False

    def insert_hook(self, module_name: str | None = None) -> None:
        """Choose layers, in addition to those that earlier calls have chosen.

        Parameters
        ----------
        module_name : str, optional
            The end of the names of the layers, such as "conv". If no name ends with it, a number
            at the end of the names is ignored ("conv1"), with a warning. By default the layers are
            those of the argument ``modules`` of the class.

        Raises
        ------
        ValueError
            There is no such layer, or the model does not call it.
        """
        if module_name is None:
            chosen = self._chosen | set(choose_modules(self.model, self._modules))
        else:
            chosen = self._chosen | modules_ending_with(self.model, module_name)
        if self._first_batch is None:
            with torch.random.fork_rng(devices=[]):  # the iterator of a loader draws a seed
                self._first_batch = next(iter(self.data))
        operator = self._activations_of(self._first_batch, chosen)
        self._chosen, self._activation_operator = chosen, operator
        self._recorded, self._vectors = None, []

    @property
    def operator(self) -> ActivationHessian:
        """The joint operator of the activations of all layers for the first batch."""
        if self._activation_operator is None:
            raise ValueError("the layers have not been found yet; call insert_hook() first.")
        return self._activation_operator

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the layers, one entry per call, in the order of all lists."""
        return self.operator.names

    @property
    def activations(self) -> dict[str, list[Tensor]]:
        """The activation of each layer for the first batch, in a list of length one."""
        if self._activation_operator is None:
            return {}
        return {name: [x] for name, x in self._record().activations.items()}

    @property
    def activation_grads(self) -> dict[str, list[Tensor]]:
        """The gradient of the loss with respect to each of the ``activations``.

        It has a graph: its derivative with respect to the activation is a block of the Hessian.
        """
        if self._activation_operator is None:
            return {}
        return {name: [g] for name, g in self._record().gradients.items()}

    def reset_reg_active(self) -> None:
        """Free the recorded activations. They are recorded anew when they are read."""
        self._recorded = None

    def get_same_size_activ_grad(
        self, show_layer: bool = False, dont_reset: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The ``activations`` and the ``activation_grads`` as lists.

        Parameters
        ----------
        show_layer : bool
            Whether to print the name and the shape of each.
        dont_reset : bool
            Whether to keep what was recorded; see ``reset_reg_active``.
        """
        recorded = self._record()
        if show_layer:
            print_layers(recorded)
        if not dont_reset:
            self.reset_reg_active()
        return list(recorded.activations.values()), list(recorded.gradients.values())

    def get_activ_rand_v(
        self, show_layer: bool = False, dont_reset: bool = False, *, seed: int = 0
    ) -> list[Tensor]:
        """Draw a new vector of random signs for each layer, in the shape of its activation.

        Parameters
        ----------
        show_layer, dont_reset
            As for ``get_same_size_activ_grad``.
        seed : int
        """
        A = self.operator
        self.get_same_size_activ_grad(show_layer, dont_reset)
        signs = A.space.probes(1, seed=seed, start=self._num_draws)[:, 0]
        self._num_draws += 1
        self._vectors = list(A.unflatten(signs).values())
        return self._vectors

    def hv_activ(self, v: Sequence[Tensor] | None = None) -> list[Tensor]:
        """H[l, l] v_l for each layer l. By default v holds the last random vectors."""
        return layer_products(self.operator, self._given_or_last(v))

    def hv_cross(self, row: int, column: int, v: Tensor | None = None) -> Tensor:
        """H[row, column] v, the effect of a change at one layer on the gradient at another."""
        A = self.operator
        x = self._given_or_last(None)[column] if v is None else v
        Hv: Tensor = A.block(A.names[row], A.names[column]) @ x.reshape(-1)
        return Hv.reshape(A.layout.tensors[row].shape)

    def dataloader_activation_hv_product(
        self, active_v: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The mean over all batches of H[l, l] v_l, and the sum over the layers of v_l^T H v_l.

        Batches whose activations do not have the shapes of the vectors are left out, with a
        warning.

        Raises
        ------
        ValueError
            No batch has activations of these shapes.
        """
        batches = self._lists.operator.objective.batches
        operators = (
            (batch.weight, self._activations_of((batch.inputs, batch.targets), self._chosen))
            for batch in batches
        )
        mean = mean_layer_products(operators, active_v)
        return float(group_product(active_v, mean)), mean

    def trace_activ(
        self, maxIter: int = 100, tol: float = 1e-3, *, seed: Seed = None
    ) -> list[list[float]]:
        """Estimates of the trace of each layer's Hessian, over all of the data.

        Without an earlier ``insert_hook``, the layers are those of ``insert_hook()``.

        Parameters
        ----------
        maxIter : int
            The largest number of probes per layer and batch.
        tol : float
            The half-width of the 95 % interval to reach at every layer, relative to the trace.
            With 0 there are ``maxIter`` probes.
        seed : int, None or numpy.random.Generator

        Returns
        -------
        One list per probe, which holds one number per layer: their mean over the probes is the
        estimate. A trace that costs less to compute exactly is the same in all lists. If all are
        exact, there are two equal lists (one if maxIter=1).

        Warns
        -----
        ConvergenceWarning
            ``maxIter`` probes are not enough for ``tol``.
        """
        if self._activation_operator is None:
            self.insert_hook()
        self._record()
        self.reset_reg_active()

        def traces(num_probes: int, round_seed: int) -> Any:
            return activation_traces(
                self.model,
                self.criterion,
                self.data,
                modules=lambda name, module: name in self._chosen,
                at=self._at,
                num_probes=num_probes,
                seed=round_seed,
                batch=None if self.full_dataset else True,
            )

        return sampled_traces(traces, maxIter, tol, seed)

    def _activations_of(self, batch: Any, chosen: set[str]) -> ActivationHessian:
        return operator_of_layers(self.model, self.criterion, batch, chosen, self._at)

    def _record(self) -> Recorded:
        """What was recorded at the present state of the model."""
        A = self.operator
        if self._recorded is None or self._recorded.graph is not A.graph():
            self._recorded = record(A)
            if self._at == "input" and self._recorded.branched and not self._warned:
                self._warned = True
                warn_of_branches(self._recorded.branched)
        return self._recorded

    def _given_or_last(self, v: Sequence[Tensor] | None) -> Sequence[Tensor]:
        if v is None and not self._vectors:
            raise ValueError("there are no random vectors yet; call get_activ_rand_v() first.")
        return self._vectors if v is None else v


ActivationComputation = hessian_with_activation
"""The former name of the class."""
