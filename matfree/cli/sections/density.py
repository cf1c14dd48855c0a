"""The section on the spectral density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.cli.report.document import Cell, Column, Figure, Finding, Measured, Saveable, Table
from matfree.cli.sections.base import StudySection
from matfree.cli.sections.density_comparison import (
    exact_negative_share,
    interval_contains,
    wasserstein_distance,
)
from matfree.cli.study import Study
from matfree.digits import number, supported_interval
from matfree.protocol import HostArray
from matfree.results import Estimate, SpectralDensity

_MAX_ISOLATED = 8  # rows of the table of isolated eigenvalues


@final
class DensitySection(StudySection):
    """The spectral density, with isolated eigenvalues and functions of the spectrum."""

    key = "spectral_density"
    title = "Spectral density, by stochastic Lanczos quadrature"

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.density = self._density(study.settings.num_steps)
        self.negative = self.density.mass_below(-self.density.noise_floor)
        self.eigenvalues = None if study.exact is None else study.exact.eigenvalues

    def text(self) -> tuple[str, ...]:
        """Stochastic Lanczos quadrature."""
        A, settings = self.study.symbol, self.study.settings
        method = (
            f"From a random vector, {settings.num_steps} steps of Lanczos compute a small "
            "tridiagonal matrix. Its eigenvalues are the nodes of a Gauss quadrature for the "
            f"spectral measure of {A} and this vector, and the squared first components of its "
            f"eigenvectors are the weights. The mean over {settings.density_probes} random vectors "
            "estimates the distribution of the eigenvalues."
        )
        if self.study.pairs is None:
            return (method,)
        known = (
            "The eigenpairs that were computed above are projected out, and each of them counts as "
            "exactly one eigenvalue; the random vectors only sample what is left."
        )
        return (method, known)

    def code(self) -> str:
        """The call of ``spectral_density``."""
        return self.study.call("spectral_density", **self._arguments(self.study.settings.num_steps))

    def tables(self) -> tuple[Table, ...]:
        """The convergence, the isolated eigenvalues, and functions of the spectrum."""
        convergence = () if self.eigenvalues is None else (self._convergence(self.eigenvalues),)
        return (*convergence, *self._isolated(), self._functions())

    def figures(self) -> tuple[Figure, ...]:
        """The smoothed density and, if the exact one is known, the distribution function."""
        density, exact = self.density, self.eigenvalues
        least, largest = density.support
        curve = self.figure(
            "density",
            "Spectral density",
            "On the logarithmic axis single eigenvalues are visible next to the bulk; it begins at "
            "a tenth of the peak of one eigenvalue. The numbers above the stems are estimated "
            "numbers of eigenvalues. The band shows the sampling error.",
            f"The density of the eigenvalues on a logarithmic axis, from {number(least, 4)} to "
            f"{number(largest, 4)}: a bulk with the median {number(density.quantile(0.5), 3)}, and "
            f"{len(self._atoms)} isolated eigenvalues as stems"
            + ("." if exact is None else "; the exact density is a dashed line close to it."),
            lambda ax: plotting.plot_density(density, exact=exact, ax=ax),
        )
        if exact is None:
            return (curve,)
        distribution = self.figure(
            "cdf",
            "Distribution of the eigenvalues",
            "The distribution function is not smoothed. The shaded area is the Wasserstein "
            "distance that the table lists.",
            "The estimated and the exact distribution function, two staircases from 0 to 1 that "
            "nearly coincide.",
            lambda ax: plotting.plot_cdf(density, exact=exact, ax=ax),
        )
        return (curve, distribution)

    def findings(self) -> tuple[Finding, ...]:
        """The fraction of negative eigenvalues, and a bound on the smallest eigenvalue."""
        exact, (least, _) = self.study.exact, self.density.support
        share = Finding(
            "fraction of negative eigenvalues",
            Measured(self.negative.value, self.negative.half_width()),
            f"{supported_interval(*self.negative.interval())}, 95 %",
            num_matvecs=self.density.num_matvecs,
        )
        bottom = Finding("smallest eigenvalue", least, "upper bound, guaranteed")
        if self.eigenvalues is None or exact is None:
            return share, bottom
        part = exact_negative_share(self.density, exact)
        low = float(self.eigenvalues[0])
        return (
            replace(
                share, exact=part, inside=interval_contains(self.negative, self.density, exact)
            ),
            replace(bottom, exact=low, inside=exact.inside(-math.inf, least, low)),
        )

    def values(self) -> dict[str, Any]:
        """The numbers of the tables."""
        density, negative = self.density, self.negative
        mean, negative_sum = density.moment(1), density.trace_function(negative_part)
        values: dict[str, Any] = {
            "support": list(density.support),
            "mean": mean.value,
            "mean_interval": list(mean.interval()),
            "negative_fraction": negative.value,
            "negative_interval": list(negative.interval()),
            "negative_sum": negative_sum.value,
            "negative_sum_interval": list(negative_sum.interval()),
            "noise_floor": density.noise_floor,
            "num_steps": density.num_steps,
            "num_probes": density.num_probes,
            "num_matvecs": density.num_matvecs,
            "seed": density.seed,
        }
        if self.study.exact is not None and (exact := self.eigenvalues) is not None:
            values |= {
                "wasserstein_over_range": wasserstein_distance(density, exact),
                "exact_negative_fraction": exact_negative_share(density, self.study.exact),
                "exact_negative_sum": float(negative_part(exact).sum()),
            }
        return values

    def results(self) -> Mapping[str, Saveable]:
        """The density."""
        return {"density": self.density}

    def _arguments(self, num_steps: int) -> dict[str, Any]:
        settings, kind = self.study.settings, self.study.kind
        return {
            "num_steps": num_steps,
            "num_probes": settings.density_probes,
            **({} if self.study.pairs is None else {"eigenpairs": self.study.pairs}),
            **({} if kind == "rademacher" else {"kind": kind}),
            "seed": settings.seed,
        }

    def _density(self, num_steps: int) -> SpectralDensity:
        settings = self.study.settings
        progress = settings.progress and num_steps == settings.num_steps
        # The progress bar is updated after every block of probes, so a block is a single probe.
        block = 1 if progress else None
        arguments = self._arguments(num_steps)
        return mf.spectral_density(
            self.study.operator, block_size=block, progress=progress, **arguments
        )

    def _convergence(self, exact: HostArray) -> Table:
        """The distance to the exact spectrum by number of steps, with the same probes."""
        last = self.study.settings.num_steps
        rows: list[tuple[Cell, ...]] = []
        for num_steps in [m for m in (5, 10, 20, 40) if m < last] + [last]:
            density = self._density(num_steps)
            count, distance = sum(map(len, density.nodes)), wasserstein_distance(density, exact)
            rows.append((num_steps, count, *density.support, distance))
        rows.append(("exact", exact.size, float(exact[0]), float(exact[-1]), 0.0))
        titles = ("steps", "nodes", "smallest node", "largest node", "W1 / range")
        return Table(
            "Convergence by number of steps: the ends of the spectrum converge first. The "
            "Wasserstein distance W1 to the exact spectrum decreases as 1 / steps, until the "
            "sampling error of the probes dominates:",
            tuple(Column(title, 3 if title.startswith("W1") else 6) for title in titles),
            tuple(rows),
        )

    @property
    def _width(self) -> float:
        """The smoothing width: the grid begins five of them below the smallest node."""
        return (self.density.support[0] - float(self.density.grid()[0])) / 5

    @property
    def _atoms(self) -> list[plotting.Atom]:
        """The isolated eigenvalues that are largest in magnitude."""
        atoms = plotting.isolated(self.density, self._width)
        return sorted(atoms, key=lambda atom: -abs(atom.position))[:_MAX_ISOLATED]

    def _isolated(self) -> tuple[Table, ...]:
        """The isolated eigenvalues, with the number of eigenvalues at each of them."""
        density, exact = self.density, self.eigenvalues
        atoms, sigma = self._atoms, self._width
        if not atoms:
            return ()
        columns = [Column("eigenvalue", 8), Column("number", 3), Column("95 % interval")]
        if exact is not None:
            columns.append(Column("exact"))
        rows: list[tuple[Cell, ...]] = []
        for position, _ in atoms:
            low, high = position - 2 * sigma, position + 2 * sigma
            count = density.count(low, high)
            number_of = Measured(count.value, count.half_width())
            row = (position, number_of, supported_interval(*count.interval()))
            known = () if exact is None else (int(np.sum((low <= exact) & (exact <= high))),)
            rows.append((*row, *known))
        caption = (
            "Isolated eigenvalues: Lanczos computes their positions to many digits, but a random "
            "vector gives each of them a random weight, so that the number of eigenvalues at a "
            f"position is only known to about ± {100 * (2 / density.num_probes) ** 0.5:.0f} % "
            f"from {density.num_probes} probes, unless their eigenvectors are known:"
        )
        return (Table(caption, tuple(columns), tuple(rows)),)

    def _functions(self) -> Table:
        """Functions of the spectrum from the quadratures, and from the exact eigenvalues."""
        density, negative, exact = self.density, self.negative, self.eigenvalues
        first, second = density.moment(1), density.moment(2)
        negative_sum = density.trace_function(negative_part)
        rows: list[tuple[Cell, ...]] = [
            ("mean", *measured(first)),
            ("mean square", *measured(second)),
            ("median", density.quantile(0.5), ""),
            ("sum of the negative ones", *measured(negative_sum)),
            ("fraction that is negative", *measured(negative)),
        ]
        columns = [Column("of the eigenvalues"), Column("estimate"), Column("interval")]
        if self.study.exact is not None and exact is not None:
            answers = (
                exact.mean(),
                np.mean(exact**2),
                np.median(exact),
                negative_part(exact).sum(),
                exact_negative_share(density, self.study.exact),
            )
            rows = [(*row, float(answer)) for row, answer in zip(rows, answers, strict=True)]
            columns.append(Column("exact"))
        return Table(
            "Computed from the same quadratures, without further matvecs. The 95 % intervals cover "
            "the sampling error; that of the fraction also covers the resolution error of the "
            "nodes around zero:",
            tuple(columns),
            tuple(rows),
        )


def measured(estimate: Estimate) -> tuple[Cell, Cell]:
    """The value and the interval of an estimate, with the digits that the interval supports."""
    value = Measured(estimate.value, estimate.half_width())
    return value, supported_interval(*estimate.interval())


def negative_part(x: HostArray) -> HostArray:
    """min(x, 0), elementwise."""
    return np.asarray(np.minimum(x, 0.0))
