"""Operators follow their model: replaced tensors, values, buffers, modes, and data in memory."""

import copy
import warnings

import numpy as np
import pytest
import torch
from support.networks import CLASSES, DOUBLE, relative
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

import matfree as mf
from matfree_torch import (
    Follower,
    activation_hessian,
    activation_traces,
    batch_jackknife,
    fisher,
    ggn,
    hessian,
    hessian_of,
)
from matfree_torch.distributed.tensor_hash import TensorHash, hash_of

CE = nn.CrossEntropyLoss()


def net(seed=0, hidden=4):
    torch.manual_seed(seed)
    layers = nn.Linear(3, hidden), nn.Tanh(), nn.BatchNorm1d(hidden), nn.Linear(hidden, CLASSES)
    model = nn.Sequential(*layers).to(DOUBLE).eval()
    with torch.no_grad():
        model[2].running_var.uniform_(0.5, 2)
    return model


def points(samples=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, dtype=DOUBLE, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def halves():
    x, y = points()
    return [(x[:3], y[:3]), (x[3:], y[3:])]


def function_of(model, data):
    x, y = data if isinstance(data, tuple) else map(torch.cat, zip(*data, strict=True))
    return lambda tensors: CE(functional_call(model, tensors, (x,)), y)


def of_function(model, data):
    return hessian_of(function_of(model, data), dict(model.named_parameters()))


def strategy(name):
    return lambda model, data: hessian(model, CE, data, strategy=name)


MAKERS = {
    **{name: strategy(name) for name in ("auto", "recompute", "forward", "folded")},
    "finite-difference": strategy("finite-difference"),
    "nothing kept": lambda model, data: hessian(model, CE, data, memory=0),
    "block": lambda model, data: hessian(model, CE, data).block("3.*", "0.*"),
    "ggn": lambda model, data: ggn(model, CE, data),
    "exact Fisher": lambda model, data: fisher(model, CE, data),
    "Monte Carlo Fisher": lambda model, data: fisher(model, CE, data, kind="monte-carlo", seed=0),
    "empirical Fisher": lambda model, data: fisher(model, CE, data, kind="empirical"),
    "function": of_function,
}
ACTIVATIONS = {
    "activations": lambda model, data: activation_hessian(model, CE, data, modules=nn.Linear),
    "outputs": lambda model, data: activation_hessian(model, CE, data, modules="0", at="output"),
}
FOLLOWING = {**MAKERS, **ACTIVATIONS}


def load(model):
    state = {name: (1.5 * x if x.is_floating_point() else x) for name, x in _state(model).items()}
    model.load_state_dict(state, assign=True)


def _state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def through_numpy(model):
    model[0].weight.detach().numpy()[0, 0] += 1.0


def swap_average(model):
    for p in model.parameters():
        p.data.copy_(torch.full_like(p, 0.3).cumsum(0))


def mask(model):
    model[0].weight.data[model[0].weight.data.abs() < 0.3] = 0


def foreach(model):
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 1.2)


VALUES = {
    "data.add_": lambda model: [p.data.add_(0.3) for p in model.parameters()],
    "one entry": lambda model: model[3].weight.data[0, 0].add_(1e-2),
    "two signs": lambda model: model[3].weight.data[:2, 0].neg_(),
    "swapped rows": lambda model: model[0].weight.data.copy_(model[0].weight.data.flip(0)),
    "NumPy view": through_numpy,
    "lerp_": lambda model: [p.data.lerp_(torch.ones_like(p), 0.5) for p in model.parameters()],
    "mask": mask,
    "average": swap_average,
    "data replaced": lambda model: setattr(model[0].weight, "data", 2 * model[0].weight.data),
    "detached": lambda model: model[0].bias.detach().add_(0.5),
    "foreach": foreach,
    "buffer": lambda model: model[2].running_var.data.mul_(3),
    "buffer replaced": lambda model: setattr(model[2], "running_mean", torch.ones(4, dtype=DOUBLE)),
}
REPLACED = {
    "state dict": load,
    "head": lambda model: model.__setitem__(3, nn.Linear(4, CLASSES, dtype=DOUBLE)),
    "parameter": lambda model: setattr(model[0], "weight", nn.Parameter(2 * model[0].weight.data)),
    "activation": lambda model: model.__setitem__(1, nn.Softplus()),
}


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


REPLACED["class"] = lambda model: setattr(model, "__class__", Doubled)


