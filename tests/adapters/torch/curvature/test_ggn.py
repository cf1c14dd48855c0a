"""Gauss-Newton and Fisher matrices against explicit Jacobians and per-sample gradients."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402  # only where torch is
    DOUBLE,
    assert_untouched,
    batch,
    explicit_ggn,
    flat_parameters,
    network,
    outputs_of,
    relative,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import fisher, ggn, hessian  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10
SAMPLES = 12


def _numbers(*shape, seed=7):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


LABELS = batch()[1]
WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE)
PROBABILITIES = torch.softmax(_numbers(SAMPLES, 3), dim=1)
KNOWN = {
    "cross-entropy": (CE, LABELS),
    "cross-entropy as a function": (functional.cross_entropy, LABELS),
    "weighted sum": (nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"), LABELS),
    "everything at once": (
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2, label_smoothing=0.1),
        LABELS,
    ),
    "probabilities": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2), PROBABILITIES),
    "squared error": (nn.MSELoss(), _numbers(SAMPLES, 3)),
    "sum of squares": (nn.MSELoss(reduction="sum"), _numbers(SAMPLES, 3)),
    "binary": (nn.BCEWithLogitsLoss(), (PROBABILITIES > 0.3).to(DOUBLE)),
    "weighted binary": (
        nn.BCEWithLogitsLoss(weight=torch.rand(3).to(DOUBLE), pos_weight=WEIGHTS),
        PROBABILITIES,
    ),
}
OTHER = {
    "huber": (nn.HuberLoss(), _numbers(SAMPLES, 3)),
    "samples that mix": (lambda z, _: (z**4).mean() + (z[0] * z[1]).sum(), LABELS),
    "linear": (lambda z, _: z.sum(), LABELS),
}


def _net():
    model, (x, _) = network("linear")
    return model, x


@pytest.mark.parametrize(("loss", "targets"), (KNOWN | OTHER).values(), ids=KNOWN | OTHER)
def test_every_loss_gives_the_explicit_gauss_newton_matrix(loss, targets):
    model, x = _net()
    exact = explicit_ggn(model, loss, (x, targets))
    G = ggn(model, loss, (x, targets))
    assert (G.to_dense() - exact).norm() <= TOLERANCE * max(exact.norm(), 1)
    assert G.positive_semidefinite == (loss in [loss for loss, _ in KNOWN.values()])


@pytest.mark.parametrize(("loss", "targets"), KNOWN.values(), ids=KNOWN)
def test_the_exact_fisher_matrix_is_the_gauss_newton_matrix(loss, targets):
    model, x = _net()
    F = fisher(model, loss, (x, targets), kind="exact")
    assert relative(F.to_dense(), explicit_ggn(model, loss, (x, targets))) < TOLERANCE


@pytest.mark.parametrize(("loss", "targets"), KNOWN.values(), ids=KNOWN)
def test_monte_carlo_fisher_matrices_average_to_the_exact_one(loss, targets):
    model, x = _net()
    exact = fisher(model, loss, (x, targets)).to_dense()
    many = fisher(model, loss, (x, targets), kind="monte-carlo", num_samples=4000, seed=1)
    assert relative(many.to_dense(), exact) < 0.06  # the sampling error is 1 to 2 %
    few = fisher(model, loss, (x, targets), kind="monte-carlo", num_samples=2, seed=1)
    assert torch.linalg.eigvalsh(few.to_dense())[0] > -TOLERANCE * exact.norm()


def test_drawn_targets_depend_only_on_the_seed_and_the_sample():
    model, x = _net()

    def monte_carlo(data, seed):
        return fisher(model, CE, data, kind="monte-carlo", num_samples=3, seed=seed)

    whole = monte_carlo((x, LABELS), 5)
    assert torch.equal(whole.to_dense(), whole.to_dense())
    batches = [(x[:5], LABELS[:5]), (x[5:], LABELS[5:])]
    assert relative(monte_carlo(batches, 5).to_dense(), whole.to_dense()) < TOLERANCE
    assert relative(monte_carlo((x, LABELS), 6).to_dense(), whole.to_dense()) > 0.01
    assert monte_carlo((x, LABELS), None).seed != monte_carlo((x, LABELS), None).seed
    assert "3 draws, seed 5" in repr(whole)


def _per_sample_gradients(model, term, data):
    """The gradients of -log p for every sample, (N, n), one sample at a time."""
    x, y = data
    flat, rows = flat_parameters(model).requires_grad_(), []
    for i in range(len(x)):
        z = outputs_of(model, x[i : i + 1])(flat)
        rows.append(torch.autograd.grad(term(z, y[i : i + 1]), flat)[0])
    return torch.stack(rows)


EMPIRICAL = {
    "cross-entropy": (CE, LABELS, CE, 1 / SAMPLES),
    "class weights": (
        nn.CrossEntropyLoss(weight=WEIGHTS),
        LABELS,
        CE,
        WEIGHTS[LABELS] / WEIGHTS[LABELS].sum(),
    ),
    "smoothed": (  # the term contains the class weight twice, one of which k removes
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        LABELS,
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1, reduction="sum"),
        1 / (0.9 * WEIGHTS[LABELS] + 0.1 * WEIGHTS.mean()) / WEIGHTS[LABELS].sum(),
    ),
    "squared error": (
        nn.MSELoss(),
        _numbers(SAMPLES, 3),
        nn.MSELoss(reduction="sum"),
        1 / (3 * SAMPLES),
    ),
    "binary": (
        nn.BCEWithLogitsLoss(reduction="sum"),
        PROBABILITIES.round(),
        nn.BCEWithLogitsLoss(reduction="sum"),
        1.0,
    ),
    "a function": (lambda z, y: CE(z, y), LABELS, CE, 1 / SAMPLES),
}


@pytest.mark.parametrize(("loss", "targets", "term", "k"), EMPIRICAL.values(), ids=EMPIRICAL)
def test_the_empirical_fisher_matrix_is_the_sum_over_per_sample_gradients(loss, targets, term, k):
    model, x = _net()
    g = _per_sample_gradients(model, term, (x, targets))
    exact = g.T @ (torch.as_tensor(k, dtype=DOUBLE).reshape(-1, 1) * g)
    F = fisher(model, loss, (x, targets), kind="empirical")
    assert relative(F.to_dense(), exact) < TOLERANCE
    assert F.positive_semidefinite


def test_the_exact_and_empirical_fisher_matrices_and_the_hessian_differ():
    model, x = _net()
    data = (x, LABELS)
    exact = fisher(model, CE, data).to_dense()
    assert relative(fisher(model, CE, data, kind="empirical").to_dense(), exact) > 0.1
    assert relative(hessian(model, CE, data).to_dense(), exact) > 0.1


def _pixelwise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 3, 1)).to(DOUBLE)
    x, _ = batch("image")
    return model, x, torch.randint(3, (SAMPLES, 2, 2))


def test_every_position_with_a_target_counts_as_a_datum():
    model, x, y = _pixelwise()
    loss = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0)
    exact = explicit_ggn(model, loss, (x, y))
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    for data in ((x, y), batches):
        assert relative(ggn(model, loss, data).to_dense(), exact) < TOLERANCE
        assert relative(fisher(model, loss, data).to_dense(), exact) < TOLERANCE
    sampled = [
        fisher(model, loss, data, kind="monte-carlo", num_samples=400, seed=0).to_dense()
        for data in ((x, y), batches)
    ]
    assert relative(sampled[0], sampled[1]) < TOLERANCE
    assert relative(sampled[0], exact) < 0.2


def test_nll_loss_of_log_probabilities_is_cross_entropy():
    model, x = _net()
    exact = ggn(model, CE, (x, LABELS)).to_dense()
    logged = nn.Sequential(*model, nn.LogSoftmax(dim=1))
    for loss in (nn.NLLLoss(), functional.nll_loss):
        assert relative(ggn(logged, loss, (x, LABELS)).to_dense(), exact) < TOLERANCE
        assert relative(fisher(logged, loss, (x, LABELS)).to_dense(), exact) < TOLERANCE


def test_squared_error_with_broadcast_targets_is_not_a_sum_over_samples():
    model, x = _net()
    targets = _numbers(1, 3)
    loss = nn.MSELoss()
    with pytest.warns(UserWarning, match="different to the input size"):
        exact = explicit_ggn(model, loss, (x, targets))
    with pytest.warns(UserWarning, match="different to the input size"):
        got = ggn(model, loss, (x, targets)).to_dense()
    assert relative(got, exact) < TOLERANCE


def test_one_sample_without_a_batch_dimension():
    model = nn.Linear(6, 3).to(DOUBLE)
    data = (_numbers(6), torch.tensor(1))
    assert relative(ggn(model, CE, data).to_dense(), explicit_ggn(model, CE, data)) < TOLERANCE


def test_batches_of_256_256_and_88_add_up_to_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    x, y = batch(samples=600)
    ignored = torch.where(y == 2, -100, y)
    for loss, targets in (
        (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), y),
        (functional.cross_entropy, ignored),
    ):
        loader = DataLoader(TensorDataset(x, targets), batch_size=256)
        for make in (
            hessian,
            ggn,
            fisher,
            lambda *args: fisher(*args, kind="monte-carlo", seed=0),
            lambda *args: fisher(*args, kind="empirical"),
        ):
            whole, batched = (make(model, loss, data).to_dense() for data in ((x, targets), loader))
            assert relative(batched, whole) < TOLERANCE


def test_a_batch_with_only_ignored_targets_contributes_nothing():
    model, x = _net()
    loss = nn.CrossEntropyLoss(ignore_index=2)
    y = torch.where(LABELS == 2, 0, LABELS)
    y[8:] = 2
    for make in (hessian, ggn):
        whole = make(model, loss, (x, y))
        batched = make(model, loss, [(x[:8], y[:8]), (x[8:], y[8:])])
        assert relative(batched.to_dense(), whole.to_dense()) < TOLERANCE
        assert abs(batched.loss() - whole.loss()) < TOLERANCE


@pytest.mark.parametrize("kind", ["exact", "monte-carlo", "empirical"])
def test_the_model_is_left_unchanged(kind):
    model, data = network("batch norm, training")
    before = snapshot(model)
    F = fisher(model, CE, data, kind=kind)
    mf.trace(F, num_probes=3, seed=0)
    F.gradient()
    F.loss(torch.ones(F.shape[0], dtype=DOUBLE))
    assert_untouched(before, snapshot(model))

    def broken(outputs, targets):
        raise RuntimeError("in the loss")

    failing = ggn(model, broken, data)
    with pytest.raises(RuntimeError, match="in the loss"):
        failing @ torch.ones(failing.shape[0], dtype=DOUBLE)
    assert_untouched(before, snapshot(model))


def test_half_precision_models_have_single_precision_vectors():
    model, x = _net()
    exact = ggn(model, CE, (x, LABELS)).to_dense()
    half = copy.deepcopy(model).to(torch.bfloat16)
    G = ggn(half, CE, (x.to(torch.bfloat16), LABELS))
    assert G.dtype == torch.float32
    assert relative(G.to_dense().to(DOUBLE), exact) < 0.05  # bfloat16 has 8 significant bits


def test_invalid_input_is_an_error():
    model, x = _net()
    data = (x, LABELS)
    with pytest.raises(ValueError, match="kind must be 'exact'"):
        fisher(model, CE, data, kind="true")
    with pytest.raises(ValueError, match="num_samples must be a whole number"):
        fisher(model, CE, data, kind="monte-carlo", num_samples=0)
    F = fisher(model, nn.HuberLoss(), (x, _numbers(SAMPLES, 3)))
    with pytest.raises(mf.OperatorError, match="known to be -log p of a distribution"):
        mf.trace(F, num_probes=1)
    G = ggn(model, nn.CrossEntropyLoss(reduction="none"), data)
    with pytest.raises(mf.OperatorError, match="scalar tensor"):
        mf.trace(G, num_probes=1)
    detached = ggn(nn.Linear(6, 3).to(DOUBLE), CE, data)
    detached.model.forward = lambda x: torch.zeros(len(x), 3, dtype=DOUBLE)
    with pytest.raises(mf.OperatorError, match="outputs do not depend on the parameters"):
        mf.trace(detached, num_probes=1)
    constant = ggn(model, lambda z, y: CE(z.detach(), y), data)
    with pytest.raises(mf.OperatorError, match="loss does not depend on the model's outputs"):
        mf.trace(constant, num_probes=1)
    with pytest.raises(mf.OperatorError, match="must be one tensor, or contain one as"):
        mf.trace(ggn(nn.GRU(6, 3).to(DOUBLE), CE, data), num_probes=1)
