"""The result of the batch jackknife."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from matfree.protocol import HostArray
from matfree.results import Record
from matfree.results.intervals import student_quantile


@final
@dataclass(frozen=True, eq=False)
class BatchJackknife(Record):
    """The trace or the eigenvalues of a curvature, with the errors due to probes and data.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import batch_jackknife, hessian
    >>> model = torch.nn.Linear(1, 1, bias=False)  # the Hessian is 2 x^2, averaged
    >>> batches = [(torch.full((5, 1), x), torch.zeros(5, 1)) for x in (1.0, 2.0, 3.0)]
    >>> found = batch_jackknife(hessian(model, torch.nn.MSELoss(), batches), num_probes=2, seed=0)
    >>> low, high = found.interval()
    >>> round(float(high - low) / float(found.half_width()), 6), found.num_batches
    (2.0, 3)
    """

    value: Any
    """The trace, a float, or the eigenvalues, (k,)."""
    probe_stderr: Any
    """The standard error due to probes, at fixed data. It is 0 for eigenvalues."""
    data_stderr: Any
    """The standard error due to the finite data, at fixed probes: the jackknife over batches."""
    shared_stderr: Any
    """The contribution included in both: the scatter over probes within each batch."""
    bias: Any
    """A bound on the error that is not due to sampling, the residual of an eigenpair.

    It widens the interval."""
    left_out: HostArray
    """(batches,) or (batches, k), the quantity without each of the batches."""
    weights: HostArray
    """(batches,) the weight of each batch in the whole, with sum 1."""
    quantity: str
    """The name of the quantity."""
    num_probes: int
    """The number of random probes, 0 for eigenvalues."""
    num_matvecs: int
    """The number of matvecs with the curvature over all batches."""
    seed: int
    """The seed that reproduces the probes."""

    @property
    def num_batches(self) -> int:
        """The number of batches."""
        return len(self.weights)

    @property
    def stderr(self) -> Any:
        """The standard error with respect to the population, from both kinds of error."""
        # Both squares include the shared contribution, which must count once.
        squares = self.probe_stderr**2 + self.data_stderr**2 - self.shared_stderr**2
        return np.sqrt(np.maximum(squares, 0.0))

    def half_width(self, level: float = 0.95) -> Any:
        """Half the width of the interval. Each standard error has its own Student quantile."""
        if not 0 < level < 1:
            raise ValueError(
                f"level must be in (0, 1): got {level}; pass 0.95 for a 95 % interval."
            )
        half = student_quantile(level, self.num_batches - 1) * self.data_stderr
        if self.num_probes:
            half = np.hypot(half, student_quantile(level, self.num_probes - 1) * self.probe_stderr)
        return half + self.bias

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval (low, high) for the quantity of the population.

        The population is the distribution of which the batches are independent samples.
        """
        half = self.half_width(level)
        return self.value - half, self.value + half

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("quantity", self.quantity)]
        columns = (self.value, self.probe_stderr, self.data_stderr, *self.interval())
        for value, probe, data, low, high in zip(*map(np.atleast_1d, columns), strict=True):
            rows.append(("value", f"{value:.8g}, 95 % interval [{low:.6g}, {high:.6g}]"))
            rows.append(("standard errors", f"{probe:.2g} due to probes, {data:.2g} due to data"))
        return [
            *rows,
            ("batches", f"{self.num_batches}, each left out once"),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_probes} probes"),
            ("seed", str(self.seed)),
        ]
