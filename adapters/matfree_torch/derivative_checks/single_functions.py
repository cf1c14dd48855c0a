r"""Tests of the second derivatives of a single function: a module, or a loss.

The function is a scalar f of some leaf tensors x, and g is the gradient that torch computes. Two
identities are tested for random directions u and w:

.. math::

    u^T H w = w^T H u, \qquad
    H w = \frac{g(x + h w) - g(x - h w)}{2 h} + O(h^2) .

The first one needs no step h. The second one also finds terms that are missing from a symmetric H.
A central difference is used only if two steps agree, so that rounding errors and kinks of f, at
which g jumps, are never mistaken for a wrong derivative.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from matfree_torch.vectors.entries import moved_by, real_view

Evaluation: TypeAlias = Callable[[], Tensor]
"""A function that computes f from the present values of its tensors."""

REFUSALS = re.compile(
    r"is not implemented|once_differentiable|double backward|second.order|differentiate twice"
)
"""Messages of torch about operations that it cannot differentiate twice."""

_SYMMETRY_LIMIT = 1e-6  # of a single function, in double precision
_FIRST_ORDER_LIMIT = 1e-3  # relative to the size of the terms of <g, w>
_ROUNDING = 100  # times eps |g| / h is the largest rounding error of a difference


class _Steps(NamedTuple):
    """Step sizes, relative to the entries of the tensors, and the accuracy of the differences.

    The first two differences must agree. The third step is large enough to have an effect on a
    function that internally rounds to a lower precision.
    """

    sizes: tuple[float, float, float]
    limit: float


_FINE = _Steps((1e-6, 2e-7, 1e-3), 1e-4)
# For single precision, and for functions that use it internally.
_COARSE = _Steps((1e-2, 4e-3, 2e-2), 3e-2)


@final
class Verdict(NamedTuple):
    """The result of a test."""

    fault: str | None = None
    """What is wrong; None if nothing was found."""
    obstacle: str | None = None
    """Why the test could not be carried out."""


ROUNDING = "its gradient jumps, or it rounds to low precision"
_OWN_GRADIENT = "its gradient is not the derivative of its value"
UNSUPPORTED = "it cannot be called on its own in single or double precision"


def second_derivative(function: Evaluation, tensors: Sequence[Tensor]) -> Verdict:
    """Test the second derivative of a function.

    A function whose gradient g is not the derivative of f is not judged: values that are treated
    as constants (``detach``) and straight-through estimators are such by intention.

    Parameters
    ----------
    function : function () -> scalar tensor
    tensors : sequence of leaf tensors of one precision
    """
    noise = _noise()
    u, w = ([noise(x) * _typical_size(x) for x in tensors] for _ in range(2))
    double = all(x.dtype.to_real() == torch.float64 for x in tensors)
    try:
        gradients = torch.autograd.grad(
            function(), tensors, create_graph=True, allow_unused=True, materialize_grads=True
        )
        Hu, Hw = (_hessian_vector_product(gradients, tensors, v) for v in (u, w))
        size = max(_inner(Hu, Hu), _inner(Hw, Hw)) ** 0.5
        typical = (_inner(w, w) / sum(x.numel() for x in w)) ** 0.5
        asymmetry = abs(_inner(u, Hw) - _inner(w, Hu)) / (size * typical or 1.0)
        if double and asymmetry > _SYMMETRY_LIMIT:
            return Verdict(f"asymmetry {asymmetry:.1e} on its own")
        differences = _Differences(function, tensors, w, [g.detach() for g in gradients])
        verdict = differences.judge(Hw, _FINE if double else _COARSE)
        if double and verdict.obstacle is not None:
            verdict = differences.judge(Hw, _COARSE)
    except RuntimeError as refusal:
        if REFUSALS.search(str(refusal)):
            return Verdict(str(refusal)[:120])
        return Verdict(obstacle=UNSUPPORTED)
    return verdict


@final
class _Differences:
    """Central differences of a function and of its gradient along one direction."""

    def __init__(
        self,
        function: Evaluation,
        tensors: Sequence[Tensor],
        w: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        self._function, self._tensors, self._w = function, tensors, w
        self._gradients = gradients

    def judge(self, Hw: Sequence[Tensor], steps: _Steps) -> Verdict:
        """Compare H w with central differences, tensor by tensor."""
        verdict = Verdict()
        differences = map(self._difference, steps.sizes)
        for g, exact, a, b, c in zip(self._gradients, Hw, *differences, strict=True):
            size = max(float(x.norm()) for x in (exact, a, b))
            floor = _ROUNDING * torch.finfo(g.dtype).eps * float(g.norm()) / steps.sizes[1]
            gap = min(float((exact - a).norm()), float((exact - b).norm()))
            if gap <= steps.limit * size + floor:
                continue
            if float((a - b).norm()) > 0.1 * gap or float((c - a).norm()) > 0.5 * gap:
                verdict = Verdict(obstacle=ROUNDING)
            elif self._have_gradient(steps):
                return Verdict(f"off by {gap / size:.0%} from differences of its gradient")
            else:
                return Verdict(obstacle=_OWN_GRADIENT)
        return verdict

    def _have_gradient(self, steps: _Steps) -> bool:
        """Whether the gradient of torch is the derivative of the function."""
        step = steps.sizes[0]
        (up, _), (down, _) = self._at(step), self._at(-step)
        pairs = zip(self._gradients, self._w, strict=True)
        terms = [(real_view(g) * real_view(x)).flatten() for g, x in pairs]
        expected = sum(float(t.sum()) for t in terms)
        size = math.hypot(*(float(t.norm()) for t in terms))
        floor = _ROUNDING * torch.finfo(terms[0].dtype).eps * abs(up) / step
        return abs((up - down) / (2 * step) - expected) <= _FIRST_ORDER_LIMIT * size + floor

    def _difference(self, step: float) -> list[Tensor]:
        (_, up), (_, down) = self._at(step), self._at(-step)
        return [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]

    def _at(self, step: float) -> tuple[float, Sequence[Tensor]]:
        """The function and its gradient after a step."""
        with contextlib.ExitStack() as stack:
            for x, direction in zip(self._tensors, self._w, strict=True):
                stack.enter_context(moved_by(x, step * direction))
            value = self._function()
            gradients = torch.autograd.grad(
                value, self._tensors, allow_unused=True, materialize_grads=True
            )
        return float(value.detach()), gradients


def _noise() -> Callable[[Tensor], Tensor]:
    """A function that draws reproducible Gaussian numbers of a tensor's shape."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _typical_size(x: Tensor) -> float:
    """The root mean square of the entries, or 1 if all are zero."""
    return float(x.detach().norm()) / max(1, x.numel()) ** 0.5 or 1.0


def _hessian_vector_product(
    gradients: Sequence[Tensor], tensors: Sequence[Tensor], v: Sequence[Tensor]
) -> Sequence[Tensor]:
    curved = [(g, x) for g, x in zip(gradients, v, strict=True) if g.requires_grad]
    if not curved:
        return [torch.zeros_like(x) for x in tensors]
    return torch.autograd.grad(
        [g for g, _ in curved],
        tensors,
        [x for _, x in curved],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _inner(a: Sequence[Any], b: Sequence[Any]) -> float:
    pairs = zip(a, b, strict=True)
    return sum(float((real_view(x) * real_view(y)).sum()) for x, y in pairs)
