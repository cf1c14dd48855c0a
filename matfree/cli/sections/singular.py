"""The section on the singular values and the Frobenius norm of a rectangular matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import matfree as mf
from matfree.cli.report.cells import UNCONVERGED
from matfree.cli.report.document import Column, Figure, Finding, Measured, Saveable, Table
from matfree.cli.sections.base import StudySection
from matfree.cli.study import Study
from matfree.digits import number, supported_interval


@final
class SingularSection(StudySection):
    """The largest singular values, with guaranteed error bounds, and the Frobenius norm."""

    key = "singular_values"
    title = "Largest singular values, by Lanczos, and the Frobenius norm"

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        settings = study.settings
        self.triplets = mf.svds(
            study.operator,
            settings.top,
            rtol=settings.eigen_rtol,
            seed=settings.seed,
            progress=settings.progress,
        )
        self.norm = mf.frobenius_norm(study.operator, **study.sampling())
        exact = None if study.exact is None else study.exact.singular_values
        self.exact = None if exact is None else exact[: settings.top].tolist()

    def text(self) -> tuple[str, ...]:
        """The methods, and whether they converged."""
        A, adjoint = self.study.symbol, self.study.adjoint
        methods = (
            f"Lanczos steps with {A}{adjoint}{A}, or with {A}{A}{adjoint} if that is smaller, find "
            "the largest singular values; values and residuals are computed from the matrix "
            f"itself. {A} always has a singular value within the residual of each of them. The "
            f"Frobenius norm is the root of the mean of ‖{A} w‖² over {self.study.probe_entries}.",
        )
        missing = [str(j + 1) for j, done in enumerate(self.triplets.converged) if not done]
        if not missing:
            return methods
        return (*methods, f"Not converged: singular value {', '.join(missing)}.")

    def code(self) -> str:
        """The calls of ``svds`` and ``frobenius_norm``."""
        settings, call = self.study.settings, self.study.call
        options = {"rtol": settings.eigen_rtol, "seed": settings.seed}
        norm = call("frobenius_norm", **self.study.sampling())
        return f"{call('svds', settings.top, **options)}\n{norm}"

    def tables(self) -> tuple[Table, ...]:
        """The singular values, with their error bounds."""
        triplets = self.triplets
        rows = tuple(
            (j, float(value), radius, bool(done))
            for j, (value, radius, done) in enumerate(
                zip(triplets.values, self._radii, triplets.converged, strict=True), start=1
            )
        )
        columns = (
            Column("number"),
            Column("singular value", 10),
            Column("error bound", 2),
            Column("converged", remark=UNCONVERGED),
        )
        return (Table(f"After {triplets.num_matvecs} matvecs:", columns, rows),)

    def figures(self) -> tuple[Figure, ...]:
        """None."""
        return ()

    def findings(self) -> tuple[Finding, ...]:
        """One row for each singular value, and one for the norm."""
        exact, rows = self.study.exact, []
        for j, (value, radius) in enumerate(zip(self.triplets.values, self._radii, strict=True)):
            known = None if self.exact is None else self.exact[j]
            inside = exact and exact.inside(value - radius, value + radius, known)
            done = "" if self.triplets.converged[j] else ": NOT CONVERGED"
            rows.append(
                Finding(
                    f"singular value {j + 1}{done}",
                    float(value),
                    f"± {number(radius, 2)}, guaranteed",
                    known,
                    inside,
                    self.triplets.num_matvecs if j == 0 else None,
                )
            )
        low, high = self.norm.interval()
        size = None if exact is None else exact.frobenius_norm
        rows.append(
            Finding(
                "Frobenius norm",
                Measured(self.norm.value, self.norm.half_width()),
                f"{supported_interval(low, high)}, 95 %" if self.norm.num_probes else "exact",
                size,
                exact and exact.inside(low, high, size),
                self.norm.num_matvecs,
            )
        )
        return tuple(rows)

    def values(self) -> dict[str, Any]:
        """The singular values and the norm, with their intervals."""
        values: dict[str, Any] = {
            "values": self.triplets.values.tolist(),
            "residuals": self._radii,
            "values_converged": self.triplets.converged.tolist(),
            "frobenius_norm": self.norm.value,
            "frobenius_norm_interval": list(self.norm.interval()),
            "converged": self.norm.converged,
            "num_matvecs": self.triplets.num_matvecs + self.norm.num_matvecs,
            "seed": self.norm.seed,
        }
        if self.exact is not None:
            values["exact"] = self.exact
        return values

    def results(self) -> Mapping[str, Saveable]:
        """The triplets and the norm."""
        return {"singular_values": self.triplets, "frobenius_norm": self.norm}

    @property
    def _radii(self) -> list[float]:
        """The residuals: A has a singular value within each of them."""
        return [float(r * self.triplets.norm) for r in self.triplets.residuals]
