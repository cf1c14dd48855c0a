"""The loss along lines and over planes: its curvature, its filters, its plots."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, NETWORKS, assert_untouched, network, snapshot  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import LossLandscape, hessian, loss_landscape, towards  # noqa: E402

CE = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def case():
    model, data = network("convolution")
    return model, data, hessian(model, CE, data)


def plain_loss(model, loss, data):
    with torch.no_grad():
        return float(loss(model(data[0]), data[1]))


def second_difference(values, step):
    """The second derivative to fourth order, at the middle of five values."""
    return (values @ np.array([-1, 16, -30, 16, -1]) / (12 * step**2)).item()


@pytest.mark.parametrize("decay", [0.0, {"*.weight": 0.3}], ids=["plain", "weight decay"])
def test_the_second_derivative_along_a_direction_is_the_hessians_quadratic_form(case, decay):
    model, data, _ = case
    H = hessian(model, CE, data, weight_decay=decay)
    v = H.space.probes(1, seed=5, kind="gaussian")[:, 0]
    line = loss_landscape(model, CE, data, v, span=2e-3, points=5, weight_decay=decay)
    exact = float(v @ (H @ v))
    # rounding 16 eps / step^2 = 4e-9, truncation step^4 / 90 times the sixth derivative
    assert second_difference(line.values[0], 1e-3) == pytest.approx(exact, rel=1e-5)
    assert line.loss == pytest.approx(H.loss(), rel=1e-14)
    slope = (line.values[0, 3] - line.values[0, 1]) / 2e-3
    assert slope == pytest.approx(float(H.gradient() @ v), rel=1e-3)


def test_the_values_are_those_of_a_copy_with_other_parameters(case):
    model, data, H = case
    v = H.space.probes(1, seed=1)[:, 0] / 10
    line = loss_landscape(model, CE, data, v, points=3, span=(-1, 2))
    for x, value in zip(line.coordinates[0], line.values[0], strict=True):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for p, step in zip(twin.parameters(), H.unflatten(v).values(), strict=True):
                p += x * step
        assert value == pytest.approx(plain_loss(twin, CE, data), rel=1e-13)


def test_ragged_batches_give_the_loss_over_all_samples(case):
    model, data, H = case
    loader = DataLoader(TensorDataset(*data), batch_size=5)  # 5 + 5 + 2
    v = H.space.probes(1, seed=1)[:, 0] / 10
    before = snapshot(model)
    with torch.inference_mode():  # the mode of the caller does not matter
        one, many = (loss_landscape(model, CE, d, v, points=5) for d in (data, loader))
    assert_untouched(before, snapshot(model))
    assert many.values == pytest.approx(one.values, rel=1e-13)


def test_curves_along_every_kind_of_direction_share_one_result(case):
    model, data, H = case
    pairs = mf.eigsh(H, 2, seed=0)
    directions = {
        "top": pairs,
        "again": H.unflatten(pairs.vectors[:, 0]),
        "host": pairs.vectors[:, 0].numpy(),
        "random": "random",
        "gradient": "gradient",
    }
    curves = loss_landscape(model, CE, data, directions, points=5, span=1e-2, seed=3)
    assert curves.names == tuple(directions)
    assert not curves.is_surface
    assert np.ptp(curves.values[:3], axis=0).max() == 0
    assert curves.lengths == pytest.approx([1.0] * 5)
    assert second_difference(curves.values[0], 5e-3) == pytest.approx(pairs.values[0], rel=1e-3)
    slope = (curves.values[4, 3] - curves.values[4, 1]) / 1e-2
    assert slope == pytest.approx(float(H.gradient().norm()), rel=1e-3)
    assert np.all(curves.values[:, 2] == curves.loss)  # the network itself


def test_a_plane_has_the_right_mixed_derivative(case):
    model, data, H = case
    pairs = mf.eigsh(H, 2, seed=0)
    step = 1e-3
    plane = loss_landscape(model, CE, data, pairs, points=3, span=step)
    assert plane.is_surface
    assert plane.names == ("eigenvector 1", "eigenvector 2")
    middle = plane.values[:, 1]
    assert (middle @ [1, -2, 1]) / step**2 == pytest.approx(pairs.values[0], rel=1e-3)
    vector = H.space.probes(1, seed=8, kind="gaussian")[:, 0]
    mixed = loss_landscape(
        model, CE, data, [pairs, vector / vector.norm()], points=3, span=step
    ).values
    corner = (mixed[2, 2] - mixed[2, 0] - mixed[0, 2] + mixed[0, 0]) / (4 * step**2)
    exact = float(pairs.vectors[:, 0] @ (H @ vector)) / float(vector.norm())
    assert corner == pytest.approx(exact, rel=1e-2, abs=1e-5)
    block = loss_landscape(model, CE, data, pairs.vectors, points=3, span=step)
    assert np.array_equal(block.values, plane.values)


@pytest.mark.parametrize("name", ["batch norm, evaluation", "tied weights", "convolution"])
def test_the_line_between_checkpoints_ends_at_both(name):
    model, data = network(name)
    other, _ = network(name, seed=1)
    with torch.no_grad():
        for b in other.buffers():
            if b.is_floating_point():
                b += 0.5
    before = snapshot(model), snapshot(other)
    lines = {"model": other, "state": towards(other.state_dict())}
    line = loss_landscape(model, CE, data, lines, span=(0.0, 1.0), points=3)
    for values in line.values:
        assert values[0] == pytest.approx(plain_loss(model, CE, data), rel=1e-13)
        assert values[-1] == pytest.approx(plain_loss(other, CE, data), rel=1e-13)
    assert_untouched(before[0], snapshot(model))
    assert_untouched(before[1], snapshot(other))


def test_batch_statistics_stay_positive_beyond_the_other_checkpoint():
    model, data = network("batch norm, evaluation")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].running_var.mul_(100.0)
    line = loss_landscape(model, CE, data, other, span=(-1.0, 2.0), points=4)
    assert np.isfinite(line.values).all()  # extrapolated, the variance would be negative


def test_filters_are_scaled_to_the_norms_of_the_networks_filters():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    model = model.to(DOUBLE).eval()
    data = torch.randn(6, 2, 3, 3, dtype=DOUBLE), torch.tensor([0, 1, 2, 0, 1, 2])
    H = hessian(model, CE, data)
    v = H.space.probes(1, seed=0, kind="gaussian")[:, 0]
    moved = {}
    for name, d in H.unflatten(v).items():  # by definition, filter by filter
        p = dict(model.named_parameters())[name].detach()
        moved[name] = torch.zeros_like(d)
        if p.ndim > 1:
            for i in range(len(p)):
                moved[name][i] = d[i] * p[i].norm() / d[i].norm()
    options = {"points": 5, "span": 0.5}
    ours = loss_landscape(model, CE, data, v, filter_normalize=True, **options)
    theirs = loss_landscape(model, CE, data, moved, **options)
    assert ours.values == pytest.approx(theirs.values, rel=1e-12)
    assert ours.lengths == pytest.approx(theirs.lengths)
    scaled = loss_landscape(model, CE, data, 1e3 * v, filter_normalize=True, **options)
    assert scaled.values == pytest.approx(ours.values, rel=1e-12)


def test_filter_normalized_landscapes_do_not_depend_on_the_scale_of_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(DOUBLE)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight *= 8.0  # the same function
        twin[2].weight /= 8.0
    data = torch.randn(9, 4, dtype=DOUBLE), torch.tensor([0, 1, 2] * 3)
    a, b = (
        loss_landscape(m, CE, data, "random", seed=2, points=7, filter_normalize=True)
        for m in (model, twin)
    )
    assert a.values == pytest.approx(b.values, rel=1e-12)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_network_is_changed(name):
    model, data = network(name)
    before = snapshot(model)
    loss_landscape(model, CE, data, ["random", "gradient"], points=3, seed=0)
    assert_untouched(before, snapshot(model))


def test_the_model_is_restored_after_an_error(case):
    model, data, _ = case
    before, calls = snapshot(model), []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return CE(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        loss_landscape(model, loss, data, "random", seed=0)
    assert_untouched(before, snapshot(model))


def test_every_point_sees_the_same_random_numbers():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return nn.functional.dropout(self.inner(x), 0.5, training=True)

    model = Noisy().to(DOUBLE)
    data = torch.randn(8, 3, dtype=DOUBLE), torch.tensor([0, 1] * 4)
    line = loss_landscape(model, CE, data, torch.zeros(12), points=5)
    assert np.ptp(line.values) == 0
    assert line.loss == line.values[0, 0]


def test_an_infinite_loss_is_a_gap_in_the_plot_and_not_an_error():
    model = nn.Linear(1, 1, bias=False).to(DOUBLE)
    nn.init.ones_(model.weight)
    data = torch.ones(2, 1, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE)
    line = loss_landscape(
        model, lambda z, _: torch.exp(z).mean(), data, torch.tensor([1e3]), points=3
    )
    assert np.isinf(line.values[0, 2])
    assert "inf" not in str(line)
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    (drawn,) = [a for a in line.plot().lines if a.get_label() == "direction 1"]
    assert np.isfinite(drawn.get_ydata()).sum() == 2
    pyplot.close("all")


def test_a_record_is_saved_and_loaded(case, tmp_path):
    model, data, _ = case
    plane = loss_landscape(model, CE, data, ["random", "random"], points=3, seed=0)
    back = LossLandscape.load(plane.save(tmp_path / "plane"))
    assert np.array_equal(back.values, plane.values)
    assert str(back) == str(plane)
    assert back.is_surface
    assert back.names == ("random 1", "random 2")
    assert np.array_equal(back.coordinates[1], plane.coordinates[1])


@pytest.mark.parametrize(
    ("directions", "options", "message"),
    [
        (torch.zeros(3), {}, r"shape \(\d+,\), the number of parameters"),
        ("gradiant", {}, "'random' or 'gradient'"),
        (["random"] * 3, {}, "pass a mapping"),
        ({}, {}, "empty mapping"),
        ("random", {"span": -1.0}, "span must be"),
        ("random", {"points": 0}, "points must be"),
        (nn.Linear(2, 2), {}, "other checkpoint must have a parameter '0.weight'"),
        ({"0.weight": torch.zeros(1)}, {}, "every parameter once"),
        (torch.zeros(2, 3), {}, "one or two columns"),
    ],
)
def test_invalid_directions_raise_a_clear_error(case, directions, options, message):
    model, data, _ = case
    with pytest.raises(ValueError, match=message):
        loss_landscape(model, CE, data, directions, **options)


def test_a_state_dict_with_buffers_needs_towards():
    model, data = network("batch norm, evaluation")
    with pytest.raises(ValueError, match=r"towards\(state_dict\)"):
        loss_landscape(model, CE, data, model.state_dict())
    with pytest.raises(ValueError, match="filter_normalize=True would change"):
        loss_landscape(model, CE, data, copy.deepcopy(model), filter_normalize=True)


def test_plots_use_the_given_axes_and_the_kind_that_fits(case):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    model, data, _ = case
    line = loss_landscape(model, CE, data, "random", points=5, seed=0)
    plane = loss_landscape(model, CE, data, ["random", "gradient"], points=5, seed=0)
    figure, ax = pyplot.subplots()
    assert line.plot(ax) is ax
    assert ax.get_ylabel() == "loss"
    figure.draw_without_rendering()
    for kind in ("contour", "surface"):
        drawn = plane.plot(kind=kind)
        assert drawn.get_xlabel() == "multiple of random"
        drawn.figure.draw_without_rendering()
    for landscape, kind in ((line, "surface"), (plane, "curve"), (plane, "map")):
        with pytest.raises(ValueError, match="kind must be"):
            landscape.plot(kind=kind)
    with pytest.raises(ValueError, match="three dimensions"):
        plane.plot(ax, kind="surface")
    pyplot.close("all")


def test_half_precision_networks_have_a_landscape():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(torch.bfloat16)
    data = torch.randn(6, 4, dtype=torch.bfloat16), torch.tensor([0, 1, 2] * 2)
    line = loss_landscape(model, CE, data, "gradient", points=3, span=0.5)
    assert line.values[0, 0] < line.loss < line.values[0, 2]  # the gradient goes up


def test_a_model_that_returns_its_own_loss_has_a_landscape():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1, bias=False)

        def forward(self, x, labels):
            return {"loss": ((self.inner(x) - labels) ** 2).mean()}

    model = Own().to(DOUBLE)
    x = torch.randn(5, 2, dtype=DOUBLE)
    batch = {"x": x, "labels": torch.zeros(5, 1, dtype=DOUBLE)}
    weight = model.inner.weight.detach()
    line = loss_landscape(model, None, batch, -weight[0], span=(0.0, 1.0), points=3)
    exact = [float(((1 - t) * (x @ weight.T)).square().mean()) for t in (0, 0.5, 1)]
    assert line.values[0] == pytest.approx(exact, rel=1e-12, abs=1e-15)