def assert_follows(make, data, change):
    model = net()
    A = make(model, data)
    before = A @ A.domain.probes(2, seed=3)
    change(model)
    X = A.domain.probes(2, seed=3)
    after = A @ X
    assert relative(after, make(copy.deepcopy(model), data) @ X) < 1e-12
    assert relative(after, before) > 1e-6


@pytest.mark.parametrize("name", FOLLOWING)
def test_products_are_those_of_the_present_values(name):
    for change in VALUES.values() if name in ("auto", "activations") else [VALUES["data.add_"]]:
        assert_follows(FOLLOWING[name], points(), change)


@pytest.mark.parametrize("change", VALUES)
def test_a_graph_of_several_batches_is_not_used_at_other_values(change):
    assert_follows(MAKERS["auto"], halves(), VALUES[change])


@pytest.mark.filterwarnings("ignore:the model contains ReLU")
@pytest.mark.parametrize("name", [name for name in FOLLOWING if name != "function"])
@pytest.mark.parametrize("change", REPLACED)
def test_tensors_and_modules_of_the_same_names_and_shapes_are_adopted(name, change):
    if name == "finite-difference":
        assert_follows(FOLLOWING["auto"], halves(), REPLACED[change])
    assert_follows(FOLLOWING[name], points(), REPLACED[change])


def untie(model):
    model[3].weight = nn.Parameter(model[3].weight.detach().clone())


OTHERS = {
    "parametrization": (
        lambda model: parametrizations.weight_norm(model[0]),
        r"'0.weight' \(4, 3\) float64 on cpu is missing",
    ),
    "pruned": (
        lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
        "'0.weight_orig' .* is new",
    ),
    "wider head": (
        lambda model: model.__setitem__(3, nn.Linear(4, 5, dtype=DOUBLE)),
        r"'3.weight' is \(5, 4\) float64 on cpu instead of \(3, 4\)",
    ),
    "removed": (lambda model: model.__delitem__(3), "'3.weight' .* is missing"),
    "added": (
        lambda model: model.append(nn.Linear(CLASSES, CLASSES, dtype=DOUBLE)),
        "'4.weight' .* is new",
    ),
    "precision": (lambda model: model.float(), "float32 on cpu instead of .* float64"),
    "shared": (
        lambda model: setattr(model[2], "bias", model[0].bias),
        "'2.bias' .* is shared with another one",
    ),
}


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("block", "function")])
def test_other_parameters_are_refused_by_name(name, change):
    model = net()
    A = MAKERS[name](model, points())
    X = A.domain.probes(1, seed=0)
    A @ X
    apply, message = OTHERS[change]
    apply(model)
    quantities = [lambda: A @ X, lambda: A @ X, A.gradient, A.loss, lambda: A.block("0.*") @ X[:16]]
    for quantity in quantities:
        with pytest.raises(mf.OperatorError, match=message):
            quantity()


def test_a_parametrization_that_is_removed_again_is_followed():
    model, data = net(), points()
    H = hessian(model, CE, data)
    x = H.space.probes(1, seed=0)[:, 0]
    before = H @ x
    parametrizations.orthogonal(model[3])
    with pytest.raises(
        mf.OperatorError, match=r"'3\.parametrizations\.weight\.original' .* is new"
    ):
        H @ x
    parametrize.remove_parametrizations(model[3], "weight")  # which moves it behind the bias
    assert relative(H @ x, before) > 1e-6
    anew = hessian(model, CE, data)
    assert anew.names != H.names
    exact = H.flatten(anew.unflatten(anew @ anew.flatten(H.unflatten(x))))
    assert relative(H @ x, exact) < 1e-12


def test_parameters_outside_of_the_chosen_ones_may_change():
    model, data = net(), points()
    H = hessian(model, CE, data, params="0.*")
    H.to_dense()
    model[3] = nn.Linear(4, 5, dtype=DOUBLE)
    exact = hessian(copy.deepcopy(model), CE, data, params="0.*").to_dense()
    assert relative(H.to_dense(), exact) < 1e-12


