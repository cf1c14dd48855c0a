"""Traces of the activation Hessian at every port of a network.

A port is a place at which an activation is perturbed: the input or the output of a module (see
:mod:`matfree_torch.activations.ports`). The trace at a port is exact if the Hessian equals the
Gauss-Newton matrix there and backward passes are cheaper than probes. Otherwise it is estimated
from probes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final, get_args

import numpy as np
import torch
from torch import Tensor

from matfree import Estimate, OperatorError
from matfree.arguments import block_size_for, require_whole, slices
from matfree.arrays import to_host
from matfree.probes import CHECK, resolve_seed
from matfree.protocol import HostArray, Seed
from matfree_torch.activations.exact_traces import ExactTraces, batch_halves
from matfree_torch.activations.ports import Where
from matfree_torch.curvature.gauss_newton import Linearized
from matfree_torch.curvature.operator import CurvatureOperator

# Indices of the probes for checks. The first matvec uses those from 0 on for its symmetry check.
_GAUSS_NEWTON_PROBE = 2
_SAMPLE_PROBE = 3

PortTraceMethod: TypeAlias = Literal["auto", "exact", "probes", "gauss-newton"]


class PortCurvature(CurvatureOperator):
    """A curvature at the ports of a network, of one batch, with the network's linearization."""

    at: Where
    """The kind of the ports."""

    @abstractmethod
    def outputs(self) -> Tensor:
        """The outputs of the network, a function of the perturbations at the ports."""

    @abstractmethod
    def linearized(self) -> Linearized:
        """The network from ports to outputs, with the Hessian of the loss with respect to them."""


@final
@dataclass(frozen=True)
class TraceSettings:
    """The arguments of a computation of traces."""

    method: PortTraceMethod
    num_probes: int
    seed: int
    per_sample: bool

    @classmethod
    def make(
        cls, method: PortTraceMethod, num_probes: int, seed: Seed, per_sample: bool
    ) -> TraceSettings:
        """Check the arguments and draw a seed if there is none."""
        if method not in get_args(PortTraceMethod):
            known = ", ".join(map(repr, get_args(PortTraceMethod)))
            raise ValueError(f"method must be one of {known}: got {method!r}.")
        require_whole("num_probes", num_probes)
        return cls(method, num_probes, resolve_seed(seed), per_sample)


class PortTrace(NamedTuple):
    """The trace at one port over one batch."""

    samples: HostArray
    """(probes, samples of the data). An exact trace has one row, a sum over samples one column."""
    method: str
    reason: str
    num_matvecs: int
    size: int
    """The number of entries at the port."""


BatchTraces: TypeAlias = list[tuple[float, dict[str, PortTrace]]]
"""The weights of some batches, and the traces at their ports."""


def port_traces(A: PortCurvature, settings: TraceSettings, index: int) -> dict[str, PortTrace]:
    """The traces at all ports over one batch.

    Parameters
    ----------
    A : the operator of the batch
    settings : TraceSettings
    index : int
        The index of the batch in the data. Each batch has different probes.
    """
    A.inspect()
    if settings.per_sample:
        _require_separate_samples(A)
    exact_traces = None if settings.method == "probes" else ExactTraces(A.linearized(), A.layout)
    exact, reasons = _choose_exact(A, exact_traces, settings)
    found: dict[str, PortTrace] = {}
    if exact_traces is not None and exact:
        values = exact_traces.traces(per_sample=settings.per_sample)
        method = "gauss-newton" if settings.method == "gauss-newton" else "exact"
        for name in exact:
            found[name] = PortTrace(values[name], method, reasons[name], exact_traces.num_passes, 0)
    for name in set(A.names) - set(found):
        samples = _sample_trace(A, name, settings, index)
        found[name] = PortTrace(samples, "hutchinson", reasons[name], len(samples), 0)
    sizes = dict(zip(A.names, A.layout.sizes, strict=True))
    where = f" (at={A.at!r})"
    return {
        name: found[name]._replace(size=sizes[name], reason=found[name].reason + where)
        for name in A.names
    }


def combine_batches(batches: BatchTraces, settings: TraceSettings) -> dict[str, Estimate]:
    """The weighted sums of the traces of all batches, as estimates."""
    names = list(batches[0][1])
    if any(list(traces) != names for _, traces in batches):
        raise OperatorError(
            "the batches do not call the same modules in the same order, so that their traces "
            "cannot be added up; pass the batches one by one."
        )
    return {
        name: _estimate([(weight, traces[name]) for weight, traces in batches], settings)
        for name in names
    }


def _choose_exact(
    A: PortCurvature, exact_traces: ExactTraces | None, settings: TraceSettings
) -> tuple[list[str], dict[str, str]]:
    """The ports whose trace is computed by backward passes, and the reason for every port."""
    if exact_traces is None:
        return [], dict.fromkeys(A.names, f"{settings.num_probes} probes done")
    gaps, limit = _gauss_newton_gaps(A, exact_traces.network), math.sqrt(torch.finfo(A.dtype).eps)
    cost = f"{exact_traces.num_passes} backward passes"
    texts = {
        name: f"Hessian and Gauss-Newton matrix differ by {gap:.1e}" for name, gap in gaps.items()
    }
    if settings.method == "gauss-newton":
        return list(A.names), {name: f"{cost}; {texts[name]}" for name in A.names}
    equal = [name for name in A.names if gaps[name] <= limit]
    if settings.method == "exact":
        if len(equal) < len(gaps):
            worst = max(gaps, key=lambda name: gaps[name])
            raise OperatorError(
                f"the Hessian at {worst!r} is not its Gauss-Newton matrix: applied to a probe, "
                f"they differ by {gaps[worst]:.1e} relative to the larger result, and rounding "
                f"explains at most {limit:.0e}. Its trace cannot be computed exactly; "
                "pass method='probes' or 'auto'."
            )
    elif exact_traces.num_passes > settings.num_probes * len(equal):
        # One backward pass serves all ports, whereas a probe is a matvec for each port.
        too_expensive = f"exact traces of {len(equal)} ports would take {cost}"
        return [], {name: f"{texts[name]}; {too_expensive}" for name in A.names}
    return equal, {name: f"{texts[name]}; {cost}" for name in A.names}


