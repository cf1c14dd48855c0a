"""What a forward pass or data read from elsewhere is followed, or refused by name."""

from functools import partial

import numpy as np
import pytest
import torch
from support.networks import CLASSES, DOUBLE, relative
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from matfree_torch import activation_hessian, batch_jackknife, fisher, ggn, hessian

CE = nn.CrossEntropyLoss()
SETTINGS = {"scale": 1.0}
FACTOR = torch.ones(4, dtype=DOUBLE)
ELSEWHERE = nn.Linear(4, 4, dtype=DOUBLE)


@pytest.fixture(autouse=True)
def _original_values():
    """Restore what the tests change outside of models."""
    SETTINGS["scale"] = 1.0
    FACTOR.data.fill_(1)
    OfClass.factor = torch.ones(4, dtype=DOUBLE)
    ELSEWHERE.load_state_dict(layer().state_dict())


def points(samples=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, dtype=DOUBLE, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def batches():
    x, y = points()
    return [(x[:3], y[:3]), (x[3:], y[3:])]


def strategy(name):
    return lambda model, data: hessian(model, CE, data, strategy=name)


OPERATORS = {
    **{name: strategy(name) for name in ("auto", "recompute", "forward", "folded")},
    "finite-difference": strategy("finite-difference"),
    "ggn": lambda model, data: ggn(model, CE, data),
    "empirical Fisher": lambda model, data: fisher(model, CE, data, kind="empirical"),
    "activations": lambda model, data: activation_hessian(model, CE, data, modules=nn.Linear),
}


class Net(nn.Module):
    """Two layers; ``middle`` is computed between them from something that is not registered."""

    def __init__(self, kept=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4, dtype=DOUBLE), nn.Linear(4, CLASSES, dtype=DOUBLE)
        self.kept = kept

    def forward(self, x):
        return self.last(self.middle(torch.tanh(self.first(x))))


class Owner:
    """An object of the user's own that is no module."""

    def __init__(self, module):
        self.module = module

    def __call__(self, h):
        return self.module(h)


class Slotted:
    __slots__ = ("module",)

    def __init__(self, module):
        self.module = module


class InList(Net):
    def middle(self, h):
        for module in self.kept:
            h = module(h)
        return h


class InDictionary(Net):
    def middle(self, h):
        return self.kept["layer"](h)


class Called(Net):
    def middle(self, h):
        return self.kept(h)


class InSlot(Net):
    def middle(self, h):
        return self.kept.module(h)


class Global(Net):
    def middle(self, h):
        return ELSEWHERE(h) * FACTOR * SETTINGS["scale"]


class OfClass(Net):
    factor = torch.ones(4, dtype=DOUBLE)

    def middle(self, h):
        return self.factor * h


def layer():
    torch.manual_seed(3)
    return nn.Linear(4, 4, dtype=DOUBLE)


def with_closure():
    module, model = layer(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    model.to(DOUBLE)[1].register_forward_hook(lambda owner, args, h: module(h))
    return model, lambda: module.weight.data.mul_(3)


def following(kind, kept, change):
    def make():
        model = kind(kept())
        return model, lambda: change(model)

    return make


def triple(x):
    x.data.mul_(3)


def triple_scale():
    SETTINGS["scale"] *= 3


def replace_factor(model):
    OfClass.factor = OfClass.factor * 3


READ = {
    "list": following(InList, lambda: [layer(), nn.Tanh()], lambda m: triple(m.kept[0].weight)),
    "replaced in a list": following(
        InList,
        lambda: [layer(), nn.Tanh()],
        lambda m: setattr(m.kept[0], "weight", nn.Parameter(3 * m.kept[0].weight.data)),
    ),
    "longer list": following(InList, lambda: [layer()], lambda m: m.kept.append(nn.Tanh())),
    "dictionary": following(
        InDictionary, lambda: {"layer": layer()}, lambda m: triple(m.kept["layer"].bias)
    ),
    "object": following(Called, lambda: Owner(layer()), lambda m: triple(m.kept.module.weight)),
    "slots": following(InSlot, lambda: Slotted(layer()), lambda m: triple(m.kept.module.weight)),
    "hook": with_closure,
    "global module": following(Global, lambda: None, lambda _: triple(ELSEWHERE.weight)),
    "global tensor": following(Global, lambda: None, lambda _: triple(FACTOR)),
    "global number": following(Global, lambda: None, lambda _: triple_scale()),
    "class": following(OfClass, lambda: None, lambda m: triple(m.factor)),
    "replaced in a class": following(OfClass, lambda: None, replace_factor),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("name", OPERATORS)
def test_what_a_forward_pass_reads_from_elsewhere_is_followed(name, kind):
    model, change = READ[kind]()
    A = OPERATORS[name](model, points())
    X = A.space.probes(2, seed=0)
    before = A @ X
    change()
    anew = OPERATORS[name](model, points()) @ X
    assert relative(A @ X, anew) < 1e-12
    assert relative(anew, before) > 1e-6


def test_numbers_in_a_long_list_are_followed_at_a_bounded_cost():
    class Scheduled(Net):
        def middle(self, h):
            return self.kept[70_000] * h

    model = Scheduled([1.0] * 100_000)
    H = hessian(model, CE, points())
    before = H.to_dense()
    model.kept[70_000] = 2.0
    assert relative(H.to_dense(), hessian(model, CE, points()).to_dense()) < 1e-12
    assert relative(H.to_dense(), before) > 1e-6


DROPOUTS = {
    "list": lambda: InList([nn.Dropout(0.5)]),
    "nested": lambda: InList([nn.Sequential(nn.Tanh(), nn.Dropout(0.5))]),
    "dictionary": lambda: InDictionary({"layer": nn.Dropout(0.5)}),
    "object": lambda: Called(Owner(nn.Dropout(0.5))),
    "function": lambda: Called(partial(nn.Dropout.__call__, nn.Dropout(0.5))),
    "slots": lambda: InSlot(Slotted(nn.Dropout(0.5))),
}


@pytest.mark.parametrize("kind", DROPOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_layer_that_model_eval_does_not_reach_is_refused_if_it_draws_numbers(name, kind):
    model = DROPOUTS[kind]().eval()
    with pytest.raises(ValueError, match=r"Dropout layer .*\(not registered\).*its own eval\(\)"):
        OPERATORS[name](model, points()).to_dense()


@pytest.mark.parametrize("name", OPERATORS)
def test_such_a_layer_may_change_its_mode_later(name):
    dropout = nn.Dropout(0.5).eval()
    model = InList([dropout])
    A = OPERATORS[name](model, points())
    before = A.to_dense()
    dropout.train()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Dropout layer 'kept.0 \(not registered\)'"):
            A.to_dense()
    dropout.eval()
    assert relative(A.to_dense(), before) < 1e-12


def test_a_layer_that_no_forward_pass_calls_is_not_refused():
    model = OfClass([nn.Dropout(0.5)])
    exact = hessian(OfClass(), CE, points()).to_dense()
    assert relative(hessian(model, CE, points()).to_dense(), exact) < 1e-12


@pytest.mark.parametrize("name", OPERATORS)
def test_running_statistics_of_a_layer_in_a_list_are_left_unchanged(name):
    norm = nn.BatchNorm1d(4, dtype=DOUBLE)
    model = InList([norm]).eval()
    A = OPERATORS[name](model, points())
    A.to_dense()
    A.to_dense()
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(4, dtype=DOUBLE))


def test_a_layer_found_only_when_it_is_called_is_treated_like_others():
    hidden = {"norm": nn.BatchNorm1d(4, dtype=DOUBLE), "linear": layer()}

    class Computed(Net):
        def middle(self, h):  # no name in the code says where the layers are
            found = __import__("builtins").__dict__["test_layers"]
            return found["linear"](found["norm"](h))

    import builtins

    builtins.test_layers = hidden
    try:
        model = Computed()
        H = hessian(model, CE, points())
        H.to_dense()
        assert int(hidden["norm"].num_batches_tracked) == 0
        hidden["linear"].weight.data.mul_(3)
        assert relative(H.to_dense(), hessian(model, CE, points()).to_dense()) < 1e-12
    finally:
        del builtins.test_layers


class Own(Dataset):
    """A data set of the user's own."""

    def __init__(self):
        self.x, self.y = points()
        self.reads, self.cache = 0, {}

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        self.cache[i] = self.x[i]
        return SETTINGS["scale"] * self.x[i], self.y[i]


class InArrays(Own):
    def __init__(self):
        super().__init__()
        self.x, self.y = self.x.numpy().copy(), self.y.numpy().copy()


class InLists(Own):
    def __init__(self):
        super().__init__()
        self.x, self.y = list(self.x), self.y.tolist()


class Stream(IterableDataset):
    def __init__(self):
        self.x, self.y = points()

    def __iter__(self):
        return zip(self.x, self.y, strict=True)


class Loader:
    """An object that can be iterated over repeatedly."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return (tuple(batch) for batch in DataLoader(self.dataset, batch_size=4))


class Indexed:
    """A sequence of batches."""

    def __init__(self):
        self.x, self.y = points()

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.x[4 * i : 4 * i + 4], self.y[4 * i : 4 * i + 4]


def collate(samples):
    x, y = default_collate(samples)
    return SETTINGS["scale"] * x, y


def loading(dataset, change, **options):
    data = DataLoader(dataset, batch_size=4, **options)
    return data, lambda: change(dataset)


def triple_inputs(dataset):
    np.multiply(dataset.x, 3, out=dataset.x.numpy() if torch.is_tensor(dataset.x) else dataset.x)


def part_of(dataset, change):
    part = Subset(dataset, [0, 1, 2, 3, 4, 6])
    return DataLoader(part, batch_size=3), lambda: change(part)


DATA = {
    "own": lambda: loading(Own(), triple_inputs),
    "arrays": lambda: loading(InArrays(), triple_inputs),
    "lists": lambda: loading(InLists(), lambda own: [triple(x) for x in own.x]),
    "replaced": lambda: loading(Own(), lambda own: setattr(own, "x", 3 * own.x)),
    "global": lambda: loading(Own(), lambda _: triple_scale()),
    "collate_fn": lambda: loading(
        TensorDataset(*points()), lambda _: triple_scale(), collate_fn=collate
    ),
    "stream": lambda: loading(Stream(), triple_inputs),
    "subset": lambda: part_of(Own(), lambda part: triple_inputs(part.dataset)),
    "indices": lambda: part_of(Own(), lambda part: part.indices.__setitem__(0, 7)),
    "concatenation": lambda: loading(
        ConcatDataset([TensorDataset(*points()), Own()]),
        lambda both: triple(both.datasets[0].tensors[0]),
    ),
    "re-iterable": lambda: (lambda own: (Loader(own), lambda: triple_inputs(own)))(Own()),
    "sequence": lambda: (lambda own: (own, lambda: triple_inputs(own)))(Indexed()),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "activations"])
def test_data_sets_of_the_users_own_are_followed(name, kind):
    data, change = DATA[kind]()
    model = OfClass()
    A = OPERATORS[name](model, data)
    X = A.space.probes(2, seed=0)
    before = [A @ X for _ in range(3)]
    assert relative(before[2], before[0]) < 1e-12
    change()
    now = list(data) if hasattr(data, "__iter__") else [data[0], data[1]]
    anew = OPERATORS[name](model, now)
    assert relative(A @ X, anew @ X) < 1e-12
    assert relative(A @ X, before[0]) > 1e-6
    if name == "auto":
        jackknife = batch_jackknife(A, num_probes=2, seed=0).value
        assert jackknife == pytest.approx(batch_jackknife(anew, num_probes=2, seed=0).value)


class Counting(Own):
    """The samples depend on how often they were read."""

    def __getitem__(self, i):
        self.reads += 1
        return (1 + 0.01 * self.reads) * self.x[i], self.y[i]


class Augmented(Own):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, i):
        return self.x[i] * float(self.generator.standard_normal()), self.y[i]


@pytest.mark.parametrize("kind", [Counting, Augmented])
@pytest.mark.parametrize("name", ["auto", "recompute", "ggn"])
def test_data_that_differ_in_every_pass_are_refused_although_their_attributes_change(name, kind):
    A = OPERATORS[name](OfClass(), DataLoader(kind(), batch_size=4))
    with pytest.raises(ValueError, match="two passes over the data differ"):
        torch.stack([A.to_dense(), A.to_dense()])


def test_reading_data_that_keep_a_cache_does_not_discard_graphs():
    H = hessian(OfClass(), CE, DataLoader(Own(), batch_size=4))
    H.to_dense()
    version = H.objective.state.version
    H.to_dense()
    assert H.objective.state.version == version


def test_a_data_set_of_samples_is_refused_with_the_loader_that_it_needs():
    with pytest.raises(TypeError, match=r"a data set of samples.*DataLoader\(data"):
        hessian(OfClass(), CE, Own())
