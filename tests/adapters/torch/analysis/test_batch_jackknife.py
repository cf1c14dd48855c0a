"""Errors due to probes and due to data, against brute force, repetition and closed forms."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, network  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import BatchJackknife, batch_jackknife, fisher, ggn, hessian  # noqa: E402

LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE)),
}


@pytest.fixture(scope="module")
def case():
    model, _ = network("linear")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 6, dtype=DOUBLE, generator=generator)
    y = torch.randint(3, (40,), generator=generator)
    return model, x, y


def split(x, y, sizes):
    return list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))


def without(x, y, sizes, left_out):
    batches = [b for j, b in enumerate(split(x, y, sizes)) if j != left_out]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


SIZES = [9, 9, 9, 9, 4]


@pytest.mark.parametrize("name", ["mean", "class weights"])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_traces_without_a_batch_are_those_of_the_other_batches(case, name, decay):
    model, x, y = case
    loss = LOSSES[name]
    H = hessian(model, loss, split(x, y, SIZES), weight_decay=decay)
    found = batch_jackknife(H, num_probes=40, seed=0)
    whole = mf.trace(H, num_probes=40, seed=0)
    assert found.value == pytest.approx(whole.value, rel=1e-10)
    spread = np.std(whole.samples, ddof=1) / np.sqrt(40)
    assert found.probe_stderr == pytest.approx(spread, rel=1e-9)
    for j in range(len(SIZES)):
        rest = hessian(model, loss, without(x, y, SIZES, j), weight_decay=decay)
        exact = mf.trace(rest, num_probes=40, seed=0).value
        assert found.left_out[j] == pytest.approx(exact, rel=1e-10)


def test_errors_of_a_sum_are_those_of_the_mean_times_the_number_of_samples(case):
    model, x, y = case
    mean, total = (
        batch_jackknife(hessian(model, LOSSES[name], split(x, y, SIZES)), num_probes=4, seed=0)
        for name in ("mean", "sum")
    )
    for field in ("value", "probe_stderr", "data_stderr", "shared_stderr", "stderr"):
        assert getattr(total, field) == pytest.approx(40 * getattr(mean, field), rel=1e-10)


def test_equal_batches_give_the_textbook_jackknife(case):
    model, x, y = case
    H = hessian(model, LOSSES["mean"], split(x, y, [8] * 5))
    for pairs in (None, mf.eigsh(H, 2, seed=0)):
        found = batch_jackknife(H, pairs, num_probes=8, seed=0)
        centered = found.left_out - found.left_out.mean(axis=0)
        exact = np.sqrt(4 / 5 * (centered**2).sum(axis=0))
        assert found.data_stderr == pytest.approx(exact, rel=1e-10)
        assert found.num_batches == 5


def test_eigenvalues_without_a_batch_agree_with_brute_force_to_second_order(case):
    model, x, y = case
    noise = torch.randn(200, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    x, y, sizes = torch.cat([x] * 5) + 0.3 * noise, torch.cat([y] * 5), [20] * 10
    H = hessian(model, LOSSES["mean"], split(x, y, sizes))
    pairs = mf.eigsh(H, 4, which="LA", rtol=1e-10, seed=0)
    found = batch_jackknife(H, pairs)
    assert found.value == pytest.approx(pairs.values, rel=1e-10)
    brute = np.empty((10, 2))
    for j in range(10):
        rest = hessian(model, LOSSES["mean"], without(x, y, sizes, j)).to_dense()
        brute[j] = torch.linalg.eigvalsh(rest).flip(0)[:2].numpy()
    gap = brute - found.left_out[:, :2]
    assert gap.min() > 0  # Ritz values bound the largest eigenvalues from below
    assert gap.max() < 0.2 * np.abs(brute - found.value[:2]).max()
    exact = np.sqrt(9 / 10 * ((brute - brute.mean(axis=0)) ** 2).sum(axis=0))
    assert found.data_stderr[:2] == pytest.approx(exact, rel=0.1)
    assert np.all(found.bias >= 0)
    assert np.all(found.probe_stderr == 0)


def test_with_all_eigenvectors_the_eigenvalues_are_exact_for_every_which(case):
    model, x, y = case
    H = hessian(model, LOSSES["mean"], split(x, y, SIZES), params="3.*", weight_decay=0.1)
    n = H.shape[0]
    for which in ("LM", "LA", "BE"):
        pairs = mf.eigsh(H, n, which=which, rtol=1e-12, seed=0)
        found = batch_jackknife(H, pairs)
        for j in (0, 4):
            rest = hessian(
                model, LOSSES["mean"], without(x, y, SIZES, j), params="3.*", weight_decay=0.1
            )
            exact = np.linalg.eigvalsh(rest.to_dense().numpy())
            assert np.sort(found.left_out[j]) == pytest.approx(exact, abs=1e-10)
            if which != "LM":
                assert found.left_out[j] == pytest.approx(exact[::-1], abs=1e-10)


def test_the_standard_error_is_the_spread_over_data_sets_and_probes():
    """For a linear model with squared error, the Hessian 2 mean(x x^T) has a known expectation."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 1, bias=False).to(DOUBLE)
    mixing = torch.randn(6, 6, dtype=DOUBLE, generator=generator)
    truth = 2 * float((mixing.T @ mixing).trace())
    values, errors, inside, runs = [], [], 0, 60
    for run in range(runs):
        x = torch.randn(60, 6, dtype=DOUBLE, generator=generator) @ mixing
        batches = split(x, torch.zeros(60, 1, dtype=DOUBLE), [10] * 6)
        found = batch_jackknife(hessian(model, nn.MSELoss(), batches), num_probes=4, seed=run)
        low, high = found.interval()
        inside += low <= truth <= high
        values.append(found.value)
        errors.append(found.stderr)
    spread = float(np.std(values, ddof=1))
    # the relative error of the spread is 1 / sqrt(2 * 60) = 9 %; three of those
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.3)
    assert inside >= 0.88 * runs  # nominal coverage 95 %: fewer than 53 of 60 happens once in 100
    assert abs(np.mean(values) - truth) < 4 * spread / math.sqrt(runs)


