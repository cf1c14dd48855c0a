"""Functions of named tensors as models, lazy models, and renamed checkpoints."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, autograd_hessian, batch, relative  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from matfree_torch import fisher, ggn, hessian, loss_landscape, towards  # noqa: E402

CE = nn.CrossEntropyLoss()


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)


@pytest.mark.parametrize(
    "strategy", ["auto", "recompute", "forward", "folded", "finite-difference"]
)
def test_a_function_has_the_hessian_of_its_module(strategy):
    model = mlp()

    def function(tensors, x):
        return functional_call(model, tensors, (x,))

    params = dict(model.named_parameters())
    H = hessian(function, CE, batch(), params=params, strategy=strategy)
    assert H.names == tuple(params)
    tolerance = 1e-6 if strategy == "finite-difference" else 1e-10
    assert relative(H.to_dense(), autograd_hessian(model, CE, batch())) < tolerance
    assert H.loss() == pytest.approx(CE(model(batch()[0]), batch()[1]).item(), rel=1e-12)


def test_other_matrices_and_landscapes_of_a_function():
    model = mlp()
    tensors = {"w[0]": torch.randn(3, 6, dtype=DOUBLE), "step": torch.tensor(3)}
    linear = nn.Linear(6, 3, bias=False).to(DOUBLE)
    linear.weight.data = tensors["w[0]"]
    for matrix in (hessian, ggn, fisher):
        A = matrix(lambda t, x: x @ t["w[0]"].T, CE, batch(), params=tensors)
        assert relative(A.to_dense(), matrix(linear, CE, batch()).to_dense()) < 1e-12
    params = dict(model.named_parameters())
    line = loss_landscape(
        lambda t, x: functional_call(model, t, (x,)),
        CE,
        batch(),
        "gradient",
        points=3,
        params=params,
    )
    expected = loss_landscape(model, CE, batch(), "gradient", points=3)
    assert relative(torch.tensor(line.values), torch.tensor(expected.values)) < 1e-12


@pytest.mark.parametrize("model", [lambda x: x, "resnet"], ids=["function", "string"])
def test_a_model_without_its_tensors_is_refused_with_the_cure(model):
    with pytest.raises(TypeError, match=r"params= the mapping .*functional_call"):
        hessian(model, CE, batch())


@pytest.mark.parametrize("make", [nn.LazyLinear, lambda n: nn.Sequential(nn.LazyLinear(n))])
def test_an_uninitialized_model_is_refused(make):
    model = make(3).to(DOUBLE)
    for matrix in (hessian, ggn):
        with pytest.raises(ValueError, match=r"weight' of the model is not initialized"):
            matrix(model, CE, batch())
    model(batch()[0])
    assert hessian(model, CE, batch()).shape == (21, 21)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", ""])
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_of_wrapped_models_have_other_prefixes(prefix, wrapped):
    torch.manual_seed(0)
    model, other = (
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(DOUBLE).eval()
        for _ in range(2)
    )
    other[1].running_mean.fill_(0.5)
    state = {prefix + name: x for name, x in other.state_dict().items()}
    x, y = batch()
    exact = CE(other(x), y).item()
    own = nn.Sequential()
    own.add_module("module", model)  # the model has a module of this name itself
    line = loss_landscape(
        own if wrapped else model, CE, (x, y), towards(state), span=(0, 1), points=2
    )
    assert line.values[0, -1] == pytest.approx(exact, rel=1e-12)
