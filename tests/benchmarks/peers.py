"""The same work by several libraries: ``make bench-peers``, in a separate environment.

``MATFREE_BENCH=quick make bench-peers`` runs tiny problems, to test every row.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import contest
import peers_matrices
import peers_pairs
import peers_sums
import roofline

PEERS = ("imate", "scikit-primate", "skerch", "traceax", "pyhessian", "hessian-eigenthings")
PEERS += ("curvlinops-for-pytorch", "scipy", "torch", "jax", "numba")
PREFACE = """
## Comparison with other libraries

Every library does the same work, as installed from PyPI, in alternation in one process. The table
lists the minimum wall time of the rounds, the root mean square of the relative errors over the
rounds (with different seeds), and the largest growth of the resident memory. Errors are relative
to exact answers, from known spectra or from double precision: compare times only together with
errors. "/ best of ours" is the time divided by that of our fastest row; below 1 the other library
is faster.

Roofline: the bytes are the minimum that a one-pass implementation would move for this work with
the library's own block size (the matrix once per block and step, the vectors once), and the
operations are counted from the formulas. The fractions are relative to speeds measured in this
process on this machine: a copy of a large array (bytes read and written) and a product of large
matrices. matfree for JAX has the import name of this library and cannot be installed in the same
environment, so it is missing.
"""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the problems and the numbers of rounds."""

    side: int = 100
    grid: int = 150
    dense: int = 4000
    rounds: int = 3
    trained: bool = True
    network_rounds: int = 2
    copied: int = roofline.LENGTH
    multiplied: int = roofline.ORDER


QUICK = Sizes(
    side=12,
    grid=20,
    dense=300,
    rounds=1,
    trained=False,
    network_rounds=1,
    copied=1 << 18,
    multiplied=256,
)


def chosen():
    return QUICK if os.environ.get("MATFREE_BENCH") == "quick" else Sizes()


def run(report, sizes=None):
    """Write all tables and return the runs."""
    sizes = sizes or chosen()
    report.say(PREFACE)
    report.say(f"Versions: {contest.versions(PEERS)}.\n")
    machines = [_machine(report, number, sizes) for number in (1, 2)]
    return sums(report, sizes, machines) + hessians(report, sizes)


def sums(report, sizes, machines):
    problem = peers_matrices.laplacian_3d(sizes.side)
    runs = []
    for machine in machines:
        with contest.threads(machine.threads):
            for name in peers_sums.FUNCTIONS:
                runs += peers_sums.quadrature(report, problem, name, machine, sizes.rounds)
    with contest.threads(1):
        runs += peers_sums.hutchinson(report, problem, machines[0], sizes.rounds)
        dense = peers_matrices.decaying(sizes.dense)
        runs += peers_sums.xtrace(report, dense, machines[0], sizes.rounds)
        runs += peers_pairs.laplacian(report, sizes.grid, machines[0], sizes.rounds)
    return runs


def hessians(report, sizes):
    """The tables for the trained network, or for a tiny one in a quick run."""
    try:
        import peers_networks
        import peers_spectra
        import torch
        from support import resnet
    except ImportError as missing:
        report.say(f"\nThe tables for networks need torch: {missing}.")
        return []
    if sizes.trained and not resnet.present():
        report.say("\nThe trained ResNet-20 is not available; its rows were skipped.")
        return []
    torch.manual_seed(0)
    with contest.threads(1):
        machine, rounds = _machine(report, 1, sizes, np.float32), sizes.network_rounds
        network = peers_networks.trained() if sizes.trained else peers_networks.tiny()
        runs = peers_networks.one_matvec(report, network, machine, sizes.rounds)
        runs += peers_networks.traces(report, network, machine, rounds)
        runs += peers_spectra.pairs(report, network, machine, rounds)
        runs += peers_spectra.densities(report, network, machine, rounds)
        modules = torch.nn.Conv2d if sizes.trained else torch.nn.Linear
        return runs + peers_spectra.activations(report, network, machine, rounds, modules)


def _machine(report, number, sizes, dtype=np.float64):
    with contest.threads(number):
        machine = roofline.measured(number, dtype, sizes.copied, sizes.multiplied)
    report.say(f"\nMeasured in {np.dtype(dtype).name} with {machine}.")
    return machine
