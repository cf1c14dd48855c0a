"""The section on the spectral density."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.cli.quadrature import distance, exact_negative_share, holds
from matfree.cli.report import cells
from matfree.cli.report.document import Cell, Column, Figure, Finding, Section, Table
from matfree.cli.study import Study
from matfree.results import Estimate, SpectralDensity

_MOST_ISOLATED = 8  # rows of the table of isolated eigenvalues


def section(study: Study) -> Section:
    """Run Lanczos from every probe, and read the spectrum off the quadratures."""
    density = _density(study, study.settings.num_steps)
    negative = density.mass_below(-density.noise_floor)
    truth = _truth(study)
    resolution = () if truth is None else (_resolution(study, truth),)
    return Section(
        key="spectral_density",
        title="Spectral density, by stochastic Lanczos quadrature",
        text=_text(study),
        code=study.call("spectral_density", **_arguments(study, study.settings.num_steps)),
        tables=(*resolution, *_isolated(study, density), _facts(study, density, negative)),
        figures=_figures(study, density),
        findings=_findings(study, density, negative),
        values=_values(study, density, negative),
        results={f"{study.prefix}-density": density},
    )


def _arguments(study: Study, num_steps: int) -> dict[str, Any]:
    kind = {} if study.kind == "rademacher" else {"kind": study.kind}
    settings = study.settings
    return {
        "num_steps": num_steps,
        "num_probes": settings.density_probes,
        **kind,
        "seed": settings.seed,
    }


def _density(study: Study, num_steps: int) -> SpectralDensity:
    quiet = num_steps < study.settings.num_steps
    progress = study.settings.progress and not quiet
    # One probe at a time where a bar is watched: it moves only between blocks.
    block = 1 if progress else None
    arguments = _arguments(study, num_steps)
    return mf.spectral_density(study.operator, block_size=block, progress=progress, **arguments)


def _text(study: Study) -> tuple[str, ...]:
    A, s = study.letter, study.settings
    method = (
        f"From a random vector, {s.num_steps} steps of Lanczos build a small tridiagonal matrix. "
        "Its eigenvalues are the nodes, and the squared first components of its eigenvectors the "
        f"weights, of a quadrature of the spectrum of {A} as this vector sees it. The mean over "
        f"{s.density_probes} vectors estimates how the eigenvalues are distributed."
    )
    return (method,)


def _resolution(study: Study, truth: np.ndarray[Any, Any]) -> Table:
    """The distance to the exact spectrum as the steps grow, from the same probes."""
    last = study.settings.num_steps
    rows: list[tuple[Cell, ...]] = []
    for num_steps in [m for m in (5, 10, 20, 40) if m < last] + [last]:
        density = _density(study, num_steps)
        low, high = density.support
        count = sum(map(len, density.nodes))
        rows.append((num_steps, count, low, high, distance(density, truth)))
    rows.append(("exact", truth.size, float(truth[0]), float(truth[-1]), 0.0))
    titles = ("steps", "nodes", "least node", "largest node", "W1 / range")
    return Table(
        "Step by step: the ends of the spectrum come first, and the Wasserstein distance to the "
        "exact spectrum falls as 1 / steps until the probes limit it:",
        tuple(Column(title, 3 if title.startswith("W1") else 6) for title in titles),
        tuple(rows),
    )


def _isolated(study: Study, density: SpectralDensity) -> tuple[Table, ...]:
    """Eigenvalues that stand alone: where, and how many there are."""
    sigma = (density.support[0] - float(density.grid()[0])) / 5
    truth = _truth(study)
    atoms = plotting.isolated(density, sigma)
    atoms = sorted(atoms, key=lambda atom: -abs(atom.position))[:_MOST_ISOLATED]
    if not atoms:
        return ()
    columns = [Column("eigenvalue", 8), Column("how many", 3), Column("95 % interval")]
    rows: list[tuple[Cell, ...]] = []
    for position, _ in atoms:
        low, high = position - 2 * sigma, position + 2 * sigma
        count = density.count(low, high)
        row = (position, count.value, cells.interval(*count.interval(), 3))
        if truth is None:
            rows.append(row)
        else:
            rows.append((*row, int(np.sum((low <= truth) & (truth <= high)))))
    if truth is not None:
        columns.append(Column("exact"))
    caption = (
        "Isolated eigenvalues: Lanczos finds where they are to many digits, while a random "
        f"vector sees each with a random weight, so that {density.num_probes} probes count them "
        f"to about ± {100 * (2 / density.num_probes) ** 0.5:.0f} %:"
    )
    return (Table(caption, tuple(columns), tuple(rows)),)


def _facts(study: Study, density: SpectralDensity, negative: Estimate) -> Table:
    """Numbers read off the quadrature, beside those of the exact eigenvalues."""
    first, second = density.moment(1), density.moment(2)
    debt = density.trace_function(_negative_part)
    rows: list[tuple[Any, ...]] = [
        ("mean", first.value, cells.interval(*first.interval())),
        ("mean square", second.value, cells.interval(*second.interval())),
        ("median", density.quantile(0.5), ""),
        ("sum of the negative ones", debt.value, cells.interval(*debt.interval())),
        ("fraction negative", negative.value, cells.interval(*negative.interval(), 3)),
    ]
    columns = [Column("of the eigenvalues"), Column("estimate"), Column("interval")]
    if (truth := _truth(study)) is not None:
        negative_truth = exact_negative_share(density, truth)
        answers = (
            truth.mean(),
            np.mean(truth**2),
            np.median(truth),
            _negative_part(truth).sum(),
            negative_truth,
        )
        rows = [(*row, float(answer)) for row, answer in zip(rows, answers, strict=True)]
        columns.append(Column("exact"))
    return Table(
        "Read off the same quadrature, without another product (with 95 % intervals over the "
        "probes; that of the fraction is of theory, and counts what so many nodes cannot "
        "resolve around zero):",
        tuple(columns),
        tuple(rows),
    )


def _negative_part(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.minimum(x, 0.0))


def _truth(study: Study) -> np.ndarray[Any, Any] | None:
    return None if study.exact is None else study.exact.eigenvalues


def _findings(
    study: Study, density: SpectralDensity, negative: Estimate
) -> tuple[Finding, Finding]:
    """How many eigenvalues are negative, and one that is as small as it says."""
    truth, (least, _) = _truth(study), density.support
    share = Finding(
        "fraction of negative eigenvalues",
        negative.value,
        f"{cells.interval(*negative.interval(), 3)}, 95 %",
        num_matvecs=density.num_matvecs,
    )
    bottom = Finding("least eigenvalue", least, "at most that, certain")
    if truth is None or study.exact is None:
        return share, bottom
    part, low = exact_negative_share(density, truth), float(truth[0])
    return (
        replace(share, exact=part, inside=holds(negative, part, density)),
        replace(bottom, exact=low, inside=study.exact.inside(-math.inf, least, low)),
    )


def _values(study: Study, density: SpectralDensity, negative: Estimate) -> dict[str, Any]:
    low, high = density.support
    mean, debt = density.moment(1), density.trace_function(_negative_part)
    values: dict[str, Any] = {
        "support": [low, high],
        "mean": mean.value,
        "mean_interval": list(mean.interval()),
        "negative_fraction": negative.value,
        "negative_interval": list(negative.interval()),
        "negative_sum": debt.value,
        "negative_sum_interval": list(debt.interval()),
        "noise_floor": density.noise_floor,
        "num_steps": density.num_steps,
        "num_probes": density.num_probes,
        "num_matvecs": density.num_matvecs,
        "seed": density.seed,
    }
    if (truth := _truth(study)) is not None:
        values |= {
            "wasserstein_over_range": distance(density, truth),
            "exact_negative_fraction": exact_negative_share(density, truth),
            "exact_negative_sum": float(_negative_part(truth).sum()),
        }
    return values


def _figures(study: Study, density: SpectralDensity) -> tuple[Figure, ...]:
    truth = _truth(study)

    def draw_density(ax: Any) -> None:
        plotting.plot_density(density, exact=truth, ax=ax)

    def draw_cdf(ax: Any) -> None:
        plotting.plot_cdf(density, exact=truth, ax=ax)

    curve = Figure(
        f"{study.prefix}-density",
        "Spectral density",
        "The logarithmic axis shows single eigenvalues beside the bulk; it ends at a tenth of "
        "the peak of one. Numbers over the stems count the eigenvalues there. The band is what "
        "so few probes leave to chance.",
        draw_density,
    )
    if truth is None:
        return (curve,)
    both = Figure(
        f"{study.prefix}-cdf",
        "Distribution of the eigenvalues",
        "Nothing is smoothed here. The shaded area between the two is the Wasserstein distance "
        "of the table.",
        draw_cdf,
    )
    return (curve, both)
