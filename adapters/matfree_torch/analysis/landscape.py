r"""The loss along lines and over planes through a network's parameters.

Along a direction v the loss is L(theta + x v), a function of one number whose second
derivative at 0 is v^T H v. What the eigenvalues say of the surface a picture shows, and what
lies beyond the reach of second derivatives too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matfree.arguments import require_whole
from matfree.probes import resolve_seed
from matfree.progress import Progress
from matfree.protocol import HostArray, Seed
from matfree_torch.analysis.directions import Reader, Step, filter_normalized
from matfree_torch.analysis.landscape_result import LossLandscape
from matfree_torch.curvature.hessian import hessian
from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Normalizer
from matfree_torch.vectors.layout import Patterns


def loss_landscape(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    directions: Any,
    *,
    span: float | tuple[float, float] = 1.0,
    points: int = 41,
    filter_normalize: bool = False,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    weight_decay: WeightDecay = 0.0,
    seed: Seed = None,
    progress: bool = False,
) -> LossLandscape:
    r"""The loss over data along directions in parameter space, or over the plane of two.

    L(theta + x v) for each direction v, or L(theta + x v + y w): the function whose second
    derivative at 0 along v is v^T H v, H the :func:`hessian` of the same arguments.

    Parameters
    ----------
    model, loss, data, params, normalizer, weight_decay
        As for :func:`hessian`. The model is not copied, and left as it was found.
    directions : a direction, a sequence of two, or a mapping of names to directions
        One gives a curve; two span a surface; a mapping gives a curve each, to be drawn on
        one figure: ``{"top": eigenpairs, "random": "random", "gradient": "gradient"}``.

        A direction is a flat vector (n,), used as long as it is; tensors by parameters'
        names, as ``H.unflatten(v)`` gives them; an EigenResult, its first vector (by itself,
        its first two and a surface); a block (n, 1) or (n, 2); "gradient" or "random"
        (Gaussian), of length 1; or another model or ``towards(state_dict)``, the line between
        two checkpoints, with 0 this network and 1 the other. On that line floating point
        buffers, batch statistics for instance, move along between 0 and 1 and stay at their
        ends beyond; parameters that are not chosen stay.
    span : float or (float, float)
        Coordinates go from -span to span, or from the first to the second.
    points : int
        Coordinates an axis; an odd number has 0, the network itself, in the middle.
    filter_normalize : bool
        Scale every filter of a direction (for a weight of two or more dimensions, what lies
        at one place of the first) to the norm of the network's own, and set biases and the
        parameters of normalisations to zero, so that pictures of networks whose weights
        differ in scale can be compared.
    seed : int, None or numpy.random.Generator
        Of "random" directions; two of them are probes 0 and 1.
    progress : bool
        Show a progress bar over batches (needs tqdm).

    Returns
    -------
    LossLandscape
        Values accumulated in float64 over batches, infinite or NaN where the loss is.

    Raises
    ------
    ValueError
        A direction has the wrong shape or no length, the checkpoint is of another
        architecture, there are three in a sequence; points or span out of range; or as for
        :func:`hessian`.

    Cost
    ----
    One pass over the data with points forward passes a batch and curve, points^2 for a
    surface, no gradient ("gradient": one more pass). Memory: the directions and one more set
    of parameters.

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
        model, loss, data, params=params, normalizer=normalizer, weight_decay=weight_decay
    )
    curvature.objective.require_single_process("a landscape")
    steps, is_surface = Reader(curvature, seed).read(directions)
    if filter_normalize:
        steps = [filter_normalized(step, curvature.layout) for step in steps]
    grid = _grid(axis, len(steps), is_surface)
    with Progress("loss landscape", progress) as bar:
        values = _evaluate(curvature, steps, np.vstack((np.zeros(len(steps)), grid)), bar)
    shape = (points, points) if is_surface else (len(steps), points)
    return LossLandscape(
        coordinates=(axis, axis) if is_surface else (axis,),
        values=values[1:].reshape(shape),
        names=tuple(step.name for step in steps),
        lengths=tuple(step.length for step in steps),
        loss=float(values[0]),
        num_evaluations=len(values),
        filter_normalized=filter_normalize,
        seed=seed,
    )


def _axis(span: float | tuple[float, float], points: int) -> HostArray:
    require_whole("points", points)
    low, high = (-span, span) if isinstance(span, int | float) else span
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"span must be a positive number, or (low, high): got {span!r}.")
    axis = np.linspace(low, high, points)
    if isinstance(span, int | float) and points % 2:
        axis[points // 2] = 0.0  # the network itself, to the last bit
    return axis


def _grid(axis: HostArray, count: int, is_surface: bool) -> HostArray:
    """Multiples of the directions, one row a point."""
    if is_surface:
        return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.kron(np.eye(count), axis[:, None])


def _evaluate(
    curvature: ParameterCurvature, steps: list[Step], grid: HostArray, bar: Progress
) -> HostArray:
    """The loss at every row of the grid, one pass over the data."""
    objective, totals = curvature.objective, np.zeros(len(grid))
    with objective.isolated(), torch.no_grad():
        for number, batch in enumerate(objective.batches):
            state = isolation.get_random_state(objective.model)
            for i, multiples in enumerate(grid):
                isolation.set_random_state(state)  # every point sees the same random numbers
                outputs = objective.outputs(batch, _moved(curvature, steps, multiples))
                value = objective.value(outputs, batch.targets)
                totals[i] += batch.weight * float(value)
            bar.show(number + 1)
    totals /= objective.batches.divisor
    if curvature.weight_decay:
        totals += [_decay(curvature, _moved(curvature, steps, row)) for row in grid]
    return totals


def _moved(
    curvature: ParameterCurvature, steps: list[Step], multiples: HostArray
) -> dict[str, Tensor]:
    """The parameters, and buffers that change, at a point of the grid."""
    layout = curvature.layout
    own = {name: p.detach() for name, p in zip(layout.names, layout.tensors, strict=True)}
    walked = [(float(x), step) for x, step in zip(multiples, steps, strict=True) if x]
    if not walked:
        return own
    offset = sum(x * step.vector for x, step in walked)
    assert isinstance(offset, Tensor)  # the sum is not empty
    moved = {
        name: (own[name] + piece).to(own[name].dtype)
        for name, piece in layout.unflatten(offset).items()
    }
    for x, step in walked:
        for name, change in (step.buffers or {}).items():
            before = moved.get(name, curvature.model.get_buffer(name))
            moved[name] = before + min(max(x, 0.0), 1.0) * change
    return moved


def _decay(curvature: ParameterCurvature, moved: dict[str, Tensor]) -> float:
    return sum(
        decay / 2 * float(moved[name].to(torch.float64).square().sum())
        for name, decay in curvature.weight_decay.items()
    )