def _gauss_newton_gaps(A: PortCurvature, network: Linearized) -> dict[str, float]:
    """||H v - G v|| relative to the larger of the two, at each port, for one joint probe."""
    v = A.space.probes(1, seed=0, start=_GAUSS_NEWTON_PROBE, stream=CHECK)
    Hv = A.layout.unflatten(A.matmat(v)[:, 0])
    tangent = network.jvp(dict(zip(A.names, A.layout.unpack(v[:, 0]), strict=True)))
    Gv = network.vjp(network.matrix.matvec(tangent), A.layout)
    gaps = {}
    for (name, h), g in zip(Hv.items(), Gv, strict=True):
        size = max(float(h.norm()), float(g.norm()))
        gaps[name] = float((h - g).norm()) / size if size > 0 else 0.0
    return gaps


def _sample_trace(A: PortCurvature, name: str, settings: TraceSettings, index: int) -> HostArray:
    """w^T A[l, l] w for probes w that are zero except at port l, (probes, samples or 1)."""
    block, blocks = A.block(name), list[HostArray]()
    num_samples = len(block.rows.tensors[0]) if settings.per_sample else 1
    for columns in slices(settings.num_probes, block_size_for(block.shape[0], None)):
        count, start = columns.stop - columns.start, index * settings.num_probes + columns.start
        W = block.domain.probes(count, seed=settings.seed, start=start)
        terms = W.to(torch.float64) * block.matmat(W)
        blocks.append(to_host(terms.reshape(num_samples, -1, count).sum(dim=1).T))
    return np.concatenate(blocks)


def _require_separate_samples(A: PortCurvature) -> None:
    """Raise OperatorError if the entries at a port cannot be assigned to single samples.

    They can if the first axis of every port counts the samples, and if the gradient with respect to
    a sample's entries does not depend on other samples.
    """
    outputs = A.outputs()
    num_samples = len(outputs) if outputs.ndim else 1
    for name, x in zip(A.names, A.layout.tensors, strict=True):
        if x.ndim == 0 or len(x) != num_samples:
            raise OperatorError(
                f"per_sample=True needs ports whose first axis counts the {num_samples} samples: "
                f"{name!r} has shape {tuple(x.shape)}; leave per_sample out."
            )
    # A perturbation of some samples must not reach the gradient of the others.
    v = A.layout.unflatten(A.space.probes(1, seed=0, start=_SAMPLE_PROBE, stream=CHECK)[:, 0])
    for half in batch_halves(num_samples, A.space.device):
        inside = A.flatten({name: _masked(x, half) for name, x in v.items()})
        for name, y in A.unflatten(A @ inside).items():
            leaked, stayed = (float(_masked(y, mask).norm()) for mask in (~half, half))
            if leaked > 100 * torch.finfo(A.dtype).eps * stayed:
                raise OperatorError(
                    f"the samples of the batch mix between {name!r} and the loss (batch statistics "
                    "in training mode?), so that no trace belongs to a single sample; call "
                    "model.eval(), or leave per_sample out."
                )


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.reshape(-1, *[1] * (x.ndim - 1))


def _estimate(batches: list[tuple[float, PortTrace]], settings: TraceSettings) -> Estimate:
    """The estimate of the trace at one port, from all batches."""
    exact = all(trace.method != "hutchinson" for _, trace in batches)
    count = 1 if exact else settings.num_probes
    # Some batches may be exact and others sampled: an exact trace is the same for every probe.
    terms = [
        weight * np.broadcast_to(trace.samples, (count, trace.samples.shape[1]))
        for weight, trace in batches
    ]
    samples = np.concatenate(terms, axis=1) if settings.per_sample else np.sum(terms, axis=0)
    value, stderr = samples.mean(axis=0), np.zeros(samples.shape[1])
    if not exact:
        spread = samples.std(axis=0, ddof=1) if count > 1 else np.full_like(value, math.inf)
        stderr = spread / math.sqrt(count)
    first = batches[0][1]
    return Estimate(
        value=value if settings.per_sample else float(value[0]),
        stderr=stderr if settings.per_sample else float(stderr[0]),
        method=first.method if exact else "hutchinson",
        num_probes=0 if exact else count,
        num_matvecs=sum(trace.num_matvecs for _, trace in batches),
        degrees_of_freedom=math.inf if exact else count - 1,
        converged=True,
        reason=first.reason,
        seed=settings.seed,
        size=sum(trace.size for _, trace in batches),
        samples=None if exact or settings.per_sample else samples[:, 0],
        probe_ranges=() if exact else ((0, count),),
    )
