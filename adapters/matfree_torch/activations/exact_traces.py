r"""Traces of Gauss-Newton matrices without sampling, one backward pass for each class.

With M = sum_c s_c s_c^T on the outputs of every sample,

    tr J_l^T M J_l = sum_c ||J_l^T s_c||^2

for every port l at once. Where samples do not mix, the passes of all samples are one, because
what comes back lies in different entries; where they do, every sample takes its own. For a
loss without a closed form M e_c takes a second pass: sum_c <J_l^T e_c, J_l^T M e_c>.
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

_FEW = 16  # samples; of more, one random half parts nearly every pattern of mixing


@final
class Columns:
    """The passes that give the traces of a linearized network's Gauss-Newton matrices.

    Parameters
    ----------
    network : the linearized network, with M
    layout : the ports
    """

    def __init__(self, network: Linearized, layout: Layout) -> None:
        self.network, self.layout = network, layout
        matrix, z = network.matrix, network.z
        self._like = matrix if isinstance(matrix, Likelihood) else None
        self.samples = self._like.samples if self._like else (len(z) if z.ndim else 1)
        data = len(self._like.z) if self._like else self.samples
        separate = self.samples == 1 or not self._samples_mix()
        self._groups = data // self.samples if separate else data
        self._entries = z.numel() // data
        self.count = self._entries * self._groups * (1 if self._like else 2)

    def traces(self, *, per_sample: bool) -> dict[str, HostArray]:
        """Every port's trace, (1, 1), or what each sample's entries contribute, (1, samples)."""
        shape = (1, self.samples if per_sample else 1)
        totals = [
            torch.zeros(shape, dtype=torch.float64, device=self.layout.device)
            for _ in self.layout.names
        ]
        for a, b in self._pairs():
            left = self.network.pull(a, self.layout)
            right = left if b is None else self.network.pull(b, self.layout)
            for total, x, y in zip(totals, left, right, strict=True):
                terms = x.to(torch.float64) * y.to(torch.float64)
                total += terms.reshape(*shape, -1).sum(dim=-1)
        return {n: to_host(total) for n, total in zip(self.layout.names, totals, strict=True)}

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Cotangents a, b with M = sum a b^T over the data of one group; None for b = a."""
        for group in range(self._groups):
            if self._like is not None:
                for root in self._like.roots():
                    column = torch.zeros_like(root)
                    column[group :: self._groups] = root[group :: self._groups]
                    yield self._like.outputs(column), None
            else:
                for entry in range(self._entries):
                    e = torch.zeros_like(self.network.z).reshape(self.samples, -1)
                    e[group :: self._groups, entry] = 1
                    e = e.reshape(self.network.z.shape)
                    yield e, self.network.matrix.product(e)

    def _samples_mix(self) -> bool:
        """Whether a part of the samples shares an entry, or the loss, with the others."""
        z = self.network.z
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        for half in halves(self.samples, z.device):
            if self._like is None:  # a closed form is one datum at a time
                product = self.network.matrix.product(self._chosen(u, half))
                if bool(self._chosen(product, ~half).any()):
                    return True
            sides = [self.network.pull(self._chosen(u, m), self.layout) for m in (half, ~half)]
            if any(bool(((x != 0) & (y != 0)).any()) for x, y in zip(*sides, strict=True)):
                return True
        return False

    def _chosen(self, u: Tensor, samples: Tensor) -> Tensor:
        return (u.reshape(self.samples, -1) * samples[:, None]).reshape(u.shape)


def halves(samples: int, device: torch.device) -> list[Tensor]:
    """Masks that part a batch in two: every pair of few samples, most pairs of many."""
    numbers = torch.arange(samples)
    if samples <= _FEW:
        bits = range((samples - 1).bit_length())
        return [((numbers >> bit) & 1).to(torch.bool).to(device) for bit in bits]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    return [(order < samples // 2).to(device)]
