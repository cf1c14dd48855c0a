"""PyHessian's functions of vectors that are lists of tensors, and its by-hand matvec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matfree import OperatorError


def group_product(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors, a scalar tensor.

    Complex tensors count as real and imaginary parts.

    Parameters
    ----------
    xs, ys : lists of tensors of the same shapes

    Raises
    ------
    ValueError
        The lists differ in length.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import group_product
    >>> group_product([torch.ones(2), torch.ones(3)], [torch.ones(2), 2 * torch.ones(3)])
    tensor(8.)
    """
    _require_same_length(xs, ys)
    products = [(torch.as_tensor(x).conj() * y).real.sum() for x, y in zip(xs, ys, strict=True)]
    return sum(products[1:], start=products[0]) if products else torch.zeros(())


def group_add(
    params: Sequence[Tensor], update: Sequence[Tensor], alpha: float | Tensor = 1
) -> Sequence[Tensor]:
    """Add ``alpha * update`` to a list of tensors in place, and return the list.

    Parameters
    ----------
    params : list of tensors, which are changed
    update : list of tensors of the same shapes
    alpha : float or scalar tensor

    Raises
    ------
    ValueError
        The lists differ in length.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import group_add
    >>> x = [torch.zeros(2)]
    >>> group_add(x, [torch.ones(2)], alpha=3)
    [tensor([3., 3.])]
    """
    _require_same_length(params, update)
    with torch.no_grad():  # unlike a change of p.data, autograd notices this one
        for p, u in zip(params, update, strict=True):
            p.add_(u * alpha)
    return params


def normalization(v: Sequence[Tensor]) -> list[Tensor]:
    """A list of tensors divided by its norm, so that all of them together have length 1.

    PyHessian adds 1e-6 to the norm, which shortens small vectors. Zeros stay zeros here, too.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import normalization
    >>> normalization([torch.tensor([3.0]), torch.tensor([4.0])])
    [tensor([0.6000]), tensor([0.8000])]
    """
    norm = _norm_of_list(v)
    return [x / norm if norm else x.clone() for x in v]


def orthnormal(w: Sequence[Tensor], v_list: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Project vectors out of w, and normalize the rest. PyHessian changes w, this function not.

    Parameters
    ----------
    w : list of tensors
    v_list : vectors, each a list of tensors
        They are orthogonal to each other; their lengths do not matter.

    Returns
    -------
    list of tensors
        Zeros if w is zero.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import orthnormal
    >>> orthnormal([torch.tensor([2.0, 2.0])], [[torch.tensor([1.0, 0.0])]])
    [tensor([0., 1.])]
    """
    rest, others = normalization(w), [normalization(v) for v in v_list]
    for _ in range(2):  # the second pass removes what rounding leaves where w is nearly in the span
        for v in others:
            group_add(rest, v, alpha=-group_product(v, rest))
        rest = normalization(rest)
    return rest


def get_params_grad(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that require gradients, and copies of their gradients.

    Call it after ``loss.backward()``. Missing gradients are zero. After
    ``loss.backward(create_graph=True)`` the gradients can be differentiated again.

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


def hessian_vector_product(
    gradsH: Sequence[Tensor], params: Sequence[Tensor], v: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """H v, by differentiating gradients that have a graph.

    Parameters
    ----------
    gradsH : list of tensors
        The gradient with respect to ``params``, computed with ``create_graph=True``, for example
        the attribute ``gradsH`` of :class:`hessian`. Entries without a graph are constant.
    params : list of tensors that require gradients
    v : list of tensors in the shapes of ``params``

    Returns
    -------
    tuple of tensors in the shapes of ``params``

    Raises
    ------
    ValueError
        The lists differ in length or shape, or a parameter is frozen.
    OperatorError
        No gradient has a graph.

    Cost
    ----
    One backward pass through the graph, which is kept.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import hessian_vector_product
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradsH = torch.autograd.grad((x**3).sum(), [x], create_graph=True)
    >>> hessian_vector_product(gradsH, [x], [torch.ones(2)])
    (tensor([ 6., 12.]),)
    """
    require_shapes(v, params, "v")
    _require_same_length(gradsH, params)
    for index, p in enumerate(params):
        if not p.requires_grad:
            raise ValueError(
                f"params[{index}], of shape {tuple(p.shape)}, is frozen, so that the graph of the "
                "gradient does not contain it: leave it out of gradsH, params and v, as "
                "get_params_grad(model) does, or call requires_grad_() before the loss is computed."
            )
    curved = [(g, x) for g, x in zip(gradsH, v, strict=True) if getattr(g, "requires_grad", False)]
    if not curved:
        raise OperatorError(
            "no tensor of gradsH has a graph that can be differentiated: compute the gradient by "
            "loss.backward(create_graph=True) or torch.autograd.grad(..., create_graph=True)."
        )
    return torch.autograd.grad(
        [g for g, _ in curved],
        list(params),
        grad_outputs=[x.to(g) for g, x in curved],
        retain_graph=True,
        allow_unused=True,  # the Hessian is zero in parameters that the gradient does not contain
        materialize_grads=True,
    )


def require_shapes(
    v: Any, tensors: Sequence[Tensor], name: str, noun: str = "parameter that requires a gradient"
) -> None:
    """Raise ValueError if ``v`` is not a list of tensors in the shapes of ``tensors``."""
    if isinstance(v, Tensor) or not isinstance(v, Sequence):
        raise ValueError(
            f"{name} must be a list with one tensor for each {noun}: got {type(v).__name__}."
        )
    if len(v) != len(tensors):
        raise ValueError(
            f"{name} must have one tensor for each {noun}, {len(tensors)} in all: got {len(v)}."
        )
    for index, (x, like) in enumerate(zip(v, tensors, strict=True)):
        if x.shape != like.shape:
            raise ValueError(
                f"{name}[{index}] must have the shape {tuple(like.shape)}: got {tuple(x.shape)}."
            )


def _require_same_length(xs: Sequence[Any], ys: Sequence[Any]) -> None:
    if len(xs) != len(ys):
        raise ValueError(
            "the two lists must have the same number of tensors: got "
            f"{len(xs)} and {len(ys)}; is a frozen parameter in one of them only?"
        )


def _norm_of_list(v: Sequence[Tensor]) -> float:
    """The norm of a list of tensors, in double precision, where squares do not underflow."""
    tensors = [torch.view_as_real(x) if x.is_complex() else x for x in v]
    squares = [float(torch.linalg.vector_norm(x.detach().double())) for x in tensors]
    return float(torch.tensor(squares, dtype=torch.float64).norm())
