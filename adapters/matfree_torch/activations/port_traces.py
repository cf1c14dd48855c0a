"""The traces of all layers' activation Hessians: exact where they can be, probes otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from matfree import Estimate, OperatorError
from matfree.arguments import block_size_for, require_whole, slices
from matfree.arrays import to_host
from matfree.probes import CHECK, resolve_seed
from matfree.protocol import HostArray, Seed
from matfree_torch.activations.exact_traces import Columns, halves
from matfree_torch.curvature.gauss_newton import Linearized
from matfree_torch.objective.model_calls import output_tensor

if TYPE_CHECKING:
    from matfree_torch.activations.operator import ActivationHessian

TraceMethod: TypeAlias = Literal["auto", "exact", "probes", "gauss-newton"]
_METHODS = ("auto", "exact", "probes", "gauss-newton")


@final
@dataclass(frozen=True)
class Settings:
    """How traces are asked for."""

    method: TraceMethod
    num_probes: int
    seed: int
    per_sample: bool

    @classmethod
    def make(cls, method: TraceMethod, num_probes: int, seed: Seed, per_sample: bool) -> Settings:
        """Read the arguments, or say what is wrong with them."""
        if method not in _METHODS:
            known = ", ".join(map(repr, _METHODS))
            raise ValueError(f"method must be one of {known}: got {method!r}.")
        require_whole("num_probes", num_probes)
        return cls(method, num_probes, resolve_seed(seed), per_sample)


class PortTrace(NamedTuple):
    """One port's trace over one batch."""

    samples: HostArray
    """(probes, samples of the data): one row where it is exact, one column for the sum."""
    method: str
    reason: str
    cost: int
    size: int


def port_traces(A: ActivationHessian, settings: Settings, number: int) -> dict[str, PortTrace]:
    """All ports' traces over one batch, the ``number``-th of the data."""
    A.inspect()
    if settings.per_sample:
        _require_separate(A)
    columns = None if settings.method == "probes" else Columns(A.linearized(), A.layout)
    exact, reasons = _choice(A, columns, settings)
    found: dict[str, PortTrace] = {}
    if columns is not None and exact:
        values = columns.traces(per_sample=settings.per_sample)
        method = "gauss-newton" if settings.method == "gauss-newton" else "exact"
        for name in exact:
            found[name] = PortTrace(values[name], method, reasons[name], columns.count, 0)
    for name in set(A.names) - set(found):
        samples = _probed(A, name, settings, number)
        found[name] = PortTrace(samples, "hutchinson", reasons[name], len(samples), 0)
    sizes = dict(zip(A.names, A.layout.sizes, strict=True))
    where = f" (at={A.at!r})"
    return {
        name: found[name]._replace(size=sizes[name], reason=found[name].reason + where)
        for name in A.names
    }


def summed(
    parts: list[tuple[float, dict[str, PortTrace]]], settings: Settings
) -> dict[str, Estimate]:
    """The traces of all batches together, each with its weight."""
    names = list(parts[0][1])
    if any(list(part) != names for _, part in parts):
        raise OperatorError(
            "the batches do not call the same modules in the same order, so that their traces "
            "cannot be added up; pass the batches one by one."
        )
    return {
        name: _estimate([(weight, part[name]) for weight, part in parts], settings)
        for name in names
    }


def _choice(
    A: ActivationHessian, columns: Columns | None, settings: Settings
) -> tuple[list[str], dict[str, str]]:
    """Which ports get their trace exactly, and why each gets what it gets."""
    if columns is None:
        return [], dict.fromkeys(A.names, f"{settings.num_probes} probes done")
    gaps, limit = _gaps(A, columns.network), math.sqrt(torch.finfo(A.dtype).eps)
    passes = columns.count
    texts = {
        name: f"Hessian and Gauss-Newton matrix differ by {gap:.1e}" for name, gap in gaps.items()
    }
    if settings.method == "gauss-newton":
        return list(A.names), {n: f"{passes} backward passes; {texts[n]}" for n in A.names}
    equal = [name for name in A.names if gaps[name] <= limit]
    if settings.method == "exact":
        if len(equal) < len(gaps):
            worst = max(gaps, key=lambda name: gaps[name])
            raise OperatorError(
                f"the Hessian at {worst!r} is not its Gauss-Newton matrix (they differ by "
                f"{gaps[worst]:.1e} of the product with a probe, rounding allows {limit:.0e}), so "
                "its trace cannot be had exactly; take method='probes', or 'auto'."
            )
    elif passes > settings.num_probes * len(equal):
        few = f"exactly it would take {passes} backward passes for {len(equal)} ports"
        return [], {name: f"{texts[name]}; {few}" for name in A.names}
    return equal, {name: f"{texts[name]}; {passes} backward passes" for name in A.names}


