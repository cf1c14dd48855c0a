"""Plots of lists of nodes and weights from other programs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

from matfree_torch.pyhessian.density_plot import get_esd_plot  # noqa: E402

NODES, WEIGHTS = [[-1.0, 0.0, 4.0], [-0.9, 4.1]], [[0.2, 0.7, 0.1], [0.6, 0.4]]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def curve(ax):
    return ax.lines[0].get_xydata()


FORMS = {
    "lists": lambda x: x,
    "arrays": lambda x: [np.array(y) for y in x],
    "float32": lambda x: [list(np.array(y, dtype=np.float32)) for y in x],
    "tensors": lambda x: [torch.tensor(y) for y in x],
    "complex": lambda x: [list(np.array(y, dtype=np.complex64)) for y in x],
    "reversed": lambda x: [y[::-1] for y in x],
    "scaled": lambda x: x,
}


@pytest.mark.parametrize("form", FORMS)
def test_plain_lists_are_drawn_as_a_density_of_mass_one(form):
    convert = FORMS[form]
    weights = [[7 * w for w in row] for row in WEIGHTS] if form == "scaled" else WEIGHTS
    ax = get_esd_plot(convert(NODES), convert(weights))
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "eigenvalue"
    x, y = curve(ax).T
    mass = np.trapezoid(y, x) if hasattr(np, "trapezoid") else np.trapz(y, x)
    assert mass == pytest.approx(1.0, abs=2e-3)
    inside = x > 2.0  # the mass of the nodes at 4.0 and 4.1, averaged over the probes
    upper = np.sum(np.diff(x)[inside[1:]] * y[1:][inside[1:]])
    assert upper == pytest.approx((0.1 + 0.4) / 2, abs=5e-3)
    assert y.min() == pytest.approx(1e-7, rel=1e-3)
    assert not ax.texts, "the number of eigenvalues is unknown, so none is written"


def test_one_probe_needs_no_outer_list():
    one, other = get_esd_plot(NODES[0], WEIGHTS[0]), get_esd_plot(NODES[:1], WEIGHTS[:1])
    assert np.array_equal(curve(one), curve(other))


def test_a_size_gives_the_plot_of_a_density_with_it():
    ax = get_esd_plot(NODES, WEIGHTS, size=100)
    assert ax.get_legend() is not None
    assert ax.get_ylim()[0] > 1e-6


def test_given_axes_are_drawn_on():
    ax = pyplot.subplots()[1]
    assert get_esd_plot(NODES, WEIGHTS, ax=ax) is ax


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        (NODES, WEIGHTS[:1], "got 2 lists of nodes and 1 of weights"),
        ([], [], "got 0 lists"),
        ([[1.0, 2.0]], [[1.0]], r"got shapes \(2,\) and \(1,\)"),
        ([[1.0, float("nan")]], [[0.5, 0.5]], "nodes must be finite: got nan"),
        ([[1.0, 2.0]], [[-0.5, 1.5]], "the least is -0.5"),
        ([[1.0, 2.0]], [[0.0, 0.0]], "their sum is 0"),
        ([[1.0 + 1.0j, 2.0]], [[0.5, 0.5]], "imaginary part of 1"),
    ],
)
def test_lists_that_are_no_density_are_refused(nodes, weights, message):
    with pytest.raises(ValueError, match=message):
        get_esd_plot(nodes, weights)
