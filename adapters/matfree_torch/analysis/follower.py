"""Repeated measurements of a curvature while its network is being trained.

The eigenvectors of the Hessian change little from one checkpoint to the next, so each search for
eigenpairs starts from those of the previous checkpoint. The probes of traces and densities are
the same at every checkpoint, so differences between checkpoints are free of probe noise as far
as the curvatures are alike.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np

import matfree
from matfree.arguments import Which, require_whole
from matfree.arrays import epsilon, to_host
from matfree.probes import resolve_seed
from matfree.protocol import HostArray, Seed
from matfree.results import EigenResult, SpectralDensity
from matfree_torch.analysis.training_history import TrainingHistory


@final
class Follower:
    """Measures a curvature repeatedly while its network is being trained.

    Call :meth:`look` at each checkpoint and :meth:`history` at the end. The search for eigenpairs
    starts from those of the previous checkpoint, and the probes are the same.

    Parameters
    ----------
    A : operator, or anything ``matfree.aslinearoperator`` accepts
        The operators of this package always use the present weights of their model.
    k : int
        The number of eigenpairs.
    which, rtol, max_matvecs, verify
        As for :func:`matfree.eigsh`. A relative residual of rtol leaves a relative error of
        about rtol^2 in a well-separated eigenvalue. ``verify=False`` omits the search for missed
        eigenpairs, which can cost more than the eigenpairs if the start is already accurate.
    num_probes : int
        Probes for the trace. 0 omits the trace.
    density_probes, num_steps : int
        Probes and Lanczos steps for the spectral density, which is omitted by default.
    seed : int, None or numpy.random.Generator

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import Follower, hessian
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> H = hessian(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1)))
    >>> follower = Follower(H, 1, num_probes=2, seed=0)
    >>> for epoch in range(3):  # training steps would go here
    ...     follower.look(epoch)
    >>> follower.history().values.round(4)  # the model was not trained
    array([[4.], [4.], [4.]])
    """

    def __init__(
        self,
        A: Any,
        k: int = 2,
        *,
        which: Which = "LM",
        rtol: float = 1e-3,
        max_matvecs: int | None = None,
        verify: bool = True,
        num_probes: int = 16,
        density_probes: int = 0,
        num_steps: int = 40,
        seed: Seed = None,
    ) -> None:
        for name, count in (("num_probes", num_probes), ("density_probes", density_probes)):
            require_whole(name, count or None)
        require_whole("num_steps", num_steps)
        self.operator = matfree.aslinearoperator(A)
        self.k, self.which, self.rtol = k, which, rtol
        self.max_matvecs, self.verify, self.seed = max_matvecs, verify, resolve_seed(seed)
        self.num_probes, self.density_probes = num_probes, density_probes
        self.num_steps = min(num_steps, self.operator.shape[0])
        self.eigenpairs: EigenResult | None = None
        """The eigenpairs of the last checkpoint, including vectors."""
        self._labels: list[Any] = []
        self._rows: list[tuple[Any, ...]] = []
        self._samples: list[HostArray] = []
        self._densities: list[SpectralDensity] = []

    def look(self, label: Any = None) -> None:
        """Measure the curvature at the present weights of the model.

        Parameters
        ----------
        label : number or str, optional
            The label of the checkpoint in the history. By default its number, from 0.
        """
        before = self.eigenpairs
        pairs = matfree.eigsh(
            self.operator,
            self.k,
            which=self.which,
            rtol=self.rtol,
            max_matvecs=self.max_matvecs,
            verify=self.verify,
            start=before,
            seed=self.seed,
        )
        self.eigenpairs = pairs
        columns = (pairs.values, pairs.residuals, pairs.converged, self._overlaps(before, pairs))
        self._rows.append((*columns, pairs.norm, pairs.num_matvecs))
        if self.num_probes:
            trace = matfree.trace(self.operator, num_probes=self.num_probes, seed=self.seed)
            self._samples.append(np.asarray(trace.samples, dtype=np.float64))
        if self.density_probes:
            self._densities.append(
                matfree.spectral_density(
                    self.operator,
                    num_probes=self.density_probes,
                    num_steps=self.num_steps,
                    seed=self.seed,
                )
            )
        label = label.item() if hasattr(label, "item") else label  # a NumPy scalar
        self._labels.append(len(self._labels) if label is None else label)

    def history(self) -> TrainingHistory:
        """The measurements so far, as a record. ValueError before the first call of ``look``."""
        if not self._labels:
            raise ValueError("there are no measurements yet; call look() at each checkpoint.")
        values, residuals, converged, overlaps, norms, costs = zip(*self._rows, strict=True)
        space, steps = self.operator.domain, len(self._labels)
        samples = self._samples or [np.empty(0)] * steps
        sampled = sum(x.size for x in samples) + sum(d.num_matvecs for d in self._densities)
        return TrainingHistory(
            labels=tuple(self._labels),
            values=self._padded(values, np.nan),
            residuals=self._padded(residuals, np.nan),
            converged=self._padded(converged, False),
            norms=np.asarray(norms),
            overlaps=self._padded(overlaps, np.nan),
            eigen_matvecs=np.asarray(costs),
            trace_samples=np.stack(samples),
            nodes=tuple(node for density in self._densities for node in density.nodes),
            weights=tuple(w for density in self._densities for w in density.weights),
            num_steps=self.num_steps,
            num_matvecs=sum(costs) + sampled,
            which=self.which,
            size=space.size,
            epsilon=epsilon(space.xp, space.dtype),
            seed=self.seed,
        )

    def _overlaps(self, before: EigenResult | None, after: EigenResult) -> HostArray:
        """The norms of the eigenvectors projected on the span of the previous ones."""
        if before is None:
            return np.full(len(after.values), np.nan)
        inner = to_host(self.operator.domain.gram(before.vectors, after.vectors))
        return np.asarray(np.minimum(np.linalg.norm(inner, axis=0), 1.0))

    def _padded(self, rows: tuple[HostArray, ...], missing: Any) -> HostArray:
        """An array (checkpoints, k). A search within its budget may find fewer than k pairs."""
        full = [[*row, *[missing] * (self.k - len(row))] for row in rows]
        return np.asarray(full)
