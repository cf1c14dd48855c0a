"""The Hessian of a trained ResNet-20: networks, one matvec, and traces."""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import contest
import networks
import products
import roofline
import torch
from contest import Answer, Entry
from support import resnet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import matfree as mf
from matfree_torch import hessian

CE = products.CE
PROBES = 99  # a multiple of 3, for methods that deflate
PAIRS, STEPS = 10, 100
RTOL = 1e-6  # relative to the norm of H; the tenth eigenvalue is 1/200 of the first


@dataclass
class Network:
    """A network in single precision with reference values of its Hessian."""

    net: nn.Module
    data: tuple
    exact: Any  # the Hessian in double precision
    values: np.ndarray  # its eigenvalues of largest magnitude
    trace: float
    work: Any  # matvecs -> Work

    @classmethod
    def make(cls, double, data, trace=None):
        """Compute the reference values in double precision; the trace from all unit vectors."""
        single = copy.deepcopy(double).float()
        given = (data[0].float(), data[1])
        exact = hessian(double, CE, data)
        found = mf.eigsh(exact, PAIRS, rtol=1e-9, seed=0)
        trace = mf.trace(exact, max_matvecs=exact.shape[0]).value if trace is None else trace
        ours = hessian(single, CE, given)
        ours.inspect()
        work = counted(lambda: ours @ ours.space.probes(1, seed=0))
        return cls(single, given, exact, np.asarray(found.values), float(trace), work.times)


class _Traffic(TorchDispatchMode):
    """Count the bytes of the arguments and results of every operation except views."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return out


def counted(function):
    """The bytes that the operations of one call move without a cache, and its operations."""
    with _Traffic() as traffic:
        function()
    with FlopCounterMode(display=False) as flops:
        function()
    return roofline.Work(traffic.moved, flops.get_total_flops())


def tiny():
    """A network of 51 parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return Network.make(net, (torch.randn(12, 4).double(), torch.arange(12) % 3))


def trained():
    net, data = resnet.problem(torch.float64)
    return Network.make(net, data, networks.TRACE)


class OfPyHessian:
    """PyHessian's object for a copy of the network, with a counter of matvecs."""

    def __init__(self, network):
        module, missing = products.peer()
        if missing is not None:
            raise ImportError(missing)
        self.counted = products.Counted(module, network.net, network.data)

    def matvec(self, v):
        theirs, tensors, start = self.counted.theirs, [], 0
        for parameter in theirs.params:
            stop = start + parameter.numel()
            tensors.append(v[start:stop].reshape(parameter.shape))
            start = stop
        result = self.counted.original(theirs.gradsH, theirs.params, tensors)
        return torch.cat([x.reshape(-1) for x in result]).detach()

    def __call__(self, method, seed, **options):
        """Call a method; return its answer and the number of matvecs."""
        torch.manual_seed(seed)
        before = self.counted.count
        with self.counted:
            answer = getattr(self.counted.theirs, method)(**options)
        return answer, self.counted.count - before


def of_curvlinops(network):
    from curvlinops import HessianLinearOperator

    net = copy.deepcopy(network.net)
    return HessianLinearOperator(net, CE, list(net.parameters()), [network.data])


def of_eigenthings(network):
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    net = copy.deepcopy(network.net)
    return HessianOperator(net, [network.data], supervised_loss(CE))


def relative(known):
    return lambda value: abs(float(value) / known - 1)


def one_matvec(report, network, machine, rounds):
    """H v for sign vectors that are computed beforehand."""
    vectors = [network.exact.space.probes(1, seed=seed)[:, 0] for seed in range(rounds)]
    exact = [network.exact @ v for v in vectors]

    def entry(library, call, make):
        def prepare():
            multiply = make()
            multiply(vectors[0].float())  # builds the graphs

            def run(seed):
                return Answer((seed, multiply(vectors[seed].float())), 1)

            return run

        return Entry(library, call, prepare, network.work)

    def ours(strategy):
        def make():
            H = hessian(network.net, CE, network.data, strategy=strategy)
            return lambda v: H @ v

        return make

    def curvlinops():
        H = of_curvlinops(network)
        return lambda v: H @ v

    def error(answer):
        seed, found = answer
        return float((found.double() - exact[seed]).norm() / exact[seed].norm())

    entries = [
        entry("matfree", "H @ v", ours("auto")),
        entry("matfree", 'H @ v, strategy="folded"', ours("folded")),
        entry("pyhessian", "hessian_vector_product", lambda: OfPyHessian(network).matvec),
        entry("curvlinops-for-pytorch", "H @ v", curvlinops),
        entry("hessian-eigenthings", "matvec", lambda: of_eigenthings(network).matvec),
    ]
    return contest.contest(
        report, "ResNet-20: one matvec, without set-up", entries, error, machine, rounds
    )


def traces(report, network, machine, rounds):
    """Traces with the same number of matvecs; deflation computes the outliers first."""

    def ours(method):
        def prepare():
            H = hessian(network.net, CE, network.data)
            H.inspect()

            def run(seed):
                found = mf.trace(H, method=method, max_matvecs=PROBES, seed=seed)
                return Answer(found.value, found.num_matvecs)

            return run

        return prepare

    def pyhessian():
        theirs = OfPyHessian(network)

        def run(seed):
            samples, count = theirs("trace", seed, maxIter=PROBES, tol=0.0)
            return Answer(np.mean(samples), count)

        return run

    def curvlinops(name):
        def prepare():
            import curvlinops

            H, function = of_curvlinops(network), getattr(curvlinops, name)

            def run(seed):
                torch.manual_seed(seed)
                count = PROBES - PROBES % 2 if name == "xtrace" else PROBES
                return Answer(function(H, count), count)

            return run

        return prepare

    def eigenthings(method):
        def prepare():
            import hessian_eigenthings as module

            H = of_eigenthings(network)
            return lambda seed: Answer(
                module.trace(H, num_matvecs=PROBES, method=method, seed=seed).estimate, PROBES
            )

        return prepare

    work = network.work
    entries = [
        *[Entry("matfree", m, ours(m), work) for m in ("hutchinson", "hutch++", "deflated")],
        Entry("pyhessian", "trace, tol=0", pyhessian, work),
        *[
            Entry("curvlinops-for-pytorch", name, curvlinops(name), work)
            for name in ("hutchinson_trace", "hutchpp_trace", "xtrace")
        ],
        *[Entry("hessian-eigenthings", m, eigenthings(m), work) for m in ("hutchinson", "hutch++")],
    ]
    title = f"ResNet-20: trace from {PROBES} matvecs (known: {network.trace:.4g})"
    return contest.contest(report, title, entries, relative(network.trace), machine, rounds)
