"""What a model or a loss keeps between calls is restored, or refused by name."""

import random
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from support.networks import CLASSES, DOUBLE, relative
from torch import nn
from torch.nn.utils import parametrizations

import matfree as mf
from matfree_torch import activation_hessian, fisher, ggn, hessian, hessian_of, loss_landscape

CE = nn.CrossEntropyLoss()


def data(samples=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, dtype=DOUBLE, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


class Recurrent(nn.Module):
    """A network whose hidden state is kept in an attribute, starting with ``initial``."""

    def __init__(self, initial):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.initial = initial
        self.reset()

    def reset(self):
        self.state = self.initial()

    def read(self):
        return self.state

    def write(self, h):
        self.state = h

    def forward(self, x):
        before = self.read()
        h = torch.tanh(self.inner(x)) + (0.5 * before if before is not None else 0.0)
        self.write(h)
        return self.head(h)


class InDictionary(Recurrent):
    def read(self):
        return self.state.get("h")

    def write(self, h):
        self.state["h"] = h


class InSequence(Recurrent):
    def read(self):
        return self.state[-1] if self.state else None

    def write(self, h):
        self.state.append(h)


class Memory:
    def __init__(self):
        self.hidden = [None]


class InObject(Recurrent):
    def read(self):
        return self.state.hidden[0]

    def write(self, h):
        self.state.hidden[0] = h


class InPlace(Recurrent):
    def write(self, h):
        self.state.mul_(0.5).add_(h.detach().mean())


class Counting(Recurrent):
    def read(self):
        return torch.full((), float(self.state), dtype=DOUBLE)

    def write(self, h):
        self.state += 1


class InArray(Counting):
    def read(self):
        return torch.full((), self.state[0], dtype=DOUBLE)

    def write(self, h):
        self.state[0] += 1


class Late(Recurrent):
    """The attribute appears in the first call."""

    def reset(self):
        self.__dict__.pop("state", None)

    def read(self):
        return getattr(self, "state", None)


class LateBuffer(Late):
    def reset(self):
        self._buffers.pop("state", None)

    def write(self, h):
        if "state" in self._buffers:
            self.state = h.detach()
        else:
            self.register_buffer("state", h.detach())


def generator(kind):
    return {
        "torch": lambda: torch.Generator().manual_seed(3),
        "numpy": lambda: np.random.default_rng(3),
        "python": lambda: random.Random(3),
    }[kind]


class Drawing(Recurrent):
    """A network that draws from a random generator of its own."""

    def read(self):
        if isinstance(self.state, torch.Generator):
            return torch.rand((), generator=self.state, dtype=DOUBLE)
        return torch.full((), self.state.random(), dtype=DOUBLE)

    def write(self, h):
        pass


STATES = {
    "None": partial(Recurrent, lambda: None),
    "number": partial(Recurrent, lambda: 0.0),
    "tensor": partial(Recurrent, lambda: torch.zeros((), dtype=DOUBLE)),
    "tensor in place": partial(InPlace, lambda: torch.zeros((), dtype=DOUBLE)),
    "dictionary": partial(InDictionary, dict),
    "list": partial(InSequence, list),
    "queue": partial(InSequence, lambda: deque(maxlen=3)),
    "object": partial(InObject, Memory),
    "counter": partial(Counting, lambda: 0),
    "array": partial(InArray, lambda: np.zeros(1)),
    "late": partial(Late, lambda: None),
    "late buffer": partial(LateBuffer, lambda: None),
    **{
        f"{kind} generator": partial(Drawing, generator(kind))
        for kind in ("torch", "numpy", "python")
    },
}
STRATEGIES = ("auto", "recompute", "forward", "folded", "finite-difference")


def stateful(name):
    torch.manual_seed(0)
    return STATES[name]().to(DOUBLE)


def by_hand(model, loss=CE):
    """The Hessian of one call after a reset, by double backward."""
    model.reset()
    x, y = data()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in first])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    model.reset()
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def observed(model):
    """The state as numbers, which has to be the same before and after a call."""
    state = model.__dict__.get("state", model._buffers.get("state", "nothing"))
    if isinstance(state, torch.Generator):
        return state.get_state().tolist()
    if isinstance(state, np.random.Generator):
        return state.bit_generator.state["state"]
    if isinstance(state, random.Random):
        return state.getstate()
    return repr(vars(state) if isinstance(state, Memory) else state)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", STATES)
