"""Studies: the common input of all sections of a report.

A *study* is one operator together with the settings with which a command of ``matfree`` runs its
algorithms on it: trace, diagonal, eigenpairs and spectral density. Each section of the report
describes one algorithm. For a small dense matrix, the exact answers are reported as well.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from matfree.arrays import epsilon, is_complex
from matfree.operators import Operator
from matfree.protocol import HostArray
from matfree.results import EigenResult


@final
@dataclass(frozen=True)
class StudySettings:
    """The settings of the algorithms; None stands for the default of the algorithm."""

    seed: int
    top: int = 2
    """The number of eigenpairs, those with the largest absolute eigenvalues."""
    eigen_rtol: float = 1e-4
    """The tolerance of their residuals, relative to the norm."""
    num_probes: int | None = None
    """The number of probes for the trace and for the diagonal."""
    rtol: float | None = None
    """The tolerance for the trace and the diagonal, as an alternative to ``num_probes``."""
    max_matvecs: int | None = None
    """The budget for ``rtol``."""
    num_steps: int = 80
    """The number of Lanczos steps of the spectral density."""
    density_probes: int = 8
    """The number of probes of the spectral density."""
    compare: bool = False
    """Whether Hutchinson's estimator is compared with other methods at equal cost."""
    progress: bool = False


@final
@dataclass(frozen=True)
class ExactAnswers:
    """The exact answers, computed from the dense matrix."""

    diagonal: HostArray
    """(n,)"""
    eigenvalues: HostArray | None
    """(n,) float64, ascending; None if the matrix is not Hermitian."""
    rounding: float
    """A bound on the rounding error of an estimate: n eps ||A||_F."""
    own_rounding: float
    """The same bound for the exact answers, which are computed in double precision."""
    frobenius_norm: float
    singular_values: HostArray | None = None
    """(min(m, n),) float64, descending; None for a square matrix."""

    @classmethod
    def of(cls, matrix: HostArray, *, hermitian: bool, eps: float) -> ExactAnswers:
        """Compute the answers with NumPy; ``eps`` is the machine epsilon of the matvecs."""
        double = np.complex128 if np.iscomplexobj(matrix) else np.float64
        dense = matrix.astype(double)
        values = np.linalg.eigvalsh((dense + dense.conj().T) / 2) if hermitian else None
        norm, double_eps = float(np.linalg.norm(dense)), float(np.finfo(np.float64).eps)
        size = max(dense.shape) * norm
        square = dense.shape[0] == dense.shape[1]
        singular = None if square else np.linalg.svd(dense, compute_uv=False)
        return cls(np.diag(dense).copy(), values, size * eps, size * double_eps, norm, singular)

    @property
    def trace(self) -> Any:
        """The sum of the diagonal, a float or a complex number."""
        return self.diagonal.sum().item()

    def largest(self, k: int) -> HostArray:
        """The k eigenvalues largest in magnitude, in that order."""
        if self.eigenvalues is None:
            raise ValueError(
                "the matrix is not Hermitian, so its eigenvalues were not computed; ask for its "
                "trace and diagonal only."
            )
        order = np.argsort(-np.abs(self.eigenvalues), kind="stable")
        return self.eigenvalues[order[:k]]

    def inside(self, low: Any, high: Any, value: Any) -> bool:
        """Whether an interval contains the value, up to rounding."""
        return bool(low - self.rounding <= np.real(value) <= high + self.rounding)


@final
@dataclass(frozen=True)
class Study:
    """An operator, its name in the report, and the settings of the algorithms."""

    operator: Operator
    symbol: str
    """Its name in code and formulas: A, H."""
    file_prefix: str
    """The beginning of the names of its files."""
    settings: StudySettings
    hermitian: bool = True
    exact: ExactAnswers | None = None
    pairs: EigenResult | None = None
    """Eigenpairs that were computed before, if all of them have converged."""

    @property
    def kind(self) -> str:
        """The probes with the smallest variance: random signs, or 4th roots of unity if complex."""
        return "z4" if is_complex(self.operator.space.xp, self.operator.dtype) else "rademacher"

    @property
    def probe_entries(self) -> str:
        """The entries of the probes, in words."""
        return "random signs" if self.kind == "rademacher" else "random 4th roots of unity"

    @property
    def adjoint(self) -> str:
        """The symbol of the transpose, or of the conjugate transpose for a complex operator."""
        return "ᵀ" if self.kind == "rademacher" else "ᴴ"

    @property
    def conjugate_probe(self) -> str:
        """The symbol of the conjugate of a probe w."""
        return "w" if self.kind == "rademacher" else "w̄"

    @property
    def eps(self) -> float:
        """The machine epsilon of the operator's data type."""
        return epsilon(self.operator.space.xp, self.operator.dtype)

    def with_exact(self, matrix: HostArray) -> Study:
        """The same study with the exact answers for ``matrix``."""
        exact = ExactAnswers.of(matrix, hermitian=self.hermitian, eps=self.eps)
        return dataclasses.replace(self, exact=exact)

    def sampling(self) -> dict[str, Any]:
        """The arguments of ``trace`` and ``diagonal``."""
        s = self.settings
        chosen = {"num_probes": s.num_probes, "rtol": s.rtol, "max_matvecs": s.max_matvecs}
        arguments: dict[str, Any] = {
            name: value for name, value in chosen.items() if value is not None
        }
        if self.kind != "rademacher":
            arguments["kind"] = self.kind
        return {**arguments, "seed": s.seed}

    def comparisons(self, *methods: str, num_matvecs: int) -> list[dict[str, Any]]:
        """The arguments of other methods for as many matvecs; none if no comparison is made."""
        n = self.operator.shape[0]
        if not self.settings.compare or not self.hermitian or num_matvecs >= n:
            return []
        arguments = {"max_matvecs": num_matvecs, "seed": self.settings.seed}
        return [{"method": method, **arguments} for method in methods]

    def call(self, function: str, *positional: object, **arguments: object) -> str:
        """The line of Python that calls ``mf.function`` with these arguments on the operator."""
        words = [repr(value) for value in positional]
        if isinstance(arguments.get("eigenpairs"), EigenResult):
            arguments["eigenpairs"] = _Variable("pairs")
        words += [f"{name}={value!r}" for name, value in arguments.items()]
        return f"mf.{function}({', '.join([self.symbol, *words])})"


class _Variable(str):
    """The name of a variable in a line of Python."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
