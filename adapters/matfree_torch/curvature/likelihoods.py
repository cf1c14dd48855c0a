r"""Losses that are negative log-likelihoods: their Hessians in the outputs in closed form.

Let z be the outputs for one datum (a sample, or one position of a sample) and l(z) its term of
the loss. If l = -log p(y | z) up to a constant for a known distribution, the Hessian of l is

.. math::

    H_z &= k \, (\mathrm{diag}(p) - p p^T), \quad p = \mathrm{softmax}(z)
        \quad \text{(cross-entropy)}, \\
    H_z &= 2 k \, I \quad \text{(squared error, } y \sim N(z, 1/2) \text{)}, \\
    H_z &= k \, \mathrm{diag}(s (1 - s)), \quad s = \mathrm{sigmoid}(z)
        \quad \text{(binary cross-entropy)},

where k is the weight of the datum divided by the divisor of the loss. None of the three depends
on y. Each is therefore also the Fisher information matrix of the distribution,

.. math::

    H_z = E_{y \sim p(\cdot | z)} [r r^T],
    \qquad r = \sqrt{k} \, \frac{\partial (-\log p(y | z))}{\partial z}.

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
from torch import Tensor

from matfree_torch.curvature.output_hessians import OutputMatrix

Draw = Callable[[str, int], Iterator[Tensor]]
"""A function of a law, "uniform" or "normal", and the number of entries for each datum.

It yields independent random samples of shape (data, entries), one after another.
"""


class Likelihood(OutputMatrix):
    """The Hessian in the outputs of a loss that is the negative logarithm of a distribution.

    Outputs are rearranged into rows, (data, entries). One row holds the outputs that belong to
    one target.

    Parameters
    ----------
    outputs : the batch's outputs, of any shape that the loss accepts
    class_axis : bool
        Whether the entries of a row are along the second axis of the outputs. Otherwise a row
        holds all outputs of one sample.
    """

    def __init__(self, outputs: Tensor, *, class_axis: bool) -> None:
        self.class_axis = class_axis and outputs.ndim > 1
        moved = outputs.movedim(1, -1) if self.class_axis else outputs
        unbatched = outputs.ndim == 0 or (class_axis and outputs.ndim == 1)
        self.samples = 1 if unbatched else outputs.shape[0]
        self._moved_shape, self._dtype = moved.shape, outputs.dtype
        self.z = self.rows(outputs.detach())

    def rows(self, x: Tensor) -> Tensor:
        """Rearrange a tensor of the outputs' shape into (data, entries), float32 at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.class_axis:
            return wide.movedim(1, -1).reshape(-1, self._moved_shape[-1])
        return wide.reshape(self.samples, -1)

    def outputs(self, rows: Tensor) -> Tensor:
        """Rearrange rows into a tensor of the outputs' shape and data type."""
        x = rows.reshape(self._moved_shape).to(self._dtype)
        return x.movedim(-1, 1) if self.class_axis else x

    def matvec(self, u: Tensor) -> Tensor:
        return self.outputs(self.hessian(self.rows(u)))

    @abstractmethod
    def hessian(self, u: Tensor) -> Tensor:
        """H_z u for every row u."""

    @abstractmethod
    def factors(self) -> Iterator[Tensor]:
        """Rows s_1, s_2, ... with H_z = sum_c s_c s_c^T for every datum."""

    @abstractmethod
    def draws(self, draw: Draw) -> Iterator[Tensor]:
        """The scaled gradients r for targets drawn from the distribution, one for each draw."""

    @abstractmethod
    def observed(self) -> Tensor:
        """The scaled gradient r for the targets in the data."""