def _gaps(A: ActivationHessian, network: Linearized) -> dict[str, float]:
    """||H v - G v|| over the larger of the two, at each port, for one probe across all."""
    v = A.space.probes(1, seed=0, start=2, stream=CHECK)
    Hv = A.layout.unflatten(A.matmat(v)[:, 0])
    pushed = network.push(dict(zip(A.names, A.layout.unpack(v[:, 0]), strict=True)))
    Gv = network.pull(network.matrix.product(pushed), A.layout)
    gaps = {}
    for (name, h), g in zip(Hv.items(), Gv, strict=True):
        size = max(float(h.norm()), float(g.norm()))
        gaps[name] = float((h - g).norm()) / size if size > 0 else 0.0
    return gaps


def _probed(A: ActivationHessian, name: str, settings: Settings, number: int) -> HostArray:
    """w^T A[l, l] w for probes on one port alone, (probes, samples or 1)."""
    block, rows = A.block(name), []
    samples = len(block.rows.tensors[0]) if settings.per_sample else 1
    for part in slices(settings.num_probes, block_size_for(block.shape[0], None)):
        count, start = part.stop - part.start, number * settings.num_probes + part.start
        W = block.domain.probes(count, seed=settings.seed, start=start)
        terms = W.to(torch.float64) * block.matmat(W)
        rows.append(to_host(terms.reshape(samples, -1, count).sum(dim=1).T))
    return np.concatenate(rows)


def _require_separate(A: ActivationHessian) -> None:
    """Refuse traces of samples where samples mix, or where the first axis is another one."""
    outputs = output_tensor(A.graph().outputs)
    samples = len(outputs) if outputs.ndim else 1
    for name, x in zip(A.names, A.layout.tensors, strict=True):
        if x.ndim == 0 or len(x) != samples:
            raise OperatorError(
                f"per_sample needs ports whose first axis counts the {samples} samples: {name!r} "
                f"has shape {tuple(x.shape)}."
            )
    v = A.layout.unflatten(A.space.probes(1, seed=0, start=3, stream=CHECK)[:, 0])
    for half in halves(samples, A.space.device):
        inside = A.flatten({name: _masked(x, half) for name, x in v.items()})
        for name, y in A.unflatten(A @ inside).items():
            leaked, kept = (float(_masked(y, chosen).norm()) for chosen in (~half, half))
            if leaked > 100 * torch.finfo(A.dtype).eps * kept:
                raise OperatorError(
                    f"the samples of the batch mix on the way from {name!r} to the loss (batch "
                    "statistics in training mode?), so that no trace belongs to one of them; "
                    "call model.eval(), or leave per_sample out."
                )


def _masked(x: Tensor, chosen: Tensor) -> Tensor:
    return x * chosen.reshape(-1, *[1] * (x.ndim - 1))


def _estimate(parts: list[tuple[float, PortTrace]], settings: Settings) -> Estimate:
    exact = all(part.method != "hutchinson" for _, part in parts)
    count = 1 if exact else settings.num_probes
    terms = [
        weight * np.broadcast_to(p.samples, (count, p.samples.shape[1])) for weight, p in parts
    ]
    samples = np.concatenate(terms, axis=1) if settings.per_sample else np.sum(terms, axis=0)
    value, stderr = samples.mean(axis=0), np.zeros(samples.shape[1])
    if not exact:
        spread = samples.std(axis=0, ddof=1) if count > 1 else np.full_like(value, math.inf)
        stderr = spread / math.sqrt(count)
    methods = [part.method for _, part in parts]
    return Estimate(
        value=value if settings.per_sample else float(value[0]),
        stderr=stderr if settings.per_sample else float(stderr[0]),
        method=methods[0] if exact else "hutchinson",
        num_probes=0 if exact else count,
        num_matvecs=sum(part.cost for _, part in parts),
        degrees_of_freedom=math.inf if exact else count - 1,
        converged=True,
        reason=parts[0][1].reason,
        seed=settings.seed,
        size=sum(part.size for _, part in parts),
        samples=None if exact or settings.per_sample else samples[:, 0],
        probe_ranges=() if exact else ((0, count),),
    )
