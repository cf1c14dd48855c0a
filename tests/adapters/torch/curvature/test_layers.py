"""The Hessian and the Gauss-Newton matrix of every layer kind against explicit matrices."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402  # only where torch is
    DOUBLE,
    NETWORKS,
    autograd_hessian,
    batch,
    differenced_product,
    explicit_ggn,
    flat_parameters,
    network,
    relative,
)
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import ggn, hessian, hessian_of  # noqa: E402
from matfree_torch.derivative_checks import faulty_modules  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10  # far above the rounding error of some tens of operations in double precision


@pytest.mark.parametrize("name", NETWORKS)
def test_the_hessian_of_every_layer_kind_agrees_with_the_explicit_one(name):
    model, data = network(name)
    H = hessian(model, CE, data)
    exact = autograd_hessian(model, CE, data)
    assert relative(H.to_dense(), exact) < TOLERANCE
    v = torch.randn(H.shape[0], dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    differences = differenced_product(model, CE, data, v)
    assert relative(exact @ v, differences) < 1e-6  # the accuracy of differences with step 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gauss_newton_matrix_of_every_layer_kind_agrees_with_the_explicit_one(name):
    model, data = network(name)
    G = ggn(model, CE, data)
    assert relative(G.to_dense(), explicit_ggn(model, CE, data)) < TOLERANCE
    assert G.positive_semidefinite
    assert "positive semidefinite" in repr(G)


def _weight_normed(make):
    torch.manual_seed(0)
    model = nn.Sequential(make(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    with torch.no_grad():  # g = ||v|| at initialization would hide some errors
        next(p for name, p in model.named_parameters() if name.endswith(("g", "original0"))).mul_(
            1.3
        )
    return model


def _old_weight_norm(layer):
    return nn.utils.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "make", [nn.utils.parametrizations.weight_norm, _old_weight_norm], ids=["new", "old"]
)
def test_weight_norm_has_the_hessian_of_its_formula(make):
    model, (x, y) = _weight_normed(make), batch()
    H = hessian(model, CE, (x, y))
    order = {name.rsplit(".", 1)[-1]: name for name in H.names if not name.startswith("2.")}
    g, v = (
        order.get(new, order.get(old))
        for new, old in (("original0", "weight_g"), ("original1", "weight_v"))
    )

    def loss(flat):
        t = H.unflatten(flat)
        weight = t[g] * t[v] / t[v].square().sum(dim=1, keepdim=True).sqrt()
        hidden = torch.tanh(x @ weight.T + t["0.bias"])
        return CE(hidden @ t["2.weight"].T + t["2.bias"], y)

    exact = torch.autograd.functional.hessian(loss, flat_parameters(model))
    assert relative(H.to_dense(), exact) < TOLERANCE


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=0)
        self.gate, self.head = nn.Hardsigmoid(), nn.Linear(4, 3)

    def forward(self, tokens, offsets=None):
        return self.head(self.gate(torch.tanh(self.bag(tokens, offsets))))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_operations_without_a_second_derivative_are_decomposed(mode):
    torch.manual_seed(0)
    model, (x, y) = Bags(mode).to(DOUBLE), batch("tokens")
    H = hessian(model, CE, (x, y))
    offsets = torch.arange(12) * 3
    ragged = hessian(model, CE, ((x.reshape(-1), offsets), y))
    counts = (x != 0).sum(dim=1, keepdim=True).clamp(min=1) if mode == "mean" else 1

    def loss(flat):
        t = H.unflatten(flat)
        rows = t["bag.weight"][x] * (x != 0)[:, :, None]
        gates = ((torch.tanh(rows.sum(dim=1) / counts) + 3) / 6).clamp(0, 1)
        return CE(gates @ t["head.weight"].T + t["head.bias"], y)

    exact = torch.autograd.functional.hessian(loss, flat_parameters(model))
    for operator in (H, ragged):
        assert relative(operator.to_dense(), exact) < TOLERANCE


def test_a_sparse_embedding_has_the_hessian_of_a_dense_one():
    dense, data = network("embedding")
    sparse = copy.deepcopy(dense)
    sparse[0].sparse = True
    exact = hessian(dense, CE, data).to_dense()
    assert torch.equal(hessian(sparse, CE, data).to_dense(), exact)


def test_an_embedding_with_max_norm_is_left_unchanged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), nn.Flatten(), nn.Linear(9, 3))
    before = flat_parameters(model)
    hessian(model, CE, batch("tokens")).gradient()
    assert torch.equal(flat_parameters(model), before)


class FaultyProduct(torch.autograd.Function):
    """The product x w with a faulty backward: it ignores that the derivative in x depends on w."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w.detach(), (g * x).sum(dim=0)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return FaultyProduct.apply(x, self.w)


