"""Tensors as matrices, and the Hessian of networks against independent second derivatives."""

import copy
import gc
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.backends import assert_close  # noqa: E402
from support.networks import (  # noqa: E402  # only where torch is
    DOUBLE,
    Residual,
    Tied,
    assert_untouched,
    flat_parameters,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import adapt, hessian  # noqa: E402  # only where torch is

CE = nn.CrossEntropyLoss()


def small_nets():
    torch.manual_seed(0)
    return {
        "tanh": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "residual": nn.Sequential(Residual(), nn.Linear(6, 3)),
        "layer norm": nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3)),
        "batch norm, training": nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        "convolution": nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 3, 2, padding=1),
            nn.BatchNorm2d(3).eval(),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
    }


def batch(samples=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, dtype=DOUBLE, generator=generator)
    return x, torch.randint(3, (samples,), generator=generator)


def explicit_hessian(model, loss, data):
    """Finite differences of gradients, which do not rely on second derivatives of torch."""
    model = copy.deepcopy(model)
    x, y = data

    def gradient():
        model.zero_grad()
        loss(model(x), y).backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    rows, step = [], 1e-6
    for p in model.parameters():
        values = p.data.view(-1)
        for i in range(values.numel()):
            original = values[i].item()
            values[i] = original + step
            up = gradient()
            values[i] = original - step
            rows.append((up - gradient()) / (2 * step))
            values[i] = original
    return torch.stack(rows)


@pytest.mark.parametrize("name", small_nets())
def test_matvecs_agree_with_the_explicit_hessian(name):
    model = small_nets()[name].to(DOUBLE)
    H = hessian(model, CE, batch())
    dense = H.to_dense()
    assert (dense - dense.T).abs().max() < 1e-13
    difference = (dense - explicit_hessian(model, CE, batch())).abs().max()
    assert difference < 1e-7 * max(1.0, dense.abs().max())  # the accuracy of the differences
    assert mf.check_operator(H).hermitian


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # inside torch.func
def test_layer_norm_is_correct_unlike_with_torch_func_hessian():
    model = small_nets()["layer norm"].to(DOUBLE)
    x, y = batch()
    H = hessian(model, CE, (x, y))
    exact = explicit_hessian(model, CE, (x, y))

    def loss(flat):
        return CE(functional_call(model, H.unflatten(flat), (x,)), y)

    theirs = torch.func.hessian(loss)(flat_parameters(model))
    if (theirs - exact).norm() < 1e-6 * exact.norm():
        pytest.skip("this release of torch differentiates LayerNorm twice correctly")
    assert (H.to_dense() - exact).norm() < 1e-6 * exact.norm()
    assert (theirs - exact).norm() > 1e-3 * exact.norm()


# P26
def test_linear_regression_has_its_closed_form_in_one_batch_or_many():
    torch.manual_seed(0)
    X, y = torch.randn(200, 7, dtype=DOUBLE), torch.randn(200, 1, dtype=DOUBLE)
    model = nn.Linear(7, 1, bias=False).to(DOUBLE)
    exact = 2 * X.T @ X / 200
    loader = DataLoader(TensorDataset(X, y), batch_size=64)  # 64 + 64 + 64 + 8
    for data in ((X, y), loader):
        assert (hessian(model, nn.MSELoss(), data).to_dense() - exact).abs().max() < 1e-12


# P27
def test_logistic_regression_has_its_closed_form():
    torch.manual_seed(0)
    X, y = torch.randn(90, 5, dtype=DOUBLE), torch.randint(2, (90, 1)).to(DOUBLE)
    model = nn.Linear(5, 1, bias=False).to(DOUBLE)
    s = torch.sigmoid(model(X)).detach()
    exact = X.T @ (s * (1 - s) * X) / 90
    H = hessian(model, nn.BCEWithLogitsLoss(), DataLoader(TensorDataset(X, y), batch_size=40))
    assert (H.to_dense() - exact).abs().max() < 1e-12


LOSSES = {
    "mean": CE,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE)),
    "ignored targets": nn.CrossEntropyLoss(ignore_index=2),
    "function": nn.functional.cross_entropy,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_batches_of_different_sizes_sum_to_the_whole(loss):
    model = small_nets()["tanh"].to(DOUBLE)
    x, y = batch(60)
    whole = hessian(model, loss, (x, y))
    batched = hessian(model, loss, [(x[:25], y[:25]), (x[25:50], y[25:50]), (x[50:], y[50:])])
    assert (whole.to_dense() - batched.to_dense()).abs().max() < 1e-10
    assert (whole.gradient() - batched.gradient()).abs().max() < 1e-10
    assert "graph kept" in repr(whole)
    assert "3 graphs kept" in repr(batched)


def test_a_normalizer_weights_the_batches_of_a_custom_loss():
    model = small_nets()["tanh"].to(DOUBLE)
    x, y = batch(50)

    def loss(outputs, targets):
        return CE(outputs, targets) / 3

    H = hessian(model, loss, [(x[:40], y[:40]), (x[40:], y[40:])], normalizer=lambda b: len(b[0]))
    assert (H.to_dense() - hessian(model, CE, (x, y)).to_dense() / 3).abs().max() < 1e-12


