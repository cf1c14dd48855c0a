r"""The loss along lines and over planes in parameter space.

Along a direction v the loss is a function of one number,

.. math:: f(x) = L(\theta + x v), \qquad f''(0) = v^T H v,

so the curves show the curvature that the eigenvalues of the Hessian H measure, and how far
from the network this local curvature describes the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from matfree.arguments import require_whole
from matfree.probes import resolve_seed
from matfree.progress import Progress
from matfree.protocol import HostArray, Seed
from matfree_torch.analysis.directions import DirectionResolver, Displacement, filter_normalized
from matfree_torch.analysis.landscape_result import LossLandscape
from matfree_torch.curvature.hessian import hessian
from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.objective.batches import Normalizer
from matfree_torch.vectors.layout import Patterns


def loss_landscape(
    model: nn.Module | Callable[..., Any],
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    directions: Any,
    *,
    span: float | tuple[float, float] = 1.0,
    points: int = 41,
    filter_normalize: bool = False,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    batch: bool | None = None,
    weight_decay: WeightDecay = 0.0,
    seed: Seed = None,
    progress: bool = False,
) -> LossLandscape:
    r"""The loss over data along directions in parameter space, or over the plane of two.

    The result holds :math:`L(\theta + x v)` for each direction v, or
    :math:`L(\theta + x v + y w)`. The second derivative along v at 0 is :math:`v^T H v`, where
    H is the :func:`hessian` with the same arguments.

    Parameters
    ----------
    model, loss, data, params, normalizer, batch, weight_decay
        As for :func:`hessian`. The model is neither copied nor changed.
    directions : a direction, a sequence of two, or a mapping of names to directions
        One direction gives a curve. A sequence of two gives a surface. A mapping gives one
        curve per entry, to be drawn in one figure:
        ``{"top": eigenpairs, "random": "random", "gradient": "gradient"}``.

        A direction is one of the following. A flat vector (n,), whose length is kept. A mapping
        of parameter names to tensors, such as ``H.unflatten(v)``. An EigenResult, of which the
        first vector is used; if it is the only argument, the first two vectors give a surface.
        A block (n, 1) or (n, 2). "gradient", or "random" (Gaussian), normalized to length 1.
        Another model or ``towards(state_dict)``, for the line between two checkpoints, where 0
        is this network and 1 is the other. On this line floating-point buffers, such as batch
        statistics, are interpolated between 0 and 1 and constant beyond. Parameters that are
        not chosen are constant.
    span : float or (float, float)
        Coordinates range from -span to span, or from the first number to the second.
    points : int
        Coordinates per axis. An odd number includes 0, the unperturbed network.
    filter_normalize : bool
        Scale every filter of a direction to the norm of the network's own filter, and set
        parameters with one dimension, such as biases, to zero. A filter is a slice of a weight
        along its first axis. Plots of networks whose weights differ in scale become comparable.
    seed : int, None or numpy.random.Generator
        The seed of "random" directions. Two of them are probes 0 and 1.
    progress : bool
        Show a progress bar over batches, which requires tqdm.

    Returns
    -------
    LossLandscape
        The values are accumulated in float64 over batches. They are infinite or NaN where the
        loss is, at a distance from the network.

    Raises
    ------
    NonFiniteError
        The loss of the network itself is NaN or infinite.
    ValueError
        A direction has the wrong shape or length zero, a checkpoint is of another architecture,
        a sequence has more than two directions, ``points`` or ``span`` is out of range; or as
        for :func:`hessian`.

    Cost
    ----
    One pass over the data, with ``points`` forward passes per batch and curve, or points^2 per
    batch for a surface. No gradients, except one more pass for "gradient". Memory: the
    directions and one more set of parameters.

    References
    ----------
    H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein (2018), Visualizing the loss landscape of
    neural nets, arXiv:1712.09913. I. J. Goodfellow, O. Vinyals, A. M. Saxe (2015),
    Qualitatively characterizing neural network optimization problems, arXiv:1412.6544.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import loss_landscape
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> data = torch.ones(4, 1), torch.zeros(4, 1)
    >>> line = loss_landscape(model, torch.nn.MSELoss(), data, torch.ones(1), points=5)
    >>> line.values  # (1 + x)^2
    array([[0.  , 0.25, 1.  , 2.25, 4.  ]])
    """
    seed = resolve_seed(seed)
    axis = _axis(span, points)
    curvature = hessian(
        model,
        loss,
        data,
        params=params,
        normalizer=normalizer,
        batch=batch,
        weight_decay=weight_decay,
    )
    curvature.objective.require_single_process("a landscape")
    moves, is_surface = DirectionResolver(curvature, seed).resolve(directions)
    if filter_normalize:
        moves = [filter_normalized(move, curvature.layout) for move in moves]
    grid = _grid(axis, len(moves), is_surface)
    with Progress("loss landscape", progress) as bar:
        # The first point is the unperturbed network.
        values = _evaluate(curvature, moves, np.vstack((np.zeros(len(moves)), grid)), bar)
    shape = (points, points) if is_surface else (len(moves), points)
    return LossLandscape(
        coordinates=(axis, axis) if is_surface else (axis,),
        values=values[1:].reshape(shape),
        names=tuple(move.name for move in moves),
        lengths=tuple(move.length for move in moves),
        loss=float(values[0]),
        num_evaluations=len(values),
        filter_normalized=filter_normalize,
        seed=seed,
    )


def _axis(span: float | tuple[float, float], points: int) -> HostArray:
    require_whole("points", points)
    low, high = (-span, span) if isinstance(span, int | float) else span
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            f"span must be a positive number, or (low, high) with low < high: got {span!r}."
        )
    axis = np.linspace(low, high, points)
    if isinstance(span, int | float) and points % 2:
        axis[points // 2] = 0.0  # linspace may miss the unperturbed network by rounding
    return axis


def _grid(axis: HostArray, count: int, is_surface: bool) -> HostArray:
    """The multiples of the directions at every point, (points, directions)."""
    if is_surface:
        return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.kron(np.eye(count), axis[:, None])


def _evaluate(
    curvature: ParameterCurvature, moves: list[Displacement], grid: HostArray, bar: Progress
) -> HostArray:
    """The loss at every row of the grid, in one pass over the data."""
    objective, totals = curvature.objective, np.zeros(len(grid))
    with objective.isolated():
        for num_done, batch in enumerate(objective.batches, start=1):
            for i, multiples in enumerate(grid):
                steps, buffers = _state_at(curvature, moves, multiples)
                with curvature.layout.moved(steps):  # a loss may overflow far from the network
                    totals[i] += batch.weight * objective.loss_of(batch, buffers, finite=not i)
            bar.show(num_done)
    totals /= objective.batches.divisor
    if curvature.weight_decay:
        totals += [curvature.decay_term(_state_at(curvature, moves, row)[0]) for row in grid]
    return totals


def _state_at(
    curvature: ParameterCurvature, moves: list[Displacement], multiples: HostArray
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The steps of the parameters, and the buffers that change, at a point of the grid."""
    active = [(float(x), move) for x, move in zip(multiples, moves, strict=True) if x]
    if not active:
        return {}, {}
    offset = sum(x * move.vector for x, move in active)
    assert isinstance(offset, Tensor)  # the sum is not empty
    buffers: dict[str, Tensor] = {}
    for x, move in active:
        for name, change in (move.buffers or {}).items():
            before = buffers.get(name, curvature.model.get_buffer(name))
            # Extrapolated batch statistics could have negative variances.
            buffers[name] = before + min(max(x, 0.0), 1.0) * change
    return curvature.layout.unflatten(offset), buffers