@final
class Softmax(Likelihood):
    """Cross-entropy, with class weights, ignored targets, smoothing, or probability targets."""

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
            target_weight, divisor = self.labels @ self.weight, self.counts.sum()
        else:
            labels = targets.reshape(-1)
            self.counts = (labels != loss.ignore_index).to(self.p)
            self.labels = torch.where(self.counts > 0, labels, 0)
            target_weight = self.counts * self.weight[self.labels]
            divisor = target_weight.sum()
        # Label smoothing spreads a part of each target evenly over all classes.
        mean_weight = self.counts * self.weight.mean()
        self.mass = ((1 - self.smoothing) * target_weight + self.smoothing * mean_weight)[:, None]
        self.divisor = divisor if loss.reduction == "mean" else torch.ones_like(divisor)
        self.root = torch.sqrt(self.mass / self.divisor)

    def hessian(self, u: Tensor) -> Tensor:
        inner = (self.p * u).sum(dim=1, keepdim=True)
        return self.root**2 * self.p * (u - inner)

    def factors(self) -> Iterator[Tensor]:
        # diag(p) - p p^T = sum_c p_c (e_c - p) (e_c - p)^T
        for c in range(self.p.shape[1]):
            column = -self.p
            column[:, c] += 1
            yield self.root * torch.sqrt(self.p[:, c : c + 1]) * column

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        # Inversion of the distribution function. Scaling by its last value, which rounding makes
        # differ from 1, keeps every label in range.
        cdf = torch.cumsum(self.p.to(torch.float64), dim=1)
        for uniform in draw("uniform", 1):
            labels = (cdf < uniform * cdf[:, -1:]).sum(dim=1, keepdim=True)
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
    """Squared error: -log p of y ~ N(z, 1/2) is (z - y)^2 up to a constant."""

    def __init__(self, loss: Any, outputs: Tensor, targets: Tensor) -> None:
        super().__init__(outputs, class_axis=False)
        self.residual = self.z - self.rows(targets)
        self.divisor = float(self.z.numel()) if loss.reduction == "mean" else 1.0

    def hessian(self, u: Tensor) -> Tensor:
        return u * (2 / self.divisor)

    def factors(self) -> Iterator[Tensor]:
        return _diagonal_factors(torch.full_like(self.z, (2 / self.divisor) ** 0.5))

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        for normal in draw("normal", self.z.shape[1]):
            yield normal.to(self.z) * (2 / self.divisor) ** 0.5

    def observed(self) -> Tensor:
        r: Tensor = self.residual * (2 / self.divisor**0.5)
        return r


@final
class Bernoulli(Likelihood):
    """Binary cross-entropy with logits, with weights and weights of the positive class."""

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

    def factors(self) -> Iterator[Tensor]:
        return _diagonal_factors(self.root * torch.sqrt(self.s * (1 - self.s)))

    def draws(self, draw: Draw) -> Iterator[Tensor]:
        for uniform in draw("uniform", self.z.shape[1]):
            yield self.root * (self.s - torch.where(uniform < self.s, 1.0, 0.0).to(self.s))

    def observed(self) -> Tensor:
        gradient = self.false * self.s - self.true * (1 - self.s)
        return _quotient(gradient, self.root * self.divisor)


@final
class MeanOuterProduct(OutputMatrix):
    """The mean of r r^T over some scaled gradients r, separately for every datum.

    Parameters
    ----------
    likelihood : Likelihood
        It arranges outputs into rows.
    gradients : (draws, data, entries)
    """

    def __init__(self, likelihood: Likelihood, gradients: Tensor) -> None:
        self.likelihood = likelihood
        draws, _, entries = gradients.shape
        scaled = gradients / draws**0.5
        self._dense = draws > entries  # then the matrices take less memory than the gradients
        self._factors = torch.einsum("sdi,sdj->dij", scaled, scaled) if self._dense else scaled

    def matvec(self, u: Tensor) -> Tensor:
        rows = self.likelihood.rows(u)
        if self._dense:
            return self.likelihood.outputs((self._factors @ rows[:, :, None])[:, :, 0])
        inner = (self._factors * rows).sum(dim=-1, keepdim=True)
        return self.likelihood.outputs((self._factors * inner).sum(dim=0))


def _diagonal_factors(diagonal: Tensor) -> Iterator[Tensor]:
    """Factors of diag(d^2): one column d_c e_c for each entry."""
    for c in range(diagonal.shape[1]):
        column = torch.zeros_like(diagonal)
        column[:, c] = diagonal[:, c]
        yield column


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """A / b, and 0 for data with weight 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
