"""The problems of the accuracy tables, with their exact answers."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.sparse as sp
from support.matrices import (
    laplacian_2d,
    laplacian_2d_spectrum,
    nn_spectrum,
    wishart,
    with_spectrum,
)

SEED = 42  # of all Haar bases and Wishart samples


@dataclass(frozen=True)
class Problem:
    """A symmetric matrix with its exact trace and diagonal."""

    name: str
    A: object
    trace: float
    diagonal: np.ndarray


def spectra():
    """Six spectra of 1000 eigenvalues, from flat to steep, from the paper on XTrace."""
    i = np.arange(1.0, 1001)
    return {
        "flat": np.linspace(1, 3, 1000),
        "poly": i**-2,
        "slowexp": 0.9 ** (i - 1),
        "fastexp": 0.7 ** (i - 1),
        "smallstep": np.repeat([1.0, 1e-3], [50, 950]),
        "bigstep": np.repeat([1.0, 1e-8], [50, 950]),
    }


@cache
def problem(name):
    """The problem with this name; all matrices but the grid Laplacians are dense."""
    if name == "lap2d":
        return _known(name, laplacian_2d(40))
    if name == "lap2d + ramp":  # the diagonal of the Laplacian is constant
        return _known(name, laplacian_2d(40) + sp.diags_array(np.linspace(0, 4, 1600)))
    if name == "wishart":
        return _known(name, wishart(1000, 2000, seed=SEED))
    spectrum = nn_spectrum(2000) if name == "nn" else spectra()[name]
    return _known(name, with_spectrum(spectrum, seed=SEED), trace=spectrum.sum())


def spectrum(name):
    """All eigenvalues in ascending order."""
    if name == "lap2d":
        return laplacian_2d_spectrum(40)
    if name == "wishart":
        return np.linalg.eigvalsh(problem(name).A)
    return np.sort(nn_spectrum(2000) if name == "nn" else spectra()[name])


def hypercube_spectrum(dimension):
    """The adjacency spectrum of a hypercube: dimension - 2 j, binom(dimension, j) times."""
    ones = np.array([value.bit_count() for value in range(2**dimension)])
    return dimension - 2.0 * ones


def _known(name, A, trace=None):
    A = A.tocsr() if sp.issparse(A) else A
    diagonal = A.diagonal()
    return Problem(name, A, float(diagonal.sum()) if trace is None else float(trace), diagonal)
