"""The curvature of a network during training.

The eigenvectors of the Hessian change little from one checkpoint to the next, so each search for
eigenpairs starts from those of the previous checkpoint. The probes of traces and densities are
the same at every checkpoint, so differences between checkpoints are free of probe noise as far
as the curvatures are alike.
"""

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
    r"""The leading eigenvalues, trace and density of a curvature at every checkpoint.

    .. math:: A(\theta_t) \, u = \lambda u

    is solved for the weights :math:`\theta_t` of each checkpoint. Each search starts from the
    eigenvectors of the previous checkpoint.

    Parameters
    ----------
    model, loss, data
        As for :func:`hessian`.
    checkpoints : iterable of state dicts, or of (label, state dict)
        They are read one at a time, so a generator may load each from its file. A module is
        replaced by its state dict. Labels are numbers or strings, by default 0, 1, and so on.
        Use :class:`Follower` to measure during training.
    k, which, rtol, max_matvecs, verify, num_probes, density_probes, num_steps, seed
        As for :class:`Follower`.
    curvature : function
        ``hessian``, ``ggn`` or ``fisher``. It is called once, as curvature(model, loss, data,
        **options).
    **options
        Further arguments of ``curvature``, such as ``params``, ``normalizer`` or
        ``weight_decay``.

    Returns
    -------
    TrainingHistory

    Raises
    ------
    ValueError
        There is no checkpoint, or a checkpoint holds the tensors of the model itself instead
        of copies; or as for the curvature and :func:`matfree.eigsh`.
    RuntimeError
        A checkpoint is of another architecture; raised by ``load_state_dict``.

    Warns
    -----
    ConvergenceWarning
        An eigenpair did not reach ``rtol`` within the budget.

    Cost
    ----
    Per checkpoint the matvecs of the eigenpairs and of the search that verifies them, num_probes
    matvecs for the trace, and density_probes * num_steps for the density. The start from the
    previous eigenpairs saves more, from almost none to most of the matvecs, the closer the
    checkpoints (see ``overlaps``) and the larger rtol. Memory: k vectors, and a copy of the
    model's state, which is restored at the end.

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
            label, state = _label_and_state(checkpoint, number)
            _require_copy(state, model)
            model.load_state_dict(state)
            follower.look(label)
    finally:
        model.load_state_dict(saved)
    if follower.eigenpairs is None:
        raise ValueError(
            "checkpoints is empty: pass at least one state dict; is the generator exhausted?"
        )
    return follower.history()


def _label_and_state(checkpoint: Any, number: int) -> tuple[Any, Mapping[str, Any]]:
    pair = isinstance(checkpoint, tuple) and len(checkpoint) == 2
    label, state = checkpoint if pair else (number, checkpoint)
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            "checkpoints must yield state dicts, or pairs (label, state dict): got "
            f"{type(checkpoint).__name__}; load files with torch.load first."
        )
    return label, state


def _require_copy(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError for a state that would change when another checkpoint is loaded."""
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    for name, x in state.items():
        if isinstance(x, Tensor) and x.data_ptr() in own:
            raise ValueError(
                f"the checkpoint's {name!r} is the model's own tensor, so all checkpoints would be "
                "the same; collect copy.deepcopy(model.state_dict()), or use Follower during "
                "training."
            )