def test_identical_batches_have_no_data_error_and_diagonal_matrices_no_probe_error(case):
    model, x, y = case
    same = batch_jackknife(hessian(model, LOSSES["mean"], [(x, y)] * 3), num_probes=5, seed=0)
    assert same.data_stderr < 1e-12 * same.value
    assert same.probe_stderr > 0
    assert same.stderr == pytest.approx(same.probe_stderr)
    line = nn.Linear(1, 1, bias=False).to(DOUBLE)
    batches = [(a.reshape(1, 1), torch.zeros(1, 1, dtype=DOUBLE)) for a in x[:6, 0]]
    found = batch_jackknife(hessian(line, nn.MSELoss(), batches), num_probes=5, seed=0)
    assert found.probe_stderr == pytest.approx(0, abs=1e-15)
    q = 2 * x[:6, 0].numpy() ** 2
    assert found.data_stderr == pytest.approx(q.std(ddof=1) / math.sqrt(6), rel=1e-12)


@pytest.mark.parametrize("make", [ggn, fisher], ids=lambda f: f.__name__)
def test_other_curvatures_have_a_jackknife(case, make):
    model, x, y = case
    A = make(model, LOSSES["mean"], split(x, y, SIZES))
    found = batch_jackknife(A, mf.eigsh(A, 2, seed=0))
    rest = make(model, LOSSES["mean"], without(x, y, SIZES, 0))
    assert found.left_out[0] == pytest.approx(mf.eigsh(rest, 2, seed=0).values, rel=0.05)


def test_unsuitable_operators_and_arguments_are_errors(case):
    model, x, y = case
    loss = LOSSES["mean"]
    for A in (hessian(model, loss, (x, y)), np.eye(3)):
        with pytest.raises(mf.OperatorError, match="several batches"):
            batch_jackknife(A)
    with pytest.raises(mf.OperatorError, match="one batch only"):
        batch_jackknife(hessian(model, loss, [(x, y)]))
    H = hessian(model, loss, split(x, y, SIZES))
    with pytest.raises(ValueError, match="of size 3"):
        batch_jackknife(H, mf.eigsh(np.eye(3), 1, seed=0))
    with pytest.raises(ValueError, match="num_probes"):
        batch_jackknife(H, num_probes=0)


def test_a_record_is_saved_and_loaded(case, tmp_path):
    model, x, y = case
    H = hessian(model, LOSSES["mean"], split(x, y, SIZES))
    for pairs in (None, mf.eigsh(H, 2, seed=0)):
        found = batch_jackknife(H, pairs, num_probes=3, seed=0)
        back = BatchJackknife.load(found.save(tmp_path / "jackknife"))
        assert str(back) == str(found)
        assert np.array_equal(back.interval(0.5), found.interval(0.5))
