r"""Exact traces of Gauss-Newton matrices, from one backward pass per class.

Let :math:`J_l` be the Jacobian of the outputs with respect to port l, and
:math:`M = \sum_c s_c s_c^T` the Hessian of the loss with respect to the outputs of one sample.
Then

.. math:: \operatorname{tr} J_l^T M J_l = \sum_c \|J_l^T s_c\|^2

for every port l, and one backward pass computes :math:`J_l^T s_c` for all ports. If samples do
not mix (no entry at a port affects the outputs of several samples), one pass serves all samples,
because their results are in different entries. Otherwise every sample takes its own pass. For a
loss without a closed form of M, the columns :math:`M e_c` take a second pass:

.. math:: \operatorname{tr} J_l^T M J_l = \sum_c \langle J_l^T e_c, J_l^T M e_c \rangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from matfree.arrays import to_host
from matfree.protocol import HostArray
from matfree_torch.curvature.gauss_newton import Linearized
from matfree_torch.curvature.likelihoods import Likelihood
from matfree_torch.vectors.layout import Layout

_FEW_SAMPLES = 16
"""Up to this many samples, every pair is tested for mixing. For more samples, one random half is
tested against the other, which detects nearly every pattern of mixing."""


@final
class ExactTraces:
    """The backward passes that give the traces of a network's Gauss-Newton matrices.

    Parameters
    ----------
    network : the linearized network, with M
    layout : the ports
    """

    def __init__(self, network: Linearized, layout: Layout) -> None:
        self.network, self.layout = network, layout
        matrix, z = network.matrix, network.z
        self._likelihood = matrix if isinstance(matrix, Likelihood) else None
        if self._likelihood is not None:
            self.num_samples, num_data = self._likelihood.samples, len(self._likelihood.z)
        else:
            self.num_samples = num_data = len(z) if z.ndim else 1
        separate = self.num_samples == 1 or not self._samples_mix()
        # A sample has one datum for each position of its targets. Every group-th datum shares a
        # pass: one datum of every sample if samples are separate, a single datum otherwise.
        self._num_groups = num_data // self.num_samples if separate else num_data
        self._num_entries = z.numel() // num_data
        self.num_passes = self._num_entries * self._num_groups * (1 if self._likelihood else 2)

    def traces(self, *, per_sample: bool) -> dict[str, HostArray]:
        """The trace of every port, (1, 1), or its contributions by sample, (1, samples)."""
        shape = (1, self.num_samples if per_sample else 1)
        totals = [
            torch.zeros(shape, dtype=torch.float64, device=self.layout.device)
            for _ in self.layout.names
        ]
        for a, b in self._cotangents():
            left = self.network.vjp(a, self.layout)
            right = left if b is None else self.network.vjp(b, self.layout)
            for total, x, y in zip(totals, left, right, strict=True):
                terms = x.to(torch.float64) * y.to(torch.float64)
                total += terms.reshape(*shape, -1).sum(dim=-1)
        return {n: to_host(total) for n, total in zip(self.layout.names, totals, strict=True)}

    def _cotangents(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Pairs a, b with M = sum a b^T over the data of each group; b is None if b = a."""
        for group in range(self._num_groups):
            if self._likelihood is not None:
                for factor in self._likelihood.factors():
                    column = torch.zeros_like(factor)
                    column[group :: self._num_groups] = factor[group :: self._num_groups]
                    yield self._likelihood.outputs(column), None
            else:
                for entry in range(self._num_entries):
                    e = torch.zeros_like(self.network.z).reshape(self.num_samples, -1)
                    e[group :: self._num_groups, entry] = 1
                    e = e.reshape(self.network.z.shape)
                    yield e, self.network.matrix.matvec(e)

    def _samples_mix(self) -> bool:
        """Whether some samples share an entry of a port, or a term of the loss, with others.

        A random cotangent is split into one for some samples and one for the others. If both
        reach the same entry, the samples mix.
        """
        z = self.network.z
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        for half in batch_halves(self.num_samples, z.device):
            if self._likelihood is None:  # a likelihood is a sum over data, which cannot mix
                Mu = self.network.matrix.matvec(self._masked(u, half))
                if bool(self._masked(Mu, ~half).any()):
                    return True
            sides = [self.network.vjp(self._masked(u, m), self.layout) for m in (half, ~half)]
            if any(bool(((x != 0) & (y != 0)).any()) for x, y in zip(*sides, strict=True)):
                return True
        return False

    def _masked(self, u: Tensor, mask: Tensor) -> Tensor:
        return (u.reshape(self.num_samples, -1) * mask[:, None]).reshape(u.shape)


def batch_halves(num_samples: int, device: torch.device) -> list[Tensor]:
    """Masks that split a batch in two.

    For few samples, every pair is separated by one of the masks, which are the binary digits of
    the samples' indices. For many samples, one random mask separates half of the pairs.
    """
    indices = torch.arange(num_samples)
    if num_samples <= _FEW_SAMPLES:
        bits = range((num_samples - 1).bit_length())
        return [((indices >> bit) & 1).to(torch.bool).to(device) for bit in bits]
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    return [(order < num_samples // 2).to(device)]
