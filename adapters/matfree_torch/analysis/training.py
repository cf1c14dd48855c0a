"""The curvature of a network at the checkpoints of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from matfree.arguments import Which
from matfree.operators import Operator
from matfree.protocol import Seed
from matfree_torch.analysis.follower import Follower
from matfree_torch.analysis.training_history import TrainingHistory
from matfree_torch.curvature.hessian import hessian


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
        for index, checkpoint in enumerate(checkpoints):
            label, state = _label_and_state(checkpoint, index)
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


def _label_and_state(checkpoint: Any, index: int) -> tuple[Any, Mapping[str, Any]]:
    pair = isinstance(checkpoint, tuple) and len(checkpoint) == 2
    label, state = checkpoint if pair else (index, checkpoint)
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
