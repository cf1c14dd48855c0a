"""Compiled and scripted models and losses have the curvature of the code that was compiled."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, autograd_hessian, batch, relative  # noqa: E402
from torch import nn  # noqa: E402

from matfree_torch import ggn, hessian, loss_landscape  # noqa: E402

CE = nn.CrossEntropyLoss()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)


def compiled_module(model):
    model[0] = torch.compile(model[0], backend="aot_eager")
    return model


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def compiled_submodule_in_place(model):
    model[2].compile(backend="aot_eager")
    return model


COMPILED = {
    "wrapper": lambda model: torch.compile(model, backend="aot_eager"),
    "module": compiled_module,
    "in place": compiled_in_place,
    "module in place": compiled_submodule_in_place,
}


@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("strategy", ["auto", "forward", "finite-difference"])
def test_a_compiled_model_has_the_hessian_of_the_model(compiled, strategy):
    exact = autograd_hessian(mlp(), CE, batch())
    H = hessian(compiled(mlp()), CE, batch(), strategy=strategy)
    tolerance = 1e-6 if strategy == "finite-difference" else 1e-10
    assert relative(H.to_dense(), exact) < tolerance
    value = CE(mlp()(batch()[0]), batch()[1]).item()
    assert H.loss() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_loss_has_the_curvature_of_the_loss(backend):
    loss = torch.compile(lambda z, y: nn.functional.cross_entropy(z, y), backend=backend)
    model, data = mlp(), batch()
    loss(
        torch.zeros(len(data[1]), 3, dtype=DOUBLE), data[1]
    )  # compiled code may already be in the cache
    exact = autograd_hessian(model, CE, data)
    assert relative(hessian(model, loss, data).to_dense(), exact) < 1e-10
    assert relative(ggn(model, loss, data).to_dense(), ggn(model, CE, data).to_dense()) < 1e-10
    values = loss_landscape(model, loss, data, "random", points=3, seed=0).values
    assert (
        relative(
            torch.tensor(values),
            torch.tensor(loss_landscape(model, CE, data, "random", points=3, seed=0).values),
        )
        < 1e-12
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_buffers_of_a_scripted_model_are_the_same_tensors_afterwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    exact = autograd_hessian(copy.deepcopy(model).train(), CE, batch())
    scripted = torch.jit.script(model.train())
    buffers = {name: (b.data_ptr(), b.clone()) for name, b in scripted.state_dict().items()}
    assert relative(hessian(scripted, CE, batch()).to_dense(), exact) < 1e-10
    for name, b in scripted.state_dict().items():
        assert b.data_ptr() == buffers[name][0]
        assert torch.equal(b, buffers[name][1])
