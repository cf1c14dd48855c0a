"""Matrices with known spectra for the comparison with other libraries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse

SHIFT = 0.1


@dataclass(frozen=True)
class Problem:
    """A matrix with its exact spectrum."""

    matrix: Any
    spectrum: np.ndarray

    @property
    def size(self):
        return len(self.spectrum)

    def sum(self, f):
        return float(np.sum(f(self.spectrum)))


def laplacian_3d(side):
    """The seven-point Laplacian of a cubic grid, Dirichlet boundary, shifted."""
    off = -np.ones(side - 1)
    line = scipy.sparse.diags_array([off, 2 * np.ones(side), off], offsets=[-1, 0, 1])
    one = scipy.sparse.eye_array(side)
    plane = scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line)
    matrix = scipy.sparse.kron(plane, one) + scipy.sparse.kron(
        scipy.sparse.eye_array(side**2), line
    )
    matrix = scipy.sparse.csr_array(matrix + SHIFT * scipy.sparse.eye_array(side**3))
    values = 2 - 2 * np.cos(np.arange(1, side + 1) * np.pi / (side + 1))
    spectrum = values[:, None, None] + values[:, None] + values + SHIFT
    return Problem(_narrow(matrix), spectrum.ravel())


def with_potential(problem):
    """The same matrix with a varying diagonal, and its exact trace."""
    ramp = scipy.sparse.diags_array(np.linspace(0, 4, problem.size))
    matrix = scipy.sparse.csr_array(problem.matrix + ramp)
    return _narrow(matrix), float(matrix.diagonal().sum())


def decaying(size):
    """A dense matrix with eigenvalues i^-2 and eigenvectors from cosines and random signs."""
    spectrum = np.arange(1.0, size + 1) ** -2
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=size)
    cosines = signs[:, None] * scipy.fft.idct(np.eye(size), axis=0, norm="ortho")
    return Problem((cosines * spectrum) @ cosines.T, spectrum)


def _narrow(matrix):
    """Remove stored zeros and use 32-bit indices, which every library accepts."""
    matrix.eliminate_zeros()
    matrix.indices, matrix.indptr = (x.astype(np.int32) for x in (matrix.indices, matrix.indptr))
    return matrix
