r"""What a loss looks like as a function of a network's outputs: its Hessian in closed form.

Let z be the outputs for one datum (a sample, or one position of a sample) and l(z) its part
of the loss. Where l = -log p(y | z), up to a constant, for a known distribution,

    H_z = k (diag p - p p^T)    p = softmax z        cross-entropy
    H_z = 2 k I                                      squared error, y ~ N(z, 1/2)
    H_z = k diag(s (1 - s))     s = sigmoid z        binary cross-entropy

with k the datum's weight over what the loss divides by. In all three H_z does not depend on
y, so it is also the Fisher matrix of the distribution: E[r r^T] = H_z over y ~ p(. | z) for
the scaled gradients r = (k)^(1/2) d(-log p)/dz.

References
----------
J. Martens (2020), New insights and perspectives on the natural gradient method,
arXiv:1412.1193.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree_torch.curvature.output_hessians import OutputMatrix

Draw = Callable[[str, int], Iterator[Tensor]]
"""("uniform" or "normal", entries a datum) to samples (data, entries), one after another."""


class Likelihood(OutputMatrix):
    """The Hessian of a loss that is the negative logarithm of a known distribution.

    Outputs are laid out as rows, (data, entries): what one target belongs to is one row.

    Parameters
    ----------
    outputs : the batch's outputs, of any shape the loss takes
    class_axis : whether the entries of a row lie along the second axis of the outputs;
        otherwise a row is everything of one sample
    """

    def __init__(self, outputs: Tensor, *, class_axis: bool) -> None:
        self.class_axis = class_axis and outputs.ndim > 1
        moved = outputs.movedim(1, -1) if self.class_axis else outputs
        unbatched = outputs.ndim == 0 or (class_axis and outputs.ndim == 1)
        self.samples = 1 if unbatched else outputs.shape[0]
        self._moved_shape, self._dtype = moved.shape, outputs.dtype
        self.z = self.rows(outputs.detach())

    def rows(self, x: Tensor) -> Tensor:
        """Something of the outputs' shape as (data, entries), in single precision at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.class_axis:
            return wide.movedim(1, -1).reshape(-1, self._moved_shape[-1])
        return wide.reshape(self.samples, -1)

    def outputs(self, rows: Tensor) -> Tensor:
        """Rows as something of the outputs' shape and data type."""
        x = rows.reshape(self._moved_shape).to(self._dtype)
        return x.movedim(-1, 1) if self.class_axis else x

    def product(self, u: Tensor) -> Tensor:
        return self.outputs(self.hessian(self.rows(u)))

    @abstractmethod
    def hessian(self, u: Tensor) -> Tensor:
        """H_z u for rows u."""

    @abstractmethod
    def roots(self) -> Iterator[Tensor]:
        """Rows s_1, s_2, ... with H_z = sum_c s_c s_c^T for every datum."""

    @abstractmethod
    def draws(self, draw: Draw) -> Iterator[Tensor]:
        """Scaled gradients r for targets drawn from the distribution, one for each draw."""

    @abstractmethod
    def observed(self) -> Tensor:
        """The scaled gradient r for the targets in the data."""


@final
class Softmax(Likelihood):
    """Cross-entropy, with class weights, ignored targets, smoothing, or given probabilities."""

    def __init__(self, loss: Any, outputs: Tensor, targets: Tensor) -> None:
        super().__init__(outputs, class_axis=True)
        self.p = torch.softmax(self.z, dim=1)
        self.weight = torch.ones_like(self.p[0]) if loss.weight is None else loss.weight.to(self.p)
        self.smoothing = getattr(loss, "label_smoothing", 0.0)
        if targets.is_floating_point():
            self.labels, self.counts = (
                self.rows(targets).to(self.p),
                torch.ones_like(self.p[:, 0]),
            )
            own, divisor = self.labels @ self.weight, self.counts.sum()
        else:
            labels = targets.reshape(-1)
            self.counts = (labels != loss.ignore_index).to(self.p)
            self.labels = torch.where(self.counts > 0, labels, 0)
            own = self.counts * self.weight[self.labels]
            divisor = own.sum()
        everyone = self.counts * self.weight.mean()
        self.mass = ((1 - self.smoothing) * own + self.smoothing * everyone)[:, None]
        self.divisor = divisor if loss.reduction == "mean" else torch.ones_like(divisor)
        self.root = torch.sqrt(self.mass / self.divisor)

    def hessian(self, u: Tensor) -> Tensor:
        inner = (self.p * u).sum(dim=1, keepdim=True)
        return self.root**2 * self.p * (u - inner)

    def roots(self) -> Iterator[Tensor]:
        for c in range(self.p.shape[1]):  # diag p - p p^T = sum_c p_c (e_c - p)(e_c - p)^T
            column = -self.p
            column[:, c] += 1
            yield self.root * torch.sqrt(self.p[:, c : c + 1]) * column

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        steps = torch.cumsum(self.p.to(torch.float64), dim=1)
        for uniform in draw("uniform", 1):
            labels = (steps < uniform * steps[:, -1:]).sum(dim=1, keepdim=True)
            yield self.root * self.p.scatter_add(1, labels, -torch.ones_like(self.root))

    def observed(self) -> Tensor:
        if self.labels.ndim > 1:
            given = self.labels
        else:
            given = torch.zeros_like(self.p)
            given.scatter_(1, self.labels[:, None], self.counts[:, None])
        even = self.counts[:, None] * (self.smoothing / self.p.shape[1])
        q = ((1 - self.smoothing) * given + even) * self.weight  # the loss is -<q, log p>
        return _quotient(self.mass * self.p - q, torch.sqrt(self.mass * self.divisor))


