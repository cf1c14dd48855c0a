"""Randomized, matrix-free linear algebra with error estimates, on NumPy, SciPy, CuPy and PyTorch.

Every algorithm accepts what :func:`aslinearoperator` accepts: NumPy arrays, SciPy and CuPy
matrices, torch tensors, curvature matrices of neural networks, and functions x -> A @ x.
"""

from pathlib import Path

from matfree import _distribution
from matfree.algorithms.eigen.eigsh import eigsh
from matfree.algorithms.eigen.extremes import condition_number, spectral_norm
from matfree.algorithms.eigen.power_iteration import power_iteration
from matfree.algorithms.eigen.svds import svds
from matfree.algorithms.functions.apply_function import apply_function
from matfree.algorithms.functions.matrix_function import matrix_function
from matfree.algorithms.krylov.lanczos import lanczos
from matfree.algorithms.krylov.ritz_vectors import ritz_vectors
from matfree.algorithms.low_rank.approximation import LowRank
from matfree.algorithms.low_rank.low_rank import low_rank
from matfree.algorithms.solving.inverse import InverseOperator, inverse
from matfree.algorithms.solving.solve import solve
from matfree.algorithms.spectra.eigenvalue_count import eigenvalue_count
from matfree.algorithms.spectra.norms import frobenius_norm, schatten_norm
from matfree.algorithms.spectra.spectral_density import spectral_density
from matfree.algorithms.spectra.trace_function import logdet, trace_function
from matfree.algorithms.traces.block_diagonals import block_diagonals
from matfree.algorithms.traces.block_traces import block_traces
from matfree.algorithms.traces.diagonal import diagonal
from matfree.algorithms.traces.trace import trace
from matfree.checks import OperatorReport, check_operator
from matfree.errors import (
    ConvergenceWarning,
    Interrupted,
    MatfreeError,
    NoAdjointError,
    NonFiniteError,
    NotHermitianError,
    OperatorError,
    SolveError,
)
from matfree.operators import (
    DenseOperator,
    FunctionOperator,
    Operator,
    SlabOperator,
    aslinearoperator,
)
from matfree.protocol import LinearOperator
from matfree.results import (
    BoundedNumber,
    EigenResult,
    Estimate,
    FunctionValues,
    SingularResult,
    Solution,
    SpectralDensity,
    Tridiagonal,
    load,
)
from matfree.spaces import ArraySpace, RowSpace, VectorSpace, space_like

_distribution.refuse_mixture(Path(__file__).parent)

__version__ = "0.1.0"

__all__ = [
    "ArraySpace",
    "BoundedNumber",
    "ConvergenceWarning",
    "DenseOperator",
    "EigenResult",
    "Estimate",
    "FunctionOperator",
    "FunctionValues",
    "Interrupted",
    "InverseOperator",
    "LinearOperator",
    "LowRank",
    "MatfreeError",
    "NoAdjointError",
    "NonFiniteError",
    "NotHermitianError",
    "Operator",
    "OperatorError",
    "OperatorReport",
    "RowSpace",
    "SingularResult",
    "SlabOperator",
    "Solution",
    "SolveError",
    "SpectralDensity",
    "Tridiagonal",
    "VectorSpace",
    "apply_function",
    "aslinearoperator",
    "block_diagonals",
    "block_traces",
    "check_operator",
    "condition_number",
    "diagonal",
    "eigenvalue_count",
    "eigsh",
    "frobenius_norm",
    "inverse",
    "lanczos",
    "load",
    "logdet",
    "low_rank",
    "matrix_function",
    "power_iteration",
    "ritz_vectors",
    "schatten_norm",
    "solve",
    "space_like",
    "spectral_density",
    "spectral_norm",
    "svds",
    "trace",
    "trace_function",
]
