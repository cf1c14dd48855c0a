"""Curvature during training: warm starts, records, and the restored model."""

import copy

import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import assert_untouched, autograd_hessian, network, snapshot  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import Follower, TrainingHistory, follow_training, ggn, hessian  # noqa: E402

CE = nn.CrossEntropyLoss()


def train(model, data, step=0.05):
    loss = CE(model(data[0]), data[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= step * g


@pytest.fixture(scope="module")
def training():
    model, data = network("convolution")
    states = []
    for epoch in range(5):
        states.append((10 * epoch, copy.deepcopy(model.state_dict())))
        for _ in range(4):
            train(model, data)
    return model, data, states


def test_every_checkpoint_has_the_eigenvalues_and_the_trace_of_its_explicit_hessian(training):
    model, data, states = training
    before = snapshot(model)
    history = follow_training(model, CE, data, states, k=2, density_probes=2, seed=0)
    assert_untouched(before, snapshot(model))
    assert history.labels == (0, 10, 20, 30, 40)
    assert history.converged.all()
    twin = copy.deepcopy(model)
    for row, (_, state) in enumerate(states):
        twin.load_state_dict(state)
        exact = autograd_hessian(twin, CE, data)
        values = torch.linalg.eigvalsh(exact)
        values = values[values.abs().argsort(descending=True)][:2].numpy()
        assert history.values[row] == pytest.approx(values, rel=1e-4)
        estimate, density = history.traces[row], history.densities[row]
        assert abs(float(estimate) - float(exact.trace())) < 5 * estimate.stderr
        probed = mf.trace(hessian(twin, CE, data), num_probes=16, seed=0)
        assert estimate.samples == pytest.approx(probed.samples, rel=1e-10)
        assert density.support[1] == pytest.approx(values.max(), rel=1e-6)
        half = scipy.stats.t.ppf(0.975, 15) * np.std(probed.samples, ddof=1) / 4
        assert estimate.half_width() == pytest.approx(half, rel=1e-9)


def test_starting_from_the_previous_checkpoint_saves_matvecs(training):
    model, data, states = training
    twin = copy.deepcopy(model)
    options = {"rtol": 1e-2, "verify": False}
    history = follow_training(twin, CE, data, states, k=2, num_probes=0, seed=0, **options)
    H, cold = hessian(twin, CE, data), []
    for _, state in states:
        twin.load_state_dict(state)
        cold.append(mf.eigsh(H, 2, seed=0, **options).num_matvecs)
    assert history.eigen_matvecs[0] == cold[0]  # the first has no start
    assert history.eigen_matvecs[1:].sum() < 0.7 * sum(cold[1:])
    assert history.overlaps[1:].min() > 0.9
    assert np.isnan(history.overlaps[0]).all()
    assert history.num_matvecs == history.eigen_matvecs.sum()


def test_a_follower_measures_during_training(training):
    model, data, states = training
    twin = copy.deepcopy(model)
    twin.load_state_dict(states[0][1])
    follower = Follower(hessian(twin, CE, data), 2, num_probes=4, seed=0)
    for _ in range(2):
        follower.look(np.int64(7))
        for _ in range(4):
            train(twin, data)
    afterwards = follow_training(model, CE, data, states[:2], k=2, num_probes=4, seed=0)
    live = follower.history()
    assert live.labels == (7, 7)
    assert live.values == pytest.approx(afterwards.values, rel=1e-10)
    assert live.trace_samples == pytest.approx(afterwards.trace_samples, rel=1e-10)


def test_any_curvature_and_its_options_can_be_followed(training):
    model, data, states = training
    found = follow_training(
        model, CE, data, states[:1], k=1, curvature=ggn, weight_decay=2.0, seed=0
    )
    model_then = copy.deepcopy(model)
    model_then.load_state_dict(states[0][1])
    exact = mf.eigsh(ggn(model_then, CE, data, weight_decay=2.0), 1, seed=0).values
    assert found.values[0] == pytest.approx(exact, rel=1e-5)


def test_the_model_is_restored_after_an_error(training):
    model, data, states = training
    before = snapshot(model)

    def files():
        yield states[0]
        raise OSError("a file is missing")

    with pytest.raises(OSError, match="missing"):
        follow_training(model, CE, data, files(), k=1, num_probes=1, seed=0)
    assert_untouched(before, snapshot(model))


def test_invalid_checkpoints_are_errors(training):
    model, data, _ = training
    for checkpoints, error, message in (
        ([], ValueError, "checkpoints is empty"),
        ([model.state_dict()], ValueError, r"deepcopy\(model.state_dict\(\)\)"),
        ([(1, model)], ValueError, "model's own tensor"),
        (["epoch1.pt"], TypeError, "torch.load"),
    ):
        with pytest.raises(error, match=message):
            follow_training(model, CE, data, checkpoints, k=1, num_probes=1, seed=0)
    with pytest.raises(ValueError, match="call look"):
        Follower(hessian(model, CE, data)).history()


def test_a_history_is_saved_loaded_and_plotted(training, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    model, data, states = training
    named = [(f"epoch {label}", state) for label, state in states[:2]]
    history = follow_training(model, CE, data, named, k=1, density_probes=1, seed=0)
    back = TrainingHistory.load(history.save(tmp_path / "history"))
    assert str(back) == str(history)
    assert len(back.densities) == 2
    assert back.densities[1].nodes[0] == pytest.approx(history.densities[1].nodes[0])
    for kind in ("eigenvalues", "trace", "density"):
        ax = back.plot(kind=kind)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["epoch 0", "epoch 10"]
        ax.figure.draw_without_rendering()
    bare = follow_training(model, CE, data, states[:1], k=1, num_probes=0, seed=0)
    for kind, message in (("trace", "num_probes"), ("density", "density_probes"), ("x", "kind")):
        with pytest.raises(ValueError, match=message):
            bare.plot(kind=kind)
    assert "trace" not in str(bare)
    pyplot.close("all")