def test_every_product_is_that_of_the_first_call(name, strategy):
    model = stateful(name)
    exact, before = by_hand(model), observed(model)
    H = hessian(model, CE, data(), strategy=strategy)
    X = H.space.probes(2, seed=0)
    if (name, strategy) == ("torch generator", "folded"):
        with pytest.raises(mf.OperatorError, match=r"cannot fold .* with a torch.Generator"):
            H @ X
        return
    for _ in range(2):
        assert relative(H @ X, exact @ X) < (1e-6 if strategy == "finite-difference" else 1e-12)
        assert observed(model) == before
    x, y = data()
    assert H.loss() == pytest.approx(CE(model(x), y).item())


@pytest.mark.parametrize("name", STATES)
def test_other_operators_and_landscapes_leave_the_state_as_it_was(name):
    model = stateful(name)
    before = observed(model)
    for make in (ggn, fisher, partial(activation_hessian, modules=nn.Linear)):
        A = make(model, CE, data())
        X = A.space.probes(1, seed=0)
        assert torch.equal(A @ X, A @ X)
        assert observed(model) == before
    loss_landscape(model, CE, data(), "gradient", points=3)
    assert observed(model) == before


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_the_global_random_generators_are_restored(source):
    draws = {
        "torch": lambda: torch.rand(()).item(),
        "numpy": np.random.rand,
        "python": random.random,
    }

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return x + draws[source]() * torch.tanh(self.inner(x))

    torch.manual_seed(0)
    model = nn.Sequential(Skip(), Skip(), nn.Linear(3, CLASSES)).to(DOUBLE)
    H = hessian(model, CE, data(), strategy="recompute")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    traces = {mf.trace(H, num_probes=2, seed=0).value for _ in range(3)}
    traces.add(mf.trace(hessian(model, CE, data()), num_probes=2, seed=0).value)
    assert len(traces) == 1
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


COUNTS = [0]