@pytest.mark.parametrize("name", ["auto", "folded", "ggn", "empirical Fisher", "activations"])
def test_a_method_that_is_replaced_in_a_class_is_followed(name, monkeypatch):
    class Own(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    model = net()
    model[1] = Own()
    A = FOLLOWING[name](model, points())
    before = A.to_dense()
    monkeypatch.setattr(Own, "forward", lambda self, x: torch.sigmoid(x))
    assert relative(A.to_dense(), FOLLOWING[name](model, points()).to_dense()) < 1e-12
    assert relative(A.to_dense(), before) > 1e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_other_activations_are_refused_by_name(name):
    model = net()
    A = ACTIVATIONS[name](model, points())
    A.to_dense()
    model[0], model[2] = nn.Linear(3, 5, dtype=DOUBLE), nn.Identity()
    model[3] = nn.Linear(5, CLASSES, dtype=DOUBLE)
    for _ in range(2):
        with pytest.raises(mf.OperatorError, match=r"activations are no longer those.*'[03]'"):
            A.to_dense()


def test_the_parameters_of_a_function_follow_the_mapping():
    point = {"x": torch.tensor([1.0, 2.0], dtype=DOUBLE)}
    H = hessian_of(lambda t: (t["x"] ** 4).sum(), point)
    assert torch.equal(H.to_dense().diagonal(), 12 * point["x"] ** 2)
    point["x"] = torch.tensor([3.0, 0.5], dtype=DOUBLE)
    assert torch.equal(H.to_dense().diagonal(), 12 * point["x"] ** 2)
    point["x"].data = torch.tensor([1.0, 0.5], dtype=DOUBLE)
    assert torch.equal(H.to_dense().diagonal(), 12 * point["x"] ** 2)
    point["x"] = torch.ones(3, dtype=DOUBLE)
    with pytest.raises(mf.OperatorError, match=r"'x' is \(3,\) .* instead of \(2,\)"):
        H.to_dense()


def test_a_function_of_a_network_whose_parameters_were_replaced_is_refused():
    model = net()
    H = of_function(model, points())
    H.to_dense()
    load(model)
    with pytest.raises(mf.OperatorError, match=r"'0.weight' .* has been replaced"):
        H.to_dense()


def test_followers_traces_and_jackknives_measure_the_present_model():
    model, batches = net(), halves()
    H = hessian(model, CE, batches)
    follower = Follower(H, 1, num_probes=2, seed=0)
    for change in (lambda _: None, load, VALUES["data.add_"]):
        change(model)
        follower.look()
        anew = hessian(copy.deepcopy(model), CE, batches)
        top = torch.linalg.eigvalsh(anew.to_dense()).abs().max().item()
        assert follower.history().values[-1, 0] == pytest.approx(top, rel=1e-4)
        jackknife = batch_jackknife(H, num_probes=2, seed=0).value
        assert jackknife == pytest.approx(batch_jackknife(anew, num_probes=2, seed=0).value)
        assert H.loss() == pytest.approx(anew.loss())
        assert relative(H.gradient(), anew.gradient()) < 1e-12


DATA = {
    "one batch": (points, lambda data: data[0].data.mul_(2)),
    "two batches": (halves, lambda data: data[1][0].data.mul_(2)),
    "NumPy view": (points, lambda data: data[0].numpy().__imul__(2)),
    "targets": (points, lambda data: data[1].data.copy_(data[1].flip(0))),
    "loader": (
        lambda: DataLoader(TensorDataset(*points()), batch_size=4),
        lambda data: data.dataset.tensors[0].data.mul_(2),
    ),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", ["auto", "ggn", "folded"])
def test_data_in_memory_may_change(name, kind):
    make, change = DATA[kind]
    model, data = net(), make()
    A = MAKERS[name](model, data)
    X = A.space.probes(2, seed=0)
    before = A @ X
    change(data)
    assert relative(A @ X, MAKERS[name](net(), data) @ X) < 1e-12
    if (name, kind) != ("ggn", "targets"):  # the Gauss-Newton matrix does not depend on them
        assert relative(A @ X, before) > 1e-6


class Weighted:
    """A loss with a tensor and a number as attributes."""

    def __init__(self):
        self.weight, self.scale = torch.ones(CLASSES, dtype=DOUBLE), 1.0

    def __call__(self, outputs, targets):
        return self.scale * nn.functional.cross_entropy(outputs, targets, weight=self.weight)


def test_what_a_loss_reads_may_change():
    weight, settings = torch.ones(CLASSES, dtype=DOUBLE), {"scale": 1.0}
    owner = Weighted()

    def closure(outputs, targets):
        value = nn.functional.cross_entropy(outputs, targets, weight=weight)
        return settings["scale"] * value

    def double_closure():
        weight.data[0] *= 3
        settings["scale"] = 2.0

    def double_owner():
        owner.weight.data[0] *= 3
        owner.scale = 2.0

    for loss, change in ((closure, double_closure), (owner, double_owner)):
        H = hessian(net(), loss, points())
        H.to_dense()
        change()
        assert relative(H.to_dense(), hessian(net(), loss, points()).to_dense()) < 1e-12


def with_dropout():
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, CLASSES)
    return nn.Sequential(*layers).to(DOUBLE).eval()


@pytest.mark.parametrize("name", [name for name in FOLLOWING if name != "block"])
def test_a_layer_that_draws_random_numbers_later_is_refused(name):
    model = with_dropout()
    A = FOLLOWING[name](model, points())
    X = A.domain.probes(1, seed=0)
    before = A @ X
    model.train()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Dropout layer '(model\.)?1.*eval"):
            A @ X
    model.eval()
    assert relative(A @ X, before) < 1e-12
    model[1].train()
    model[1].p = 0.0
    assert relative(A @ X, before) < 1e-12
    model[1].p = 0.5
    with pytest.raises(ValueError, match=r"Dropout layer '(model\.)?1"):
        A @ X


def test_batch_statistics_are_warned_of_when_they_begin():
    model, batches = net(), halves()
    H = hessian(model, CE, batches)
    H.to_dense()
    model.train()
    with pytest.warns(UserWarning, match="BatchNorm1d layer '2' is in training mode"):
        now = H.to_dense()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(H.to_dense(), now)
    with pytest.warns(UserWarning, match="BatchNorm1d layer '2' is in training mode"):
        anew = hessian(copy.deepcopy(model), CE, batches).to_dense()
    assert relative(now, anew) < 1e-12


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_every_bit_of_every_tensor_enters_the_hash():
    torch.manual_seed(0)
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = [torch.randint(0, 2, (5, 7)).to(kind) for kind in kinds]
    tensors += [torch.randn(70_000), torch.randn(6, 4).T, torch.randn(3, dtype=torch.complex64)]
    tensors += [torch.randn(4, 4).to_sparse(), torch.eye(3).to_sparse_csr(), torch.tensor(1.0)]
    whole = TensorHash([tensors, tensors[:2]])
    hashes = {whole.start()()}
    for x in tensors:
        values = x.values() if x.layout == torch.sparse_csr else x
        values = values._values() if values.layout == torch.sparse_coo else values
        for entry in (0, -1):
            flat = (values if values.is_contiguous() else values.T).detach().reshape(-1)
            flat = flat.view(torch.uint8)
            before = flat[entry].clone()
            flat[entry] = 1 - before if x.dtype == torch.bool else before + 1
            hashes.add(whole.start()())
            flat[entry] = before
    assert len(hashes) == 1 + 2 * len(tensors)
    assert whole.start()()[1] == hash_of(tensors[:2])


def test_signs_permutations_and_shifts_change_the_hash():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    variants = [x, -x, x[order], x.roll(1), x.flip(0), torch.where(order < 2, -x, x)]
    assert len({hash_of([y]) for y in variants}) == len(variants)
    assert hash_of([x.clone()]) == hash_of([x])


def test_matvecs_are_repeated_if_a_device_finds_other_values_only_afterwards(monkeypatch):
    monkeypatch.setattr(TensorHash, "asynchronous", property(lambda self: True))
    for name in ("auto", "ggn", "activations"):
        assert_follows(FOLLOWING[name], points(), VALUES["data.add_"])
    assert_follows(MAKERS["auto"], halves(), VALUES["one entry"])
    model, data = net(), points()
    H = hessian(model, CE, data)
    H.to_dense()
    data[0].data.mul_(2)
    assert relative(H.to_dense(), hessian(net(), CE, data).to_dense()) < 1e-12


def test_activation_traces_are_those_of_the_present_model():
    model, data = net(), points()
    A = activation_hessian(model, CE, data, modules=nn.Linear)
    for change in (load, VALUES["data.add_"]):
        change(model)
        found = {name: trace.value for name, trace in A.traces(seed=0).items()}
        exact = activation_traces(copy.deepcopy(model), CE, data, modules=nn.Linear, seed=0)
        assert found == pytest.approx({name: trace.value for name, trace in exact.items()})
        assert np.isfinite(list(found.values())).all()
