"""Curvature over a training: each checkpoint begins where the one before ended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import numpy as np
from torch import Tensor, nn

import matfree
from matfree.arguments import Which, require_whole
from matfree.arrays import epsilon, to_host
from matfree.operators import Operator
from matfree.probes import resolve_seed
from matfree.protocol import HostArray, Seed
from matfree.results import EigenResult, SpectralDensity
from matfree_torch.analysis.training_history import TrainingHistory
from matfree_torch.curvature.hessian import hessian


@final
class Follower:
    """Looks at a curvature again and again while the network behind it changes.

    Each look's eigenpairs start from those of the look before; the probes are the same.

    Parameters
    ----------
    A : operator, or anything ``matfree.aslinearoperator`` accepts
        Those of this package notice that the weights of their model have changed.
    k : int
        Eigenpairs to follow.
    which, rtol, max_matvecs, verify
        As for :func:`matfree.eigsh`. A residual of rtol leaves an error near rtol^2 in an
        eigenvalue that stands apart. ``verify=False`` spares the search for missed pairs, which
        may cost more than the pairs themselves once these are nearly known.
    num_probes : int
        Probes of the trace; 0 leaves it out.
    density_probes, num_steps : int
        Probes and Lanczos steps of the spectral density, left out by default.
    seed : int, None or numpy.random.Generator

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import Follower, hessian
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> H = hessian(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1)))
    >>> follower = Follower(H, 1, num_probes=2, seed=0)
    >>> for epoch in range(3):  # train here
    ...     follower.look(epoch)
    >>> follower.history().values.round(4)  # a linear model: the Hessian stays
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
        """Of the last look, vectors included."""
        self._labels: list[Any] = []
        self._rows: list[tuple[Any, ...]] = []
        self._samples: list[HostArray] = []
        self._densities: list[SpectralDensity] = []

    def look(self, label: Any = None) -> None:
        """Measure the curvature at the model's present weights.

        Parameters
        ----------
        label : number or str, optional
            The checkpoint's, for the history; by default its number, from 0.
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
        label = label.item() if hasattr(label, "item") else label  # NumPy's own numbers
        self._labels.append(len(self._labels) if label is None else label)

    def history(self) -> TrainingHistory:
        """Everything seen so far, as a record; ValueError before the first look."""
        if not self._labels:
            raise ValueError("there is nothing to tell yet; call look() at each checkpoint.")
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
        if before is None:
            return np.full(len(after.values), np.nan)
        inner = to_host(self.operator.domain.gram(before.vectors, after.vectors))
        return np.asarray(np.minimum(np.linalg.norm(inner, axis=0), 1.0))

    def _padded(self, rows: tuple[HostArray, ...], missing: Any) -> HostArray:
        """Rows of length k; a run that ended early may have found fewer pairs."""
        full = [[*row, *[missing] * (self.k - len(row))] for row in rows]
        return np.asarray(full)


def follow_training(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    checkpoints: Iterable[Any],
    k: int = 2,
    *,
    curvature: Callable[..., Operator] = hessian,
    which: Which = "LM",
    rtol: float = 1e-3,
    max_matvecs: int | None = None,
    verify: bool = True,
    num_probes: int = 16,
    density_probes: int = 0,
    num_steps: int = 40,
    seed: Seed = None,
    **options: Any,
) -> TrainingHistory:
    """The top eigenvalues, the trace and the density of a curvature at every checkpoint.

    A(theta_t) u = lambda u for the weights theta_t of each checkpoint; eigenvectors change
    little from one to the next, so each search starts from those found before.

    Parameters
    ----------
    model, loss, data
        As for :func:`hessian`.
    checkpoints : iterable of state dicts, or of (label, state dict)
        Taken one at a time: a generator may read each from its file. A model stands for its
        own state dict. Labels are numbers or strings, 0, 1 ... by default. For a training
        under way use :class:`Follower`.
    k, which, rtol, max_matvecs, verify, num_probes, density_probes, num_steps, seed
        As for :class:`Follower`.
    curvature : function
        ``hessian``, ``ggn`` or ``fisher``; called once, as curvature(model, loss, data,
        **options).
    **options
        Arguments of ``curvature``: ``params``, ``normalizer``, ``weight_decay`` ...

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        There is no checkpoint, or one is no copy but the model's own tensors; or as for the
        curvature and :func:`matfree.eigsh`.
    RuntimeError
        From ``load_state_dict``: a checkpoint is of another architecture.

    Warns
    -----
    ConvergenceWarning
        An eigenpair did not reach rtol within the budget.

    Cost
    ----
    A checkpoint: the eigenpairs, the search that verifies them, num_probes, and density_probes *
    num_steps products. The nearer the checkpoints (``overlaps``) and the looser rtol, the more
    a start from the last pairs saves: most of the products, or next to none. Memory: a copy
    of the model's state, with which it is put back at the end, and k vectors.

    Examples
    --------
    >>> import copy, torch
    >>> from matfree_torch import follow_training
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> data, loss = (torch.ones(4, 2), torch.zeros(4, 1)), torch.nn.MSELoss()
    >>> states = [(epoch, copy.deepcopy(model.state_dict())) for epoch in (0, 10)]
    >>> follow_training(model, loss, data, states, k=1, num_probes=4, seed=0).labels
    (0, 10)
    """
    saved = copy.deepcopy(model.state_dict())
    follower = Follower(
        curvature(model, loss, data, **options),
        k,
        which=which,
        rtol=rtol,
        max_matvecs=max_matvecs,
        verify=verify,
        num_probes=num_probes,
        density_probes=density_probes,
        num_steps=num_steps,
        seed=seed,
    )
    try:
        for number, checkpoint in enumerate(checkpoints):
            label, state = _labelled(checkpoint, number)
            _require_copy(state, model)
            model.load_state_dict(state)
            follower.look(label)
    finally:
        model.load_state_dict(saved)
    if follower.eigenpairs is None:
        raise ValueError("checkpoints holds none; is the generator exhausted?")
    return follower.history()


def _labelled(checkpoint: Any, number: int) -> tuple[Any, Mapping[str, Any]]:
    pair = isinstance(checkpoint, tuple) and len(checkpoint) == 2
    label, state = checkpoint if pair else (number, checkpoint)
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            "checkpoints must yield state dicts, or pairs (label, state dict): got "
            f"{type(checkpoint).__name__}; load files by torch.load first."
        )
    return label, state


def _require_copy(state: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse what changes when the next checkpoint is loaded."""
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    for name, x in state.items():
        if isinstance(x, Tensor) and x.data_ptr() in own:
            raise ValueError(
                f"the checkpoint's {name!r} is the model's own tensor, so that all checkpoints are "
                "one; collect copy.deepcopy(model.state_dict()), or use Follower while training."
            )
