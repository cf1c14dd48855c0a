"""Spectra of a ResNet-20: ten eigenpairs, a density, and activation traces."""

import contextlib
import copy
from unittest import mock

import contest
import numpy as np
import scipy.sparse.linalg
import torch
from contest import Answer, Entry
from peers_networks import CE, PAIRS, RTOL, STEPS, OfPyHessian, of_curvlinops, of_eigenthings
from torch import nn

import matfree as mf
from matfree_torch import activation_hessian, hessian


def _ours(network):
    H = hessian(network.net, CE, network.data)
    H.inspect()
    return H


def pairs(report, network, machine, rounds):
    """The pairs of largest magnitude; errors compare sorted lists, so spurious copies count."""

    def ours(verify):
        def prepare():
            H = _ours(network)

            def run(seed):
                found = mf.eigsh(H, PAIRS, rtol=RTOL, verify=verify, seed=seed)
                return Answer(found.values, found.num_matvecs)

            return run

        return prepare

    def curvlinops():
        H = of_curvlinops(network).to_scipy()

        def run(seed):
            count = []

            def apply(x):
                count.append(1)
                return H @ x

            operator = scipy.sparse.linalg.LinearOperator(H.shape, matvec=apply, dtype=H.dtype)
            start = np.random.default_rng(seed).standard_normal(H.shape[0]).astype(H.dtype)
            # SciPy's tolerance is relative to each eigenvalue, matfree's to the largest
            tol = RTOL * np.max(np.abs(network.values)) / np.min(np.abs(network.values))
            found = scipy.sparse.linalg.eigsh(operator, PAIRS, tol=tol, v0=start)
            return Answer(found[0], len(count))

        return run

    def eigenthings():
        from hessian_eigenthings import lanczos

        H, steps = of_eigenthings(network), min(5 * PAIRS, network.exact.shape[0])

        def run(seed):
            found = lanczos(H, k=PAIRS, max_iter=steps, reorthogonalize=True, seed=seed)
            return Answer(found.eigenvalues.numpy(), found.iterations)

        return run

    def pyhessian():
        theirs = OfPyHessian(network)

        def run(seed):
            (values, _), count = theirs("eigenvalues", seed, maxIter=100, tol=1e-3, top_n=PAIRS)
            return Answer(np.array(values), count)

        return run

    def error(values):
        found, exact = (np.sort(x)[::-1] for x in (values, network.values))
        return float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))

    work = network.work
    entries = [
        Entry("matfree", "eigsh, verified", ours(True), work),
        Entry("matfree", "eigsh, verify=False", ours(False), work),
        Entry("curvlinops-for-pytorch", "to_scipy, SciPy's eigsh", curvlinops, work),
        Entry("hessian-eigenthings", f"lanczos, {5 * PAIRS} steps", eigenthings, work),
        Entry("pyhessian", "eigenvalues, its defaults", pyhessian, work),
    ]
    title = f"ResNet-20: {PAIRS} eigenpairs, error relative to the largest"
    return contest.contest(report, title, entries, error, machine, rounds)


@contextlib.contextmanager
def _eig_restored():
    """Restore ``torch.eig``, which torch removed, for symmetric matrices as used by PyHessian."""

    def eig(T, eigenvectors):
        values, vectors = torch.linalg.eigh(T)
        return torch.stack((values, torch.zeros_like(values)), dim=1), vectors

    with mock.patch.object(torch, "eig", eig, create=True):
        yield


def densities(report, network, machine, rounds):
    """Densities from one probe; the error is that of the largest node."""
    steps = min(STEPS, network.exact.shape[0])

    def ours(mode):
        def prepare():
            H = _ours(network)

            def run(seed):
                options = {"num_probes": 1, "num_steps": steps, "reorthogonalize": mode}
                found = mf.spectral_density(H, seed=seed, **options)
                return Answer(_largest(found.nodes[0]), found.num_matvecs)

            return run

        return prepare

    def pyhessian(restored):
        def prepare():
            theirs = OfPyHessian(network)

            def run(seed):
                with _eig_restored() if restored else contextlib.nullcontext():
                    (nodes, _), count = theirs("density", seed, iter=steps, n_v=1)
                return Answer(_largest(nodes[0]), count)

            return run

        return prepare

    def eigenthings():
        from hessian_eigenthings import spectral_density

        H = of_eigenthings(network)

        def run(seed):
            found = spectral_density(H, num_runs=1, lanczos_steps=steps, seed=seed)
            return Answer(_largest(found.raw_eigenvalues[0].numpy()), steps)

        return run

    top = _largest(network.values)
    work = network.work
    entries = [
        Entry("matfree", "spectral_density", ours("full"), work),
        Entry("matfree", 'reorthogonalize="none"', ours("none"), work),
        Entry("pyhessian", "density, as released", pyhessian(False), work),
        Entry("pyhessian", "density, with torch.eig restored", pyhessian(True), work),
        Entry("hessian-eigenthings", "spectral_density", eigenthings, work),
    ]
    title = f"ResNet-20: density from 1 probe of {steps} steps, error of the largest node"
    return contest.contest(
        report, title, entries, lambda node: abs(node / top - 1), machine, rounds
    )


def _largest(values):
    values = np.asarray(values)
    return float(values[np.argmax(np.abs(values))])


def activations(report, network, machine, rounds, modules=nn.Conv2d):
    """Traces of the Hessian with respect to the output of every layer."""

    def operator(net, data):
        A = activation_hessian(net, CE, data, modules=modules, at="output")
        A.inspect()
        return A

    double = (network.data[0].double(), network.data[1])
    exact = operator(copy.deepcopy(network.net).double(), double).traces("exact")

    def prepare():
        A = operator(network.net, network.data)
        return lambda seed: Answer(A.traces("exact"), len(exact))

    def error(found):
        return max(abs(found[name].value / exact[name].value - 1) for name in exact)

    title = f"ResNet-20: traces at {len(exact)} activations; no other library provides them"
    entries = [Entry("matfree", 'activation_hessian, traces("exact")', prepare)]
    return contest.contest(report, title, entries, error, machine, rounds)
