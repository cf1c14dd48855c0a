"""Runs of every algorithm with a checkpoint, and the exception that interrupts them."""

import numpy as np

import matfree as mf
from matfree.arrays import to_host
from support.matrices import nn_spectrum, with_spectrum

N = 60
A = with_spectrum(nn_spectrum(N), seed=2)
PSD = A @ A

RUNS = {
    "hutchinson": lambda B, path: mf.trace(B, num_probes=20, block_size=3, checkpoint=path, seed=1),
    "tolerance": lambda B, path: mf.trace(
        B, rtol=0.3, max_matvecs=58, block_size=3, checkpoint=path, seed=1
    ),
    "exact": lambda B, path: mf.trace(
        B, rtol=1e-9, max_matvecs=N, block_size=7, checkpoint=path, seed=1
    ),
    "hutch++": lambda B, path: mf.trace(
        B, method="hutch++", max_matvecs=30, block_size=3, checkpoint=path, seed=1
    ),
    "xtrace": lambda B, path: mf.trace(
        B, method="xtrace", num_probes=12, block_size=3, checkpoint=path, seed=1
    ),
    "xnystrace": lambda B, path: mf.trace(
        B, method="xnystrace", num_probes=12, block_size=3, checkpoint=path, seed=1
    ),
    "deflated": lambda B, path: mf.trace(
        B, method="deflated", num_probes=12, eigenpairs=3, block_size=3, checkpoint=path, seed=1
    ),
    "diagonal": lambda B, path: mf.diagonal(
        B, num_probes=20, block_size=3, checkpoint=path, seed=1
    ),
    "exact diagonal": lambda B, path: mf.diagonal(
        B, rtol=1e-9, max_matvecs=N, block_size=7, checkpoint=path, seed=1
    ),
    "diag++": lambda B, path: mf.diagonal(
        B, method="diag++", max_matvecs=30, block_size=3, checkpoint=path, seed=1
    ),
    "xdiag": lambda B, path: mf.diagonal(
        B, method="xdiag", num_probes=12, block_size=3, checkpoint=path, seed=1
    ),
    "xnysdiag": lambda B, path: mf.diagonal(
        B, method="xnysdiag", num_probes=12, block_size=3, checkpoint=path, seed=1
    ),
    "deflated diagonal": lambda B, path: mf.diagonal(
        B, method="deflated", num_probes=12, eigenpairs=3, block_size=3, checkpoint=path, seed=1
    ),
    "trace of a function": lambda B, path: mf.trace_function(
        B, "exp", num_probes=6, num_steps=8, block_size=2, checkpoint=path, seed=1
    ),
    "trace of a complex function": lambda B, path: mf.trace_function(
        B, lambda x: 1 / (x - 1j), num_probes=6, num_steps=8, block_size=2, checkpoint=path, seed=1
    ),
    "exact trace of a function": lambda B, path: mf.trace_function(
        B, np.abs, rtol=0.0, num_steps=8, max_matvecs=N, block_size=9, checkpoint=path, seed=1
    ),
    "density": lambda B, path: mf.spectral_density(
        B, num_probes=4, num_steps=20, block_size=2, checkpoint=path, seed=1
    ),
    "density without the basis": lambda B, path: mf.spectral_density(
        B, num_probes=2, num_steps=20, reorthogonalize="none", checkpoint=path, seed=1
    ),
    "density in 16 bits": lambda B, path: mf.spectral_density(
        B, num_probes=4, num_steps=20, block_size=2, reorthogonalize="half", checkpoint=path, seed=1
    ),
    "density within a budget": lambda B, path: mf.spectral_density(
        B, num_probes=2, num_steps=20, block_size=1, memory=8 * N * 20, checkpoint=path, seed=1
    ),
    "deflated density": lambda B, path: mf.spectral_density(
        B, num_probes=2, num_steps=9, eigenpairs=3, measure_noise=True, checkpoint=path, seed=1
    ),
    "kernel polynomials": lambda B, path: mf.spectral_density(
        B, method="kpm", num_probes=4, num_steps=9, block_size=2, checkpoint=path, seed=1
    ),
    "eigenvalue count": lambda B, path: mf.eigenvalue_count(
        B, 0.01, np.inf, num_probes=6, num_steps=8, block_size=2, checkpoint=path, seed=1
    ),
    "frobenius norm": lambda B, path: mf.frobenius_norm(
        B, num_probes=20, block_size=3, checkpoint=path, seed=1
    ),
    "exact frobenius norm": lambda B, path: mf.frobenius_norm(
        B, max_matvecs=N, block_size=7, checkpoint=path, seed=1
    ),
    "eigsh": lambda B, path: mf.eigsh(B, 4, checkpoint=path, num_vectors=14, seed=1),
    "eigsh both ends": lambda B, path: mf.eigsh(
        B, 4, which="BE", rtol=1e-4, checkpoint=path, num_vectors=14, seed=1
    ),
    "power iteration": lambda B, path: mf.power_iteration(
        B, 2, rtol=1e-4, max_steps=400, checkpoint=path, seed=1
    ),
}


BLOCKS_BETWEEN_SAVES = {  # matmats; Lanczos saves every 8 steps, "kpm" after all of a block
    "trace of a function": 8,
    "trace of a complex function": 8,
    "eigenvalue count": 8,
    "density": 8,
    "density in 16 bits": 8,
    "density within a budget": 8,
    "density without the basis": 8,
    "deflated density": 12,
    "kernel polynomials": 20,
    "power iteration": 5,
}
SEMIDEFINITE = ("xnystrace", "xnysdiag")


class Killed(BaseException):
    """An exception that no library catches."""


def numbers(result):
    """The numbers of a result, without its cost."""
    if isinstance(result, mf.EigenResult):
        return [result.values, np.abs(to_host(result.vectors)), result.residuals]
    if isinstance(result, mf.SpectralDensity):
        return [np.concatenate(result.nodes), np.concatenate(result.weights)]
    return [np.asarray(result.value), np.asarray(result.stderr)]
