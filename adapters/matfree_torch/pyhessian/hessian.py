"""PyHessian's ``hessian`` with respect to parameters, and its plot of a spectral density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

import matfree
from matfree import plotting
from matfree.protocol import Seed
from matfree.results import SpectralDensity
from matfree_torch.curvature.hessian import HessianOperator
from matfree_torch.curvature.hessian import hessian as hessian_operator
from matfree_torch.pyhessian.data import Criterion, resolve_data


def hessian(
    model: nn.Module,
    criterion: Criterion,
    data: Any = None,
    dataloader: Any = None,
    cuda: bool = False,
) -> HessianComputation:
    """The Hessian of a loss, with PyHessian's methods.

    Parameters
    ----------
    model : nn.Module
    criterion : loss (outputs, targets) -> scalar tensor
    data : (inputs, targets), optional
        One batch. Pass either this or ``dataloader``.
    dataloader : re-iterable of batches, optional
    cuda : bool
        Whether the model must be on a GPU.

    Returns
    -------
    HessianComputation
        An object with the methods ``eigenvalues``, ``trace`` and ``density``. Its attribute
        ``operator`` can be passed to every function of matfree.

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
    """
    batches = resolve_data(model, data, dataloader, cuda)
    return HessianComputation(hessian_operator(model, criterion, batches))


@final
class HessianComputation:
    """The object that PyHessian's ``hessian`` returns, and :func:`hessian` of this module."""

    def __init__(self, operator: HessianOperator) -> None:
        self.operator = operator
        """The Hessian as an operator of matfree."""

    @property
    def params(self) -> list[Tensor]:
        """The parameters that the Hessian is with respect to."""
        return list(self.operator.layout.tensors)

    @property
    def gradsH(self) -> list[Tensor]:  # PyHessian's name
        """The gradient over all of the data, in the shapes of the parameters."""
        return self._by_parameter(self.operator.gradient())

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1, *, seed: Seed = None
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The eigenvalues of largest magnitude, in decreasing order, and their eigenvectors.

        Parameters
        ----------
        maxIter : int
            The budget of matvecs per eigenpair.
        tol : float
            The bound on the residual relative to ||H||.
        top_n : int
            The number of eigenvalues.
        seed : int, None or numpy.random.Generator

        Returns
        -------
        A list of floats, and for each a list of tensors in the shapes of the parameters.
        """
        found = matfree.eigsh(
            self.operator, top_n, rtol=tol, max_matvecs=maxIter * top_n, seed=seed
        )
        return found.values.tolist(), [self._by_parameter(v) for v in found.vectors.T]

    def trace(self, maxIter: int = 100, tol: float = 1e-3, *, seed: Seed = None) -> list[float]:
        """One estimate of the trace per probe. Their mean is the estimate of the trace.

        Parameters
        ----------
        maxIter : int
            The budget of matvecs. If it is at least the number of parameters, the list may
            hold the exact trace alone.
        tol : float
            The half-width of the 95 % interval to reach, relative to the trace.
        seed : int, None or numpy.random.Generator
        """
        found = matfree.trace(self.operator, rtol=tol, max_matvecs=maxIter, seed=seed)
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
        found = matfree.spectral_density(self.operator, num_steps=iter, num_probes=n_v, seed=seed)
        nodes = _NodeLists(node.tolist() for node in found.nodes)
        nodes.density = found
        return nodes, [weight.tolist() for weight in found.weights]

    def _by_parameter(self, v: Tensor) -> list[Tensor]:
        return list(self.operator.unflatten(v).values())


class _NodeLists(list[list[float]]):
    """Lists of nodes together with their density, which holds more than the lists for a plot."""

    density: SpectralDensity


def get_esd_plot(
    eigenvalues: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    *,
    size: int | None = None,
    ax: Any = None,
) -> Any:
    """Plot a spectral density from the lists that ``density`` returns.

    Parameters
    ----------
    eigenvalues, weights : lists of nodes and weights, one per probe
    size : int, optional
        The number of parameters. Required for lists from another source, such as a file.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on. The plot is neither shown nor written to a file; call
    ``ax.figure.savefig("example.pdf")``.

    Raises
    ------
    ValueError
        The lists are not those of ``density``, and ``size`` is missing.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import get_esd_plot, hessian
    >>> data = torch.ones(4, 3), torch.zeros(4, 1)
    >>> hessian_comp = hessian(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data=data)
    >>> get_esd_plot(*hessian_comp.density()).get_xlabel()
    'eigenvalue'
    """
    if isinstance(eigenvalues, _NodeLists):
        return plotting.plot_density(eigenvalues.density, ax=ax)
    if size is None:
        raise ValueError(
            "the number of parameters, which determines the lower end of the plot, is unknown for "
            "these lists; pass size=, or the lists that density() returned."
        )
    pairs = [_sorted_nodes(*pair) for pair in zip(eigenvalues, weights, strict=True)]
    density = SpectralDensity(
        nodes=tuple(nodes for nodes, _ in pairs),
        weights=tuple(mass / mass.sum() for _, mass in pairs),
        size=size,
        num_steps=max(len(nodes) for nodes, _ in pairs),
        num_matvecs=sum(len(nodes) for nodes, _ in pairs),
        epsilon=float(np.finfo(np.float32).eps),
        seed=0,
    )
    return plotting.plot_density(density, ax=ax)


def get_params_grad(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that require gradients, and copies of their gradients.

    Call it after ``loss.backward()``. Missing gradients are zero.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import get_params_grad
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> get_params_grad(model)[1]
    [tensor([[1., 1.]])]
    """
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    return params, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]


def _sorted_nodes(nodes: Any, weights: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x, mass = np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    ascending = np.argsort(x)
    return x[ascending], mass[ascending]