def _gated():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Tanh(), Gate())
    return nn.Sequential(nn.Linear(6, 5), inner, nn.Linear(5, 3))


def test_a_wrong_second_derivative_is_detected_and_its_module_named():
    H = hessian(_gated().to(DOUBLE), CE, batch())
    with pytest.raises(
        mf.OperatorError, match=r"second derivative of torch is wrong in Gate layer '1\.1'"
    ):
        H @ torch.ones(H.shape[0], dtype=DOUBLE)


def test_the_gauss_newton_matrix_needs_no_second_derivative_of_the_network():
    model = _gated().to(DOUBLE)  # the same faulty module: J and its transpose are correct
    correct = nn.Sequential(model[0], nn.Tanh(), model[2])  # the gate multiplies by ones
    G = ggn(model, CE, batch())
    rows = [n for n in G.names if n != "1.1.w"]
    exact = ggn(correct, CE, batch()).to_dense()
    assert relative(G.block(rows).to_dense(), exact) < TOLERANCE


def test_a_wrong_second_derivative_of_the_loss_is_detected():
    shift = torch.ones(3, dtype=DOUBLE, requires_grad=True)

    def loss(outputs, targets):
        return CE(FaultyProduct.apply(outputs, outputs.mean(dim=0)) + 0 * shift, targets)

    H = hessian(nn.Linear(6, 3).to(DOUBLE), loss, batch())
    with pytest.raises(
        mf.OperatorError, match=r"second derivative of torch is wrong in the loss \(asymmetry"
    ):
        mf.trace(H, num_probes=1)


def test_asymmetry_without_a_faulty_module_is_only_a_warning(monkeypatch):
    model, data = network("residual")
    monkeypatch.setattr(
        faulty_modules, "symmetry_limit", lambda eps: 0.0
    )  # rounding counts as asymmetry
    H = hessian(model, CE, data)
    with pytest.warns(UserWarning, match="probably rounding in a curvature that is nearly zero"):
        H @ torch.ones(H.shape[0], dtype=DOUBLE)


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.ones(3, 6))

    def forward(self, x):
        return -torch.cdist(x, self.centres)


@pytest.mark.parametrize("make", [hessian, ggn], ids=["hessian", "ggn"])
def test_a_missing_second_derivative_is_named_with_its_operation_and_module(make):
    model = nn.Sequential(nn.Tanh(), Distances()).to(DOUBLE)
    operator = make(model, CE, batch())
    with pytest.raises(mf.OperatorError, match="_cdist_backward, in Distances layer '1'"):
        mf.trace(operator, num_probes=1)


def test_a_missing_second_derivative_of_the_loss_is_named():
    H = hessian(nn.Linear(6, 3).to(DOUBLE), nn.MultiMarginLoss(), batch())
    with pytest.raises(mf.OperatorError, match=r"multi_margin_loss_backward, in the loss"):
        mf.trace(H, num_probes=1)


def test_a_function_of_named_tensors_has_the_hessian_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    point = {
        "layer.w": torch.randn(4, 3, dtype=DOUBLE, generator=generator),
        "b": torch.randn(4, dtype=DOUBLE, generator=generator),
        "steps": torch.tensor(2),
    }
    x = torch.linspace(-1, 1, 3, dtype=DOUBLE)

    def residual(t):
        return ((t["layer.w"] @ x).sin() * t["b"] ** t["steps"]).sum() ** 2

    H = hessian_of(residual, point)
    assert H.names == ("layer.w", "b")
    exact = torch.autograd.functional.hessian(
        lambda f: residual({**H.unflatten(f), "steps": point["steps"]}),
        torch.cat([point["layer.w"].reshape(-1), point["b"]]),
    )
    assert relative(H.to_dense(), exact) < TOLERANCE
    assert abs(H.loss() - float(residual(point))) < 1e-12 * H.loss()
    point["b"].mul_(2)  # the operator follows in-place changes
    assert relative(H.to_dense(), exact) > 0.1
    assert not point["b"].requires_grad
    assert hessian_of(residual, point, params="b").shape == (4, 4)
    with pytest.raises(mf.OperatorError, match="does not depend on the parameters"):
        hessian_of(lambda t: torch.ones(()), point).gradient()
