"""PyHessian's class ``hessian``, the Hessian with respect to parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import matfree
from matfree import Operator
from matfree.protocol import Seed
from matfree_torch.curvature.hessian import HessianOperator
from matfree_torch.curvature.hessian import hessian as hessian_operator
from matfree_torch.pyhessian.data import Criterion, resolve_data
from matfree_torch.pyhessian.density_plot import NodeLists
from matfree_torch.pyhessian.list_operator import ListOperator, ParameterLists
from matfree_torch.pyhessian.utils import group_product, hessian_vector_product, require_shapes


class hessian:  # noqa: N801 - the name is PyHessian's
    """The Hessian of a loss with respect to the parameters, with PyHessian's methods.

    The class may be subclassed. As in PyHessian, a ``dataloader_hv_product`` of a subclass is what
    all methods compute with if there is a ``dataloader``, and assigned ``params`` and ``gradsH``
    if there is one batch.

    Parameters
    ----------
    model : nn.Module
    criterion : loss (outputs, targets) -> scalar tensor
    data : (inputs, targets), optional
        One batch. Pass either this or ``dataloader``.
    dataloader : re-iterable of batches, optional
    cuda : bool
        Whether the model must be on a GPU.

    Attributes
    ----------
    model, criterion, data, full_dataset, device, inputs, targets
        As in PyHessian: ``full_dataset`` says whether there is a ``dataloader``; ``inputs`` and
        ``targets`` are those of one batch.

    Raises
    ------
    ValueError
        Both or none of ``data`` and ``dataloader`` are given, or cuda=True and the model is not
        on a GPU.

    Warns
    -----
    UserWarning
        A layer normalizes over the batch in the present mode of the model, which PyHessian
        would have changed.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from matfree_torch.pyhessian import hessian
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> hessian_comp = hessian(model, torch.nn.MSELoss(), data=(x, torch.zeros(2, 1)))
    >>> top_eigenvalues, top_eigenvector = hessian_comp.eigenvalues()
    >>> round(top_eigenvalues[0], 4), top_eigenvector[0][0].shape
    (4.0, torch.Size([1, 2]))
    >>> float(np.mean(hessian_comp.trace()))
    5.0
    >>> hessian_comp.dataloader_hv_product([torch.tensor([[1.0, 1.0]])])
    (5.0, [tensor([[1., 4.]])])
    >>> density_eigen, density_weight = hessian_comp.density(iter=2)
    >>> [round(node, 4) for node in density_eigen[0]]
    [1.0, 4.0]
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        data: Any = None,
        dataloader: Any = None,
        cuda: bool = False,
    ) -> None:
        self.data = resolve_data(model, data, dataloader, cuda)
        self.model, self.criterion = model, criterion
        self.full_dataset = data is None
        if not self.full_dataset:
            is_pair = isinstance(self.data, tuple) and len(self.data) == 2
            self.inputs, self.targets = self.data if is_pair else (self.data, self.data)
        self._lists = self._lists_of(None)
        self._assigned_gradients: Sequence[Tensor] | None = None
        self.device = str(self._lists.operator.layout.device)

    @property
    def operator(self) -> Operator:
        """The Hessian as an operator of matfree, with what a subclass changes about it."""
        return self._matrix()

    @property
    def params(self) -> list[Tensor]:
        """The parameters that the Hessian is with respect to. Some of them may be assigned."""
        return self._lists.tensors()

    @params.setter
    def params(self, chosen: Sequence[Tensor]) -> None:
        named = list(self.model.named_parameters())
        known = {id(p): name for name, p in named}
        for index, p in enumerate(chosen):
            if id(p) not in known:
                raise ValueError(
                    f"params[{index}], of shape {tuple(p.shape)}, is no parameter of the model; "
                    "select from model.parameters(), and copy none of them."
                )
        self._lists = self._lists_of([known[id(p)] for p in chosen])
        self._assigned_gradients = None

    @property
    def gradsH(self) -> Sequence[Tensor]:  # PyHessian's name
        """The gradient over all of the data, in the shapes of the parameters.

        For one batch it has a graph, which ``hessian_vector_product(gradsH, params, v)``
        differentiates. It is computed anew at each access. If a gradient with a graph is assigned,
        for example that of another loss, all methods differentiate this one.
        """
        if self._assigned_gradients is not None:
            return self._assigned_gradients
        operator = self._lists.operator
        if self.full_dataset:
            return self._lists.from_flat(operator.gradient())
        layout, objective = operator.layout, operator.objective
        with objective.isolated(), objective.parameters(self._lists.names).differentiable():
            (batch,) = objective.batches
            gradients = objective.gradients(batch, layout.tensors, create_graph=True)
        by_name = dict(zip(layout.names, gradients, strict=True))
        return [by_name[name] for name in self._lists.names]

    @gradsH.setter
    def gradsH(self, gradients: Sequence[Tensor]) -> None:
        require_shapes(gradients, self.params, "gradsH")
        self._assigned_gradients = gradients

    def dataloader_hv_product(self, v: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """v^T H v and H v over all of the data, for a list v in the shapes of ``params``.

        Raises
        ------
        ValueError
            v does not have one tensor for each parameter, in its shape.
        """
        Hv = self._lists.from_flat(self._lists.operator @ self._lists.to_flat(v))
        return float(group_product([x.to(y) for x, y in zip(v, Hv, strict=True)], Hv)), Hv

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1, *, seed: Seed = None
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The eigenvalues of largest magnitude, in decreasing order, and their eigenvectors.

        Parameters
        ----------
        maxIter : int
            The budget of matvecs per eigenpair.
        tol : float
            The bound on the residual relative to ||H||. 0 stands for 100 times the machine
            epsilon, about the rounding error.
        top_n : int
            The number of eigenvalues.
        seed : int, None or numpy.random.Generator

        Returns
        -------
        A list of floats, and for each a list of tensors in the shapes of the parameters.
        """
        A = self._matrix()
        rtol, budget = tol or 100 * torch.finfo(A.dtype).eps, max(maxIter, 2) * top_n
        found = matfree.eigsh(A, top_n, rtol=rtol, max_matvecs=budget, seed=seed)
        return found.values.tolist(), [self._lists.from_flat(v) for v in found.vectors.T]

    def trace(self, maxIter: int = 100, tol: float = 1e-3, *, seed: Seed = None) -> list[float]:
        """One estimate of the trace per probe. Their mean is the estimate of the trace.

        Parameters
        ----------
        maxIter : int
            The budget of matvecs. If it is at least the number of parameters, the list may
            hold only the exact trace.
        tol : float
            The half-width of the 95 % interval to reach, relative to the trace. With 0 there
            are ``maxIter`` probes.
        seed : int, None or numpy.random.Generator
        """
        if tol == 0:
            found = matfree.trace(self._matrix(), num_probes=maxIter, seed=seed)
        else:
            found = matfree.trace(self._matrix(), rtol=tol, max_matvecs=maxIter, seed=seed)
        return [float(found)] if found.samples is None else list(map(float, found.samples))

    def density(
        self, iter: int = 100, n_v: int = 1, *, seed: Seed = None
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of the spectral density, one list per probe, for ``get_esd_plot``.

        Parameters
        ----------
        iter : int
            The number of Lanczos steps. There are fewer nodes if the Hessian has fewer
            distinct eigenvalues.
        n_v : int
            The number of probes.
        seed : int, None or numpy.random.Generator
        """
        found = matfree.spectral_density(self._matrix(), num_steps=iter, num_probes=n_v, seed=seed)
        nodes = NodeLists(node.tolist() for node in found.nodes)
        nodes.density = found
        return nodes, [weight.tolist() for weight in found.weights]

    def _lists_of(self, names: Sequence[str] | None) -> ParameterLists:
        operator = hessian_operator(
            self.model,
            self.criterion,
            self.data,
            params=names,
            batch=None if self.full_dataset else True,
        )
        return ParameterLists(operator, operator.names if names is None else names)

    def _matrix(self) -> HessianOperator | ListOperator:
        """The operator that the methods compute with."""
        lists, gradients = self._lists, self._assigned_gradients
        if self.full_dataset:
            method = self.dataloader_hv_product
            if getattr(method, "__func__", None) is not hessian.dataloader_hv_product:
                return ListOperator(lists, lambda v: method(v)[1])
        elif gradients is not None:
            return ListOperator(
                lists, lambda v: hessian_vector_product(gradients, lists.tensors(), v)
            )
        return lists.operator


HessianComputation = hessian
"""The former name of the class."""
