"""Losses that read the model's parameters themselves: penalties are part of the function."""

import copy
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, batch, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.utils import parameters_to_vector, vector_to_parameters  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import fisher, ggn, hessian, hessian_of, loss_landscape  # noqa: E402

CE = nn.CrossEntropyLoss()
STRATEGIES = ("auto", "recompute", "forward", "folded", "finite-difference")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)


def l2(parameters):
    return 0.5 * sum((p**2).sum() for p in parameters.values())


def orthogonality(parameters):
    weight = parameters["0.weight"]
    return ((weight @ weight.T - torch.eye(4, dtype=DOUBLE)) ** 2).sum()


def joint(parameters):
    flat = torch.cat([p.reshape(-1) for p in parameters.values()])
    return torch.logsumexp(flat, 0) + torch.linalg.norm(parameters["2.weight"], 2)


PENALTIES = {"L2": l2, "orthogonality": orthogonality, "joint": joint}


def reading_the_module(model, penalty):
    return lambda z, y: CE(z, y) + penalty(dict(model.named_parameters()))


def reading_tensors(model, penalty):
    tensors = dict(model.named_parameters())  # collected once, as optimizers do
    return lambda z, y: CE(z, y) + penalty(tensors)


class Penalized(nn.CrossEntropyLoss):
    """A subclass of one of torch's losses, with the model as an attribute."""

    def __init__(self, model, penalty):
        super().__init__()
        self.model, self.penalty = model, penalty

    def forward(self, z, y):
        return super().forward(z, y) + self.penalty(dict(self.model.named_parameters()))


READERS = {"module": reading_the_module, "tensors": reading_tensors, "loss module": Penalized}


def dense_hessian(model, penalty, data):
    """The Hessian of the penalized loss as a function of one vector."""
    names, tensors = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in tensors]

    def value(flat):
        split = zip(torch.split(flat, sizes), tensors, strict=True)
        given = dict(zip(names, [x.view(p.shape) for x, p in split], strict=True))
        return CE(functional_call(model, given, data[0]), data[1]) + penalty(given)

    return torch.autograd.functional.hessian(value, parameters_to_vector(tensors).detach())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_every_strategy_contains_the_hessian_of_a_penalty(reader, penalty, strategy):
    model = mlp()
    H = hessian(model, reader(model, penalty), batch(), strategy=strategy)
    tolerance = 1e-6 if strategy == "finite-difference" else 1e-10
    assert relative(H.to_dense(), dense_hessian(model, penalty, batch())) < tolerance


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_losses_and_gradients_away_from_the_model_contain_a_penalty(reader):
    model, (x, y) = mlp(), batch()
    loss = reader(model, joint)
    H = hessian(model, loss, (x, y))
    before = parameters_to_vector(model.parameters()).detach().clone()
    step = torch.randn(H.shape[0], dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    moved = copy.deepcopy(model)
    vector_to_parameters(before + step, moved.parameters())
    true = (CE(moved(x), y) + joint(dict(moved.named_parameters()))).item()
    assert H.loss(step) == pytest.approx(true, rel=1e-12)
    line = loss_landscape(model, loss, (x, y), step, span=(0, 1), points=2)
    assert line.values[0, -1] == pytest.approx(true, rel=1e-12)
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    value = loss(model(x), y)
    exact = parameters_to_vector(torch.autograd.grad(value, list(model.parameters())))
    assert relative(H.gradient(), exact) < 1e-12


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("matrix", [ggn, partial(fisher, kind="empirical")], ids=["ggn", "fisher"])
def test_matrices_of_the_outputs_refuse_a_loss_that_reads_parameters(matrix, reader):
    model = mlp()
    G = matrix(model, reader(model, orthogonality), batch())
    with pytest.raises(
        mf.OperatorError, match=r"'0.weight' directly, not only through.*hessian_of"
    ):
        G.to_dense()
    without = matrix(model, reader(model, orthogonality), batch(), params="2.*")
    assert without.shape == (15, 15)
    assert without.to_dense().isfinite().all()  # the penalty does not depend on these


def test_the_cure_adds_the_hessian_of_the_penalty():
    model = mlp()
    penalty = hessian_of(l2, dict(model.named_parameters()))
    G = ggn(model, CE, batch())
    total = (G + penalty).to_dense()
    assert relative(total, G.to_dense() + torch.eye(G.shape[0], dtype=DOUBLE)) < 1e-12


class Scored(nn.Module):
    """A model that computes its own loss, with or without a term that bypasses the logits."""

    def __init__(self, auxiliary):
        super().__init__()
        self.inner, self.auxiliary = mlp(), auxiliary

    def forward(self, x, labels):
        logits = self.inner(x)
        loss = CE(logits, labels)
        if self.auxiliary:
            loss = loss + self.inner[0](x).square().mean()
        return {"logits": logits, "loss": loss}


def test_a_model_with_a_loss_that_bypasses_its_logits_is_refused():
    x, y = batch()
    data = {"x": x, "labels": y}
    expected = ggn(mlp(), CE, (x, y)).to_dense()
    assert relative(ggn(Scored(False), None, data).to_dense(), expected) < 1e-12
    with pytest.raises(mf.OperatorError, match="directly, not only through the outputs"):
        ggn(Scored(True), None, data).to_dense()
