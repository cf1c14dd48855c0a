"""A quantity with the errors of probes and of data apart, as a record."""

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
    """A quantity of a curvature, with what probes and data contribute to its error.

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
    """The trace, a float; or the eigenvalues, (k,)."""
    probe_stderr: Any
    """What more probes on the same data would remove; 0 for eigenvalues, which have none."""
    data_stderr: Any
    """What more data would remove: by the jackknife over batches, with the same probes."""
    shared_stderr: Any
    """The part that both of them hold: each batch's own scatter over the probes."""
    bias: Any
    """A bound on what is no sampling error: an eigenpair's residual. It widens the interval."""
    left_out: HostArray
    """(batches,) or (batches, k): the quantity without each batch."""
    weights: HostArray
    """(batches,) each batch's part of the whole, of sum 1."""
    quantity: str
    """What it is of, in words."""
    num_probes: int
    """Random probes used; 0 for eigenvalues."""
    num_matvecs: int
    """Products of the operator with one vector, over all batches, everything counted."""
    seed: int
    """The seed that repeats the probes."""

    @property
    def num_batches(self) -> int:
        """Batches left out, one after the other."""
        return len(self.weights)

    @property
    def stderr(self) -> Any:
        """Of the value as an estimate for all the data there could be: both kinds of error."""
        squares = self.probe_stderr**2 + self.data_stderr**2 - self.shared_stderr**2
        return np.sqrt(np.maximum(squares, 0.0))

    def half_width(self, level: float = 0.95) -> Any:
        """Half of the interval's width: each kind of error with its own Student quantile."""
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1): got {level}; pass 0.95 for 95 %.")
        half = student_quantile(level, self.num_batches - 1) * self.data_stderr
        if self.num_probes:
            half = np.hypot(half, student_quantile(level, self.num_probes - 1) * self.probe_stderr)
        return half + self.bias

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval (low, high) for the same quantity over all the data there
        could be, of which these batches are a sample."""
        half = self.half_width(level)
        return self.value - half, self.value + half

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("quantity", self.quantity)]
        columns = (self.value, self.probe_stderr, self.data_stderr, *self.interval())
        for value, probe, data, low, high in zip(*map(np.atleast_1d, columns), strict=True):
            rows.append(("value", f"{value:.8g}, 95 % interval [{low:.6g}, {high:.6g}]"))
            rows.append(("standard errors", f"{probe:.2g} of probes, {data:.2g} of data"))
        return [
            *rows,
            ("batches", f"{self.num_batches}, left out one by one"),
            ("cost", f"{self.num_matvecs} products, {self.num_probes} probes"),
            ("seed", str(self.seed)),
        ]