class Outside(nn.Module):
    """A module whose state is outside of every module."""

    def forward(self, x):
        COUNTS[0] += 1
        return x * (1 + 0.1 * COUNTS[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_state_that_cannot_be_restored_is_refused_with_the_name_of_the_module(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Outside(), nn.Linear(4, CLASSES)).to(DOUBLE)
    H = hessian(model, CE, data(), strategy=strategy)
    for _ in range(2):
        with pytest.raises(mf.OperatorError, match=r"two evaluations .* Outside '2' keeps a state"):
            H @ H.space.probes(1, seed=0)
    with pytest.raises(mf.OperatorError, match="Outside '2' keeps a state"):
        ggn(model, CE, data()).to_dense()
    with pytest.raises(mf.OperatorError, match="Outside '2' keeps a state"):
        activation_hessian(model, CE, data(), modules="3").to_dense()


class Critic(nn.Module):
    def __init__(self, rate=0.0):
        super().__init__()
        first = parametrizations.spectral_norm(nn.Linear(CLASSES, 4))
        layers = nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(rate), nn.Linear(4, 1)
        self.layers = nn.Sequential(first, *layers)

    def forward(self, outputs, targets):
        return (self.layers(outputs) - targets[:, None]).square().mean()


LOSSES = {
    "module": lambda critic: critic,
    "closure": lambda critic: lambda outputs, targets: critic(outputs, targets),
    "partial": lambda critic: partial(lambda c, outputs, targets: c(outputs, targets), critic),
    "method": lambda critic: critic.forward,
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_modules_of_the_loss_are_left_unchanged(kind, strategy):
    torch.manual_seed(0)
    critic = Critic().to(DOUBLE)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).to(DOUBLE)
    before = {name: x.clone() for name, x in critic.state_dict().items()}
    H = hessian(model, LOSSES[kind](critic), data(), strategy=strategy)
    X = H.space.probes(1, seed=0)
    assert torch.equal(H @ X, H @ X)
    H.loss()
    H.gradient()
    assert all(torch.equal(x, before[name]) for name, x in critic.state_dict().items())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_followed_like_the_model(kind):
    torch.manual_seed(0)
    critic = Critic().to(DOUBLE).eval()
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).to(DOUBLE)
    loss = LOSSES[kind](critic)
    H = hessian(model, loss, data())
    H.to_dense()
    critic.layers[4].weight.data.mul_(2)
    critic.layers[1].running_var.data.mul_(3)
    assert relative(H.to_dense(), hessian(model, loss, data()).to_dense()) < 1e-12
    critic.layers[4] = nn.Linear(4, 1, dtype=DOUBLE)
    assert relative(H.to_dense(), hessian(model, loss, data()).to_dense()) < 1e-12


@pytest.mark.parametrize("kind", LOSSES)
def test_layers_of_the_loss_are_checked_like_those_of_the_model(kind):
    torch.manual_seed(0)
    critic = Critic(rate=0.3).to(DOUBLE)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).to(DOUBLE)
    loss, (x, y) = LOSSES[kind](critic), data()
    with pytest.raises(ValueError, match=r"Dropout layer '.*layers\.3 \(loss\)'.*eval"):
        hessian(model, loss, (x, y))
    critic.layers[3].eval()
    with pytest.warns(UserWarning, match=r"BatchNorm1d layer '.*layers\.1 \(loss\)'"):
        H = hessian(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
    critic.train()
    with pytest.raises(ValueError, match=r"Dropout layer '.*layers\.3 \(loss\)'.*eval"):
        H.to_dense()


NAN = {
    **{
        s: partial(lambda s, model, loss, batch: hessian(model, loss, batch, strategy=s), s)
        for s in STRATEGIES
    },
    "ggn": ggn,
    "Fisher": fisher,
    "activations": partial(activation_hessian, modules=nn.Linear),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAN)
def test_nan_or_infinity_in_the_loss_is_refused_even_if_the_curvature_is_finite(name, value):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1)).to(DOUBLE)
    x, y = data()[0], torch.ones(6, 1, dtype=DOUBLE)
    A = NAN[name](model, nn.MSELoss(), (x, y))
    A.to_dense()
    y[2] = value
    with pytest.raises(mf.NonFiniteError, match=f"the loss of a batch is {value}.*targets"):
        A.to_dense()
    with pytest.raises(mf.NonFiniteError, match=f"the loss of a batch is {value}"):
        NAN[name](model, nn.MSELoss(), (x, y)).to_dense()
    y[2] = 1.0
    assert bool(A.to_dense().isfinite().all())


def test_a_function_whose_value_is_nan_is_refused():
    H = hessian_of(lambda t: (t["x"] ** 2).sum() + torch.nan, {"x": torch.ones(2)})
    with pytest.raises(mf.NonFiniteError, match="the loss of a batch is nan"):
        H.to_dense()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("make", [hessian, ggn, fisher])
def test_losses_gradients_and_landscapes_refuse_a_loss_that_is_not_finite(make, value):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1)).to(DOUBLE)
    x, y = data()[0], torch.ones(6, 1, dtype=DOUBLE)
    y[2] = value
    message = f"the loss of a batch is {value}.*targets"
    for batches in ((x, y), [(x[3:], y[3:]), (x[:3], y[:3])]):
        A = make(model, nn.MSELoss(), batches)
        step = torch.zeros(A.shape[0], dtype=DOUBLE)
        for quantity in (A.loss, A.gradient, partial(A.loss, step)):
            with pytest.raises(mf.NonFiniteError, match=message):
                quantity()
        with pytest.raises(mf.NonFiniteError, match=message):
            loss_landscape(model, nn.MSELoss(), batches, "random", points=3, seed=0)
    y[2] = 1.0
    assert A.loss() == pytest.approx(nn.functional.mse_loss(model(x), y).item())