def test_a_subset_of_parameters_is_the_principal_submatrix():
    model = small_nets()["tanh"].to(DOUBLE)
    H = hessian(model, CE, batch())
    subset = hessian(model, CE, batch(), params="2.*")
    rows = slice(H.partition["2.weight"].start, H.partition["2.bias"].stop)
    assert (subset.to_dense() - H.to_dense()[rows, rows]).abs().max() < 1e-13
    assert subset.names == ("2.weight", "2.bias")
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in hessian(model, CE, batch()).names
    named = hessian(model, CE, batch(), params=["0.weight"])
    assert named.to_dense().abs().max() > 0
    assert not model[0].weight.requires_grad


def test_tied_weights_count_once_and_unused_weights_have_zero_rows():
    torch.manual_seed(0)
    model = Tied().to(DOUBLE)
    H = hessian(model, CE, batch())
    assert "second.weight" not in H.names
    dense = H.to_dense()
    assert dense[H.partition["unused.weight"], :].abs().max() == 0

    def loss(flat):
        return CE(functional_call(model, H.unflatten(flat), (batch()[0],)), batch()[1])

    exact = torch.autograd.functional.hessian(loss, flat_parameters(model))
    assert (dense - exact).abs().max() < 1e-12


def test_flatten_and_unflatten_are_inverse():
    model = small_nets()["tanh"].to(DOUBLE)
    H = hessian(model, CE, batch())
    flat = flat_parameters(model)
    tensors = H.unflatten(flat)
    assert all(torch.equal(tensors[name], p) for name, p in model.named_parameters())
    assert torch.equal(H.flatten(tensors), flat)
    with pytest.raises(ValueError, match="must name every parameter once"):
        H.flatten({"0.weight": tensors["0.weight"]})
    with pytest.raises(ValueError, match="vector must have shape"):
        H.unflatten(flat[1:])


@pytest.mark.filterwarnings("ignore:BatchNorm1d layer")  # the loader has only one batch
@pytest.mark.parametrize("loader", [False, True], ids=["batch", "loader"])
def test_the_model_is_left_unchanged_even_after_an_error(loader):
    model = small_nets()["batch norm, training"].to(DOUBLE)
    data = batch()
    if loader:
        data = DataLoader(TensorDataset(*data), batch_size=40, shuffle=True)
    before = snapshot(model)
    H = hessian(model, CE, data)
    mf.trace(H, num_probes=3, seed=0)
    assert_untouched(before, snapshot(model))

    def broken(outputs, targets):
        raise RuntimeError("in the loss")

    failing = hessian(model, broken, data)
    with pytest.raises(RuntimeError, match="in the loss"):
        failing.gradient()
    assert_untouched(before, snapshot(model))


def test_memory_does_not_grow_over_many_matvecs():
    model = small_nets()["tanh"].to(DOUBLE)
    for data in (batch(), [batch()]):
        H = hessian(model, CE, data)
        v = torch.ones(H.shape[0], dtype=DOUBLE)

        def live(H=H, v=v):
            for _ in range(50):
                H @ v
            gc.collect()
            return sum(issubclass(type(obj), torch.Tensor) for obj in gc.get_objects())

        first = live()
        assert live() <= first


def test_the_operator_follows_a_training_step():
    model = small_nets()["tanh"].to(DOUBLE)
    H = hessian(model, CE, batch())
    old = H.to_dense()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert (H.to_dense() - old).abs().max() > 1e-3
    assert torch.equal(H.to_dense(), hessian(model, CE, batch()).to_dense())


def test_no_grad_and_inference_mode_do_not_change_the_result():
    model = small_nets()["tanh"].to(DOUBLE)
    exact = hessian(model, CE, batch()).to_dense()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = hessian(model, CE, batch()).to_dense()
        assert torch.equal(got.clone(), exact)


def test_attention_is_differentiated_through_its_math_kernel():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).to(DOUBLE)
    model = nn.Sequential(nn.Unflatten(1, (5, 8)), layer, nn.Flatten(), nn.Linear(40, 3)).to(DOUBLE)
    x, y = torch.randn(6, 40, dtype=DOUBLE), torch.randint(3, (6,))
    H = hessian(model, CE, (x, y))
    report = mf.check_operator(H)
    assert report.ok
    assert report.hermitian


def test_half_precision_models_have_single_precision_vectors():
    model = small_nets()["tanh"].to(torch.bfloat16)
    x, y = batch()
    H = hessian(model, CE, (x.to(torch.bfloat16), y))
    assert H.dtype == torch.float32
    exact = hessian(small_nets()["tanh"], CE, (x.float(), y)).to_dense()
    assert (H.to_dense() - exact).norm() < 0.05 * exact.norm()  # bfloat16 has 8 significant bits


