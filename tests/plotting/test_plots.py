"""Plots are drawn on the given Axes, with the same options as functions and as methods."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import matfree as mf
from matfree import plotting

pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

EIGENVALUES = np.r_[np.linspace(-0.2, 1.0, 60), 4.0]
A = np.diag(EIGENVALUES) + 0.0


@pytest.fixture
def ax() -> Any:
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def _density() -> Any:
    return mf.spectral_density(A, num_steps=12, num_probes=3, seed=0)


def _curve(ax: Any, label: str = "estimate") -> Any:
    return next(line for line in ax.get_lines() if line.get_label() == label).get_xydata()


PLOTS: dict[str, Callable[[Any], Any]] = {
    "density": lambda ax: _density().plot(ax, exact=EIGENVALUES, symlog=True, width=0.02),
    "spread density": lambda ax: _density().plot(ax, reading="spread"),
    "distribution": lambda ax: _density().plot_cdf(ax, exact=EIGENVALUES, band=True),
    "trace": lambda ax: mf.trace(A, num_probes=9, seed=0).plot(ax, exact=EIGENVALUES.sum()),
    "exact trace": lambda ax: mf.trace(A, rtol=1e-9, seed=0).plot(ax),
    "diagonal": lambda ax: mf.diagonal(A, num_probes=9, seed=0).plot(ax, exact=EIGENVALUES),
    "power": lambda ax: mf.power_iteration(A, 2, rtol=1e-3, seed=0).plot(ax, exact=[4.0, 1.0]),
    "search": lambda ax: mf.eigsh(A, 2, seed=0).plot(ax, exact=[4.0, 1.0]),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS.keys())
def test_a_method_draws_on_the_axes_it_is_given_and_returns_them(
    draw: Callable[[Any], Any], ax: Any
) -> None:
    figures = pyplot.get_fignums()
    assert draw(ax) is ax
    assert pyplot.get_fignums() == figures
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()


def test_a_method_and_its_function_draw_the_same_curve(ax: Any) -> None:
    density = _density()
    density.plot(ax, width=0.03, reading="spread")
    other = plotting.plot_density(density, width=0.03, reading="spread")
    assert np.array_equal(_curve(ax), _curve(other))
    pyplot.close(other.figure)


@pytest.mark.parametrize("reading", ["atoms", "spread"])
def test_the_curve_drawn_is_that_of_the_chosen_reading(reading: Any, ax: Any) -> None:
    density = _density()
    x, y = _curve(density.plot(ax, reading=reading)).T
    assert np.array_equal(y, density.density(x, reading=reading))


@pytest.mark.parametrize("reading", ["atoms", "spread"])
def test_the_distribution_function_drawn_is_right_between_its_corners(
    reading: Any, ax: Any
) -> None:
    density = _density()
    x, y = _curve(density.plot_cdf(ax, reading=reading)).T
    points = np.random.default_rng(0).uniform(x[0], x[-1], 500)
    assert np.allclose(np.interp(points, x, y), density.cdf(points, reading=reading), atol=1e-12)


def test_the_distribution_function_drawn_jumps_at_a_multiple_eigenvalue(ax: Any) -> None:
    # The nodes are eigenvalues up to rounding, which differs between the probes.
    density = mf.spectral_density(np.ones((60, 60)), num_probes=8, seed=0)
    x, y = _curve(density.plot_cdf(ax, exact=np.r_[np.zeros(59), 60.0], band=True)).T
    assert np.interp(-0.1, x, y) == pytest.approx(0.0, abs=1e-12)
    assert np.interp(0.1, x, y) == pytest.approx(density.cdf(0.0))
    _, exact = next(c for c in ax.lines if c.get_label() == "exact").get_xydata().T
    assert set(np.round(exact, 12)) == {0.0, round(59 / 60, 12), 1.0}


def test_an_unknown_reading_is_refused(ax: Any) -> None:
    with pytest.raises(ValueError, match='"atoms" or "spread"'):
        _density().plot(ax, reading="smooth")


def test_lines_contrast_with_a_black_and_with_a_white_background() -> None:
    from matplotlib.colors import to_rgb

    def luminance(colour: Any) -> float:
        channels = np.asarray(to_rgb(colour))
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for style in ("default", "dark_background"):
        with pyplot.style.context(style):
            figure, axes = pyplot.subplots()
            _density().plot(axes, exact=EIGENVALUES)
            ground = luminance(axes.get_facecolor())
            for line in axes.get_lines():
                light, dark = sorted([luminance(line.get_color()), ground], reverse=True)
                assert (light + 0.05) / (dark + 0.05) > 3
            pyplot.close(figure)


def test_intervals_that_miss_their_entry_are_drawn_in_another_colour(ax: Any) -> None:
    estimate = mf.diagonal(A + 0.1, num_probes=20, seed=0)
    exact = EIGENVALUES + 0.1
    low, high = estimate.interval()
    missed = ~((low <= exact) & (exact <= high))
    assert 0 < missed.sum() < 20
    _, wrong = estimate.plot(ax, exact=exact).collections
    assert wrong.get_label() == f"{missed.sum()} intervals that miss"
    places = np.flatnonzero(missed[np.argsort(exact, kind="stable")])
    assert [segment[0][0] for segment in wrong.get_segments()] == places.tolist()