@final
class Gaussian(Likelihood):
    """Squared error: y ~ N(z, 1/2), whose -log p is (z - y)^2 up to a constant."""

    def __init__(self, loss: Any, outputs: Tensor, targets: Tensor) -> None:
        super().__init__(outputs, class_axis=False)
        self.residual = self.z - self.rows(targets)
        self.divisor = float(self.z.numel()) if loss.reduction == "mean" else 1.0

    def hessian(self, u: Tensor) -> Tensor:
        return u * (2 / self.divisor)

    def roots(self) -> Iterator[Tensor]:
        return _diagonal_roots(torch.full_like(self.z, (2 / self.divisor) ** 0.5))

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        for normal in draw("normal", self.z.shape[1]):
            yield normal.to(self.z) * (2 / self.divisor) ** 0.5

    def observed(self) -> Tensor:
        r: Tensor = self.residual * (2 / self.divisor**0.5)
        return r


@final
class Bernoulli(Likelihood):
    """Binary cross-entropy with logits, weights and weights of the positive class."""

    def __init__(self, loss: Any, outputs: Tensor, targets: Tensor) -> None:
        super().__init__(outputs, class_axis=False)
        self.divisor = float(self.z.numel()) if loss.reduction == "mean" else 1.0
        ones = torch.ones_like(outputs)
        weight, positive = (
            self.rows(ones if given is None else ones * given)
            for given in (loss.weight, loss.pos_weight)
        )
        self.y, self.s = self.rows(targets).to(self.z), torch.sigmoid(self.z)
        self.true, self.false = weight * positive * self.y, weight * (1 - self.y)
        self.root = torch.sqrt((self.true + self.false) / self.divisor)

    def hessian(self, u: Tensor) -> Tensor:
        return self.root**2 * self.s * (1 - self.s) * u

    def roots(self) -> Iterator[Tensor]:
        return _diagonal_roots(self.root * torch.sqrt(self.s * (1 - self.s)))

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        for uniform in draw("uniform", self.z.shape[1]):
            yield self.root * (self.s - torch.where(uniform < self.s, 1.0, 0.0).to(self.s))

    def observed(self) -> Tensor:
        gradient = self.false * self.s - self.true * (1 - self.s)
        return _quotient(gradient, self.root * self.divisor)


KNOWN = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses with a closed form, convex in the outputs."""


def likelihood(loss: nn.Module | None, outputs: Tensor, targets: Any) -> Likelihood | None:
    """The closed form for a loss at these outputs, where there is one.

    A subclass of one of torch's losses may do anything, so types are compared exactly.
    """
    if not isinstance(targets, Tensor):
        return None
    kind = type(loss)
    if loss is not None and kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        given = Softmax(loss, outputs, targets)
        if kind is nn.CrossEntropyLoss or _normalized(given.z):
            return given
    if loss is not None and targets.shape == outputs.shape:  # broadcasting mixes samples
        if kind is nn.MSELoss:
            return Gaussian(loss, outputs, targets)
        if kind is nn.BCEWithLogitsLoss:
            return Bernoulli(loss, outputs, targets)
    return None


@final
class Averaged(OutputMatrix):
    """The mean of r r^T over some scaled gradients r, datum by datum.

    Parameters
    ----------
    like : says how the outputs are laid out
    roots : (draws, data, entries)
    """

    def __init__(self, like: Likelihood, roots: Tensor) -> None:
        self.like = like
        draws, _, entries = roots.shape
        scaled = roots / draws**0.5
        self._summed = draws > entries  # where the matrices themselves are smaller
        self._kept = torch.einsum("sdi,sdj->dij", scaled, scaled) if self._summed else scaled

    def product(self, u: Tensor) -> Tensor:
        rows = self.like.rows(u)
        if self._summed:
            return self.like.outputs((self._kept @ rows[:, :, None])[:, :, 0])
        inner = (self._kept * rows).sum(dim=-1, keepdim=True)
        return self.like.outputs((self._kept * inner).sum(dim=0))


def _normalized(log_p: Tensor) -> bool:
    """Whether these are logarithms of probabilities: then -log p is their cross-entropy."""
    gap = torch.logsumexp(log_p, dim=1).abs().max()
    return bool(gap < 100 * torch.finfo(log_p.dtype).eps * log_p.shape[1])


def _diagonal_roots(diagonal: Tensor) -> Iterator[Tensor]:
    for c in range(diagonal.shape[1]):
        column = torch.zeros_like(diagonal)
        column[:, c] = diagonal[:, c]
        yield column


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """A / b, and 0 for data of no weight."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
