"""One operator under study: how thoroughly, with which seed, and what is known of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from matfree.arrays import epsilon, is_complex
from matfree.operators import Operator
from matfree.protocol import HostArray


@final
@dataclass(frozen=True)
class Settings:
    """How much to compute; None leaves a choice to the algorithm."""

    seed: int
    top: int = 2
    """Eigenpairs."""
    eigen_rtol: float = 1e-4
    """Residual to reach, relative to the norm."""
    num_probes: int | None = None
    """Of the trace and the diagonal."""
    rtol: float | None = None
    """Of the trace and the diagonal, instead of num_probes."""
    max_matvecs: int | None = None
    num_steps: int = 80
    density_probes: int = 8
    compare: bool = False
    """Whether other methods are shown beside Hutchinson's, for as many products."""
    progress: bool = False


@final
@dataclass(frozen=True)
class Exact:
    """The dense answers, for those who can afford them."""

    diagonal: HostArray
    """(n,)"""
    eigenvalues: HostArray | None
    """(n,) float64, ascending; None where the matrix is not Hermitian."""
    rounding: float
    """What an answer of ours may differ by through rounding alone: n eps ||A||_F."""

    @classmethod
    def of(cls, matrix: HostArray, *, hermitian: bool, eps: float) -> Exact:
        """The answers of NumPy, with ``eps`` of the precision the products are made in."""
        double = np.complex128 if np.iscomplexobj(matrix) else np.float64
        dense = matrix.astype(double)
        values = np.linalg.eigvalsh((dense + dense.conj().T) / 2) if hermitian else None
        size = len(dense) * eps * float(np.linalg.norm(dense))
        return cls(np.diag(dense).copy(), values, size)

    @property
    def trace(self) -> Any:
        """The sum of the diagonal, a float or a complex number."""
        return self.diagonal.sum().item()

    def largest(self, k: int) -> HostArray:
        """The k eigenvalues largest in magnitude, in that order."""
        if self.eigenvalues is None:
            raise ValueError("a matrix that is not Hermitian has no exact eigenvalues here.")
        order = np.argsort(-np.abs(self.eigenvalues), kind="stable")
        return self.eigenvalues[order[:k]]

    def inside(self, low: Any, high: Any, value: Any) -> bool:
        """Whether an interval holds the value, give or take rounding."""
        return bool(low - self.rounding <= np.real(value) <= high + self.rounding)


@final
@dataclass(frozen=True)
class Study:
    """An operator, what to call it, and how to look at it."""

    operator: Operator
    letter: str
    """What code and formulas call it: A, H."""
    prefix: str
    """What the names of its files begin with."""
    settings: Settings
    hermitian: bool = True
    exact: Exact | None = None

    @property
    def kind(self) -> str:
        """The probes of least variance: signs, or 4th roots of unity for a complex operator."""
        return "z4" if is_complex(self.operator.space.xp, self.operator.dtype) else "rademacher"

    @property
    def probe_entries(self) -> str:
        """What the probes' entries are, in words."""
        return "random signs" if self.kind == "rademacher" else "random 4th roots of unity"

    @property
    def adjoint(self) -> str:
        """The sign that turns a column into the row of its (conjugated) entries."""
        return "ᵀ" if self.kind == "rademacher" else "ᴴ"

    @property
    def eps(self) -> float:
        """The relative spacing of the operator's numbers."""
        return epsilon(self.operator.space.xp, self.operator.dtype)

    def with_exact(self, matrix: HostArray) -> Study:
        """The same study with the dense answers of ``matrix`` beside it."""
        exact = Exact.of(matrix, hermitian=self.hermitian, eps=self.eps)
        return dataclasses.replace(self, exact=exact)

    def sampling(self) -> dict[str, Any]:
        """The arguments of the trace and the diagonal that were asked for."""
        s = self.settings
        chosen = {"num_probes": s.num_probes, "rtol": s.rtol, "max_matvecs": s.max_matvecs}
        arguments: dict[str, Any] = {
            name: value for name, value in chosen.items() if value is not None
        }
        if self.kind != "rademacher":
            arguments["kind"] = self.kind
        return {**arguments, "seed": s.seed}

    def rivals(self, *methods: str, num_matvecs: int) -> list[tuple[str, dict[str, Any]]]:
        """Other methods to compare with, and their arguments for as many products."""
        n = self.operator.shape[0]
        if not self.settings.compare or not self.hermitian or num_matvecs >= n:
            return []
        arguments = {"max_matvecs": num_matvecs, "seed": self.settings.seed}
        return [(method, {"method": method, **arguments}) for method in methods]

    def call(self, function: str, *positional: object, **arguments: object) -> str:
        """A line of Python that repeats a computation."""
        said = [repr(value) for value in positional]
        said += [f"{name}={value!r}" for name, value in arguments.items()]
        return f"mf.{function}({', '.join([self.letter, *said])})"
