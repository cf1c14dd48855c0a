r"""What a loss divides its sum by, observed while it is evaluated.

Let the loss of batch b be a mean over :math:`c_b` terms. The mean over the terms of all batches has
the weights :math:`c_b`:

.. math::

    L = \frac{\sum_b c_b L_b}{\sum_b c_b} .

:math:`c_b` can be the number of samples, elements or positions, or the sum of the class weights of
the targets that are not ignored. It is the same for a loss module, for the function that it calls,
and for any function around it, because it is read from the operations of torch that the loss
performs: the last reduction, and the operations on its scalar result.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from matfree_torch.data.nested import tensors_in, tensors_of_batch

_MAX_AXES = 5
_FACTOR_RTOL = 1e-6  # a factor 1 / n is rounded, in float32 at worst


class Reduction(NamedTuple):
    """How a loss reduces the terms of a batch to a scalar."""

    divisor: float | None
    """The number that the sum over the terms is divided by; None if it was not recognized."""
    is_sum: bool
    """Whether the loss is a sum over terms that is divided by nothing."""
    candidates: tuple[float, ...]
    """The divisors of all means that were taken, of which the loss may be composed."""


class _Origin(NamedTuple):
    """What is known of a tensor that depends on the data."""

    on_outputs: bool
    """Whether it depends on the outputs; otherwise it depends only on the targets."""
    divisor: float | None = None
    is_sum: bool = False


def observed(
    loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
) -> tuple[Tensor, Reduction]:
    """The value of a loss of these outputs and targets, and the reduction that it ends with."""
    observer = _Observer(outputs, targets)
    with observer:
        value = loss(outputs, targets)
    origin = observer.origin(value)
    candidates = tuple(observer.candidates)
    if origin is None:
        return value, Reduction(None, False, candidates)
    return value, Reduction(origin.divisor, origin.is_sum, candidates)


def class_count(targets: Tensor, weight: Tensor | None, ignore_index: int) -> float:
    """The sum of the class weights of all targets that are not ignored."""
    if targets.is_floating_point():  # class probabilities: one target per sample and position
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != ignore_index]
    if weight is None:
        return float(counted.numel())
    return float(weight.to(torch.float64)[counted].sum())


@final
class _Observer(TorchFunctionMode):
    """Follows the tensors that depend on outputs or targets through a loss."""

    def __init__(self, outputs: Any, targets: Any) -> None:
        super().__init__()
        # The tensors themselves are kept, so that no identity is used twice.
        self._known: dict[int, tuple[Tensor, _Origin]] = {}
        self.candidates: list[float] = []
        self._sizes: set[float] = set()
        for x in tensors_of_batch(targets):
            self._set(x, _Origin(on_outputs=False))
        for x in tensors_of_batch(outputs):
            self._set(x, _Origin(on_outputs=True))
        for x, _ in self._known.values():
            for used in itertools.product((0, 1), repeat=len(x.shape[1:_MAX_AXES])):
                sizes = zip(x.shape[1:_MAX_AXES], used, strict=True)
                self._sizes.add(float(math.prod((*x.shape[:1], *(n**k for n, k in sizes)))))

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        origins = [self.origin(x) for x in tensors_in((args, kwargs))]  # before changes in place
        result = func(*args, **kwargs)
        on_outputs = [origin.on_outputs for origin in origins if origin is not None]
        if on_outputs:
            plain = _Origin(any(on_outputs))
            for x in tensors_in(result):
                scalar = x is result and x.ndim == 0
                operands = [self._operand(x) for x in args]
                found = self._scalar(func, args, kwargs, operands, plain) if scalar else plain
                self._set(x, found)
        return result

    def origin(self, x: Any) -> _Origin | None:
        """What is known of a tensor; None if it does not depend on the data."""
        return self._known[id(x)][1] if id(x) in self._known else None

    def _operand(self, x: Any) -> Any:
        return self.origin(x) if isinstance(x, Tensor) else x

    def _set(self, x: Tensor, origin: _Origin) -> None:
        self._known[id(x)] = x, origin

    def _scalar(
        self, func: Any, args: Any, kwargs: Any, operands: list[Any], plain: _Origin
    ) -> _Origin:
        """What is known of the scalar result of an operation."""
        name = getattr(func, "__name__", "").strip("_")
        if getattr(functional, name, None) is func:
            return self._loss(func, args, kwargs, plain)
        x = args[0] if args else kwargs.get("input")
        first = self.origin(x)
        if name in _REDUCTIONS and isinstance(x, Tensor):
            if x.ndim == 0:
                return first or plain
            if name == "sum":
                return plain._replace(is_sum=True)
            return self._mean(float(x.numel()), plain)
        if name in _UNCHANGED and first is not None:
            return first
        if len(operands) == 2:
            if name in _SUMS:
                return _combined(operands[0], operands[1], plain)
            if name in _PRODUCTS:
                return self._scaled(args, operands, plain)
            if name in _QUOTIENTS:
                return self._quotient(args, operands, plain)
        return plain

    def _mean(self, count: float, plain: _Origin) -> _Origin:
        if plain.on_outputs:
            self.candidates.append(count)
        return plain._replace(divisor=count)

    def _loss(self, func: Any, args: Any, kwargs: Any, plain: _Origin) -> _Origin:
        """One of torch's losses, which divides by what its documentation says."""
        try:
            bound = inspect.signature(func).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return plain
        bound.apply_defaults()
        given = bound.arguments
        legacy = given.get("size_average") is not None or given.get("reduce") is not None
        reduction = given.get("reduction")
        if legacy or reduction not in ("mean", "sum", "batchmean"):
            return plain
        if reduction == "sum":
            return plain._replace(is_sum=True)
        if reduction == "batchmean":
            return self._mean(float(given["input"].shape[0]), plain)
        if func in (functional.cross_entropy, functional.nll_loss):
            target, weight = given["target"], given["weight"]
            return self._mean(class_count(target, weight, given["ignore_index"]), plain)
        given["reduction"] = "none"
        with torch.no_grad():
            terms = func(*bound.args, **bound.kwargs)
        return self._mean(float(terms.numel()), plain)

    def _quotient(self, args: Any, operands: list[Any], plain: _Origin) -> _Origin:
        numerator, by = operands
        if isinstance(by, _Origin) and by.on_outputs:
            return plain
        if isinstance(numerator, _Origin) and numerator.on_outputs:
            if numerator.divisor is not None and not isinstance(by, _Origin):
                return numerator  # a mean times a constant
            if numerator.is_sum and self._counts_terms(args[1]):
                return self._mean(float(args[1]), plain)
            if numerator.is_sum and not isinstance(by, _Origin):
                return numerator
            self.candidates.append(float(args[1]))
        return plain

    def _scaled(self, args: Any, operands: list[Any], plain: _Origin) -> _Origin:
        """The product of a scalar with a constant, which may be the inverse of a number."""
        for x, other, factor in ((*operands, args[1]), (*reversed(operands), args[0])):
            if not (isinstance(x, _Origin) and x.on_outputs):
                continue
            if not isinstance(other, _Origin):
                inverse = 1 / float(factor) if x.is_sum and factor else 0.0
                found = [n for n in self._sizes if abs(inverse - n) <= _FACTOR_RTOL * n]
                return self._mean(found[0], plain) if found else x
            if not other.on_outputs:
                self.candidates.append(float(factor))
        return plain

    def _counts_terms(self, divisor: Any) -> bool:
        """Whether a divisor depends on the targets, or is a number of samples or elements.

        The sum of a batch divided by any other constant is a scaled sum and no mean.
        """
        return self.origin(divisor) is not None or float(divisor) in self._sizes


_REDUCTIONS = ("mean", "sum")
_UNCHANGED = (
    *("neg", "negative", "view", "reshape", "squeeze", "clone", "contiguous"),
    *("to", "type", "float", "double", "half", "bfloat16", "type_as"),
)
_SUMS = ("add", "radd", "iadd", "sub", "rsub", "isub", "subtract")
_PRODUCTS = ("mul", "rmul", "imul", "multiply")
_QUOTIENTS = ("div", "truediv", "idiv", "itruediv", "true_divide", "divide")


def _combined(a: Any, b: Any, plain: _Origin) -> _Origin:
    """The sum of two scalars: terms that do not depend on the data have no influence."""
    for x, other in ((a, b), (b, a)):
        if isinstance(x, _Origin) and not isinstance(other, _Origin):
            constant_zero = isinstance(other, int | float) and other == 0
            return x if x.divisor is not None or constant_zero else plain
    same = isinstance(a, _Origin) and isinstance(b, _Origin) and a[1:] == b[1:]
    return plain._replace(divisor=a.divisor, is_sum=a.is_sum) if same else plain
