"""The results of algorithms: frozen records that can be printed, saved, loaded and merged.

The modules may import ``matfree.quadratures``, ``plotting``, ``arguments``, ``arrays``,
``digits``, ``progress``, ``protocol`` and ``errors``, but neither vector spaces nor operators.
"""

from matfree.results.density import SpectralDensity
from matfree.results.eigen import EigenResult
from matfree.results.estimate import Estimate
from matfree.results.reasons import StoppingReason
from matfree.results.record import Record, load
from matfree.results.singular import SingularResult
from matfree.results.solving.bounded_number import BoundedNumber
from matfree.results.solving.function_values import FunctionValues
from matfree.results.solving.solution import Solution
from matfree.results.tridiagonal import Quadrature, Tridiagonal

__all__ = [
    "BoundedNumber",
    "EigenResult",
    "Estimate",
    "FunctionValues",
    "Quadrature",
    "Record",
    "SingularResult",
    "Solution",
    "SpectralDensity",
    "StoppingReason",
    "Tridiagonal",
    "load",
]