ERRORS = {
    "dropout": (
        lambda: hessian(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), CE, batch()),
        ValueError,
        "Dropout layer '1' is in training mode and draws random.*eval",
    ),
    "no parameters": (lambda: hessian(nn.ReLU(), CE, batch()), ValueError, "no parameter"),
    "pattern": (
        lambda: hessian(nn.Linear(6, 3), CE, batch(), params="layer9.*"),
        ValueError,
        "no parameter matches 'layer9",
    ),
    "iterator": (
        lambda: hessian(nn.Linear(6, 3), CE, iter([batch()])),
        TypeError,
        "exhausted after one pass",
    ),
    "not data": (lambda: hessian(nn.Linear(6, 3), CE, 3), TypeError, "data must be a batch"),
    "empty": (lambda: hessian(nn.Linear(6, 3), CE, []).gradient(), ValueError, "no batch"),
    "not pairs": (
        lambda: hessian(nn.Linear(6, 3), CE, [torch.ones(2, 6)]).gradient(),
        TypeError,
        r"must be a pair \(inputs, targets\)",
    ),
    "vector loss": (
        lambda: hessian(
            nn.Linear(6, 3).double(), nn.CrossEntropyLoss(reduction="none"), batch()
        ).gradient(),
        mf.OperatorError,
        "scalar tensor",
    ),
    "detached": (
        lambda: hessian(
            nn.Linear(6, 3).double(), lambda o, t: CE(o.detach(), t), batch()
        ).gradient(),
        mf.OperatorError,
        "does not depend on the parameters",
    ),
    "tensor": (lambda: adapt(torch.zeros(3)), mf.OperatorError, "2 dimensions"),
}


@pytest.mark.parametrize(("make", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_invalid_input_is_an_error(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_nan_in_the_data_is_an_error_at_the_first_matvec():
    x, y = batch()
    x = torch.full_like(x, torch.nan)
    with pytest.raises(mf.NonFiniteError, match="the loss of a batch is nan"):
        mf.trace(hessian(small_nets()["tanh"].to(DOUBLE), CE, (x, y)), num_probes=1)


def test_batch_statistics_over_several_batches_cause_a_warning():
    model = small_nets()["batch norm, training"].to(DOUBLE)
    with pytest.warns(UserWarning, match="BatchNorm1d layer '1' is in training mode"):
        hessian(model, CE, [batch(), batch()])


class Shrinking:
    """A loader that loses a batch in every pass."""

    def __init__(self):
        self.batches = [batch(seed=s) for s in range(4)]

    def __iter__(self):
        self.batches.pop()
        return iter(list(self.batches))


def test_a_loader_whose_samples_change_is_an_error():
    H = hessian(small_nets()["tanh"].to(DOUBLE), CE, Shrinking())
    H.gradient()
    with pytest.raises(ValueError, match="two passes over the data differ"):
        H.gradient()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors_of_every_layout_have_matvecs_and_adjoints():
    dense = torch.tensor(np.triu(np.ones((6, 4))))
    for tensor in (dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()):
        ours = mf.aslinearoperator(tensor)
        assert_close(ours.to_dense(), dense.numpy())
        assert_close(ours.H.to_dense(), dense.numpy().T)


def test_tensors_that_require_gradients_are_detached():
    W = torch.eye(5, requires_grad=True)
    assert mf.trace(W, num_probes=1, seed=0).value == 5.0
    assert not mf.diagonal(W, num_probes=1, seed=0).value.requires_grad


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_the_operator_of_a_network_can_neither_be_copied_nor_pickled_and_says_so(way):
    model = nn.Linear(3, 2).to(DOUBLE)
    A = hessian(model, nn.MSELoss(), (torch.ones(4, 3, dtype=DOUBLE), torch.ones(4, 2).to(DOUBLE)))
    for operator in (A, A.shift(1.0)):
        if way is not copy.copy or operator is A:  # a shallow copy of the sum shares its terms
            with pytest.raises(TypeError, match="can neither be copied nor pickled"):
                way(operator)


LAYOUTS = {
    "coo": (lambda A: A.to_sparse_coo(), lambda A: A._indices()[0]),
    "csr": (lambda A: A.to_sparse_csr(), lambda A: A.col_indices()),
    "csc": (lambda A: A.to_sparse_csc(), lambda A: A.row_indices()),
    "bsr": (lambda A: A.to_sparse_bsr((2, 4)), lambda A: A.col_indices()),
    "bsc": (lambda A: A.to_sparse_bsc((2, 4)), lambda A: A.row_indices()),
}


@pytest.mark.parametrize("wrong", [23, 10**8, -5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_with_indices_out_of_range_are_refused(layout, wrong):
    make, indices_of = LAYOUTS[layout]
    matrix = make(torch.eye(20, dtype=DOUBLE))
    mf.trace(matrix, num_probes=1, seed=0)
    indices_of(matrix)[1] = wrong
    with pytest.raises(mf.OperatorError, match=rf"index {wrong}, which is not in"):
        mf.trace(matrix, num_probes=1, seed=0)
