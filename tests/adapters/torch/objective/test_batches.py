"""What is one batch: pairs, mappings and objects in every structure, with their types kept."""

import collections
import dataclasses
import inspect
import types

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, explicit_hessian, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import matfree_torch  # noqa: E402
from matfree_torch import (  # noqa: E402
    activation_hessian,
    activation_traces,
    fisher,
    ggn,
    hessian,
    loss_landscape,
)
from matfree_torch.data.nested import moved_to_device  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


class Pair(nn.Module):
    """A model of one input, or of two."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, dtype=DOUBLE), nn.Linear(4, 3, dtype=DOUBLE)

    def forward(self, x, c=None):
        h = torch.tanh(self.a(x))
        return self.b(h if c is None else h + c.sum(1, keepdim=True))


class Both(Pair):
    """A model that needs two inputs."""

    def forward(self, x, z):
        return self.b(torch.tanh(self.a(x))) * z


class Whole(Pair):
    """A model of one object, of which it reads the tensor that ``read`` returns."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, data):
        return self.b(torch.tanh(self.a(self.read(data))))


def two_targets(outputs, targets):
    return ((outputs - targets[0]) ** 2).mean() + ((outputs - targets[1]) ** 4).mean()


def assert_is_hessian_of(value, model, operator):
    """The dense operator is the double backward of ``value``, a function without arguments."""
    assert relative(operator.to_dense(), explicit_hessian(model, value)) < TOLERANCE


STRATEGIES = ["auto", "recompute", "forward", "folded"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_inputs_and_two_targets_are_one_batch(strategy):
    model, (x, c, y1, y2) = Pair(), randn(4, 6, 3)
    H = hessian(model, two_targets, ((x, c), (y1, y2)), strategy=strategy)
    assert_is_hessian_of(lambda: two_targets(model(x, c), (y1, y2)), model, H)


def test_every_operator_takes_two_inputs_and_two_targets_as_one_batch():
    model, (x, c, y1, y2) = Pair(), randn(4, 6, 3)
    data = (x, c), (y1, y2)
    value = two_targets(model(x, c), (y1, y2)).item()
    assert ggn(model, two_targets, data).loss() == pytest.approx(value)
    assert fisher(model, two_targets, data, kind="empirical").loss() == pytest.approx(value)
    line = loss_landscape(model, two_targets, data, "random", points=1, seed=0)
    assert line.loss == pytest.approx(value)
    A = activation_hessian(model, two_targets, data, modules="b")
    traces = activation_traces(model, two_targets, data, modules="b", method="probes", seed=0)
    assert traces.keys() == {"b"}
    assert A.shape == (24, 24)


class Inputs(Dataset):
    """Samples of two inputs, with any structure of targets."""

    def __init__(self, targets):
        self.x, self.z, self.targets = randn(10, 3), randn(10, 3), targets

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return (self.x[i], self.z[i]), self.targets(i)


TARGETS = {
    "class": (lambda i: i % 3, CE),
    "mapping": (lambda i: {"label": i % 3}, lambda o, t: CE(o, t["label"])),
    "pair": (lambda i: (i % 3, float(i)), lambda o, t: CE(o, t[0]) + (o[:, 0] * t[1]).mean()),
    "number": (lambda i: 0, lambda o, t: o.square().mean()),
}


@pytest.mark.parametrize(("targets", "loss"), TARGETS.values(), ids=TARGETS)
def test_what_a_loader_collates_is_the_same_as_a_loader_and_as_one_batch(targets, loss):
    model = Both()
    samples = Inputs(targets)
    loader = DataLoader(samples, batch_size=10)
    batch = next(iter(loader))  # [[x, z], targets]
    value = loss(model(*batch[0]), batch[1])
    for data in (loader, [batch], batch, tuple(batch)):
        assert hessian(model, loss, data).loss() == pytest.approx(value.item())
    halves = DataLoader(samples, batch_size=5)
    dense = hessian(model, loss, loader).to_dense()
    assert relative(hessian(model, loss, list(halves)).to_dense(), dense) < TOLERANCE


def test_targets_may_be_missing():
    model, x = Pair(), randn(4, 3)
    loss = lambda outputs, targets: outputs.square().mean()  # noqa: E731
    for inputs, arguments in (((x, x), (x, x)), (x, (x,)), ({"x": x}, (x,))):
        H = hessian(model, loss, (inputs, None))
        assert_is_hessian_of(lambda args=arguments: loss(model(*args), None), model, H)


def test_mappings_of_inputs_and_of_targets_are_one_batch():
    model, x, y = Pair(), randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = lambda outputs, t: CE(outputs, t["y"])  # noqa: E731
    for kind in (tuple, list):
        H = hessian(model, loss, kind(({"x": x}, {"y": y})))
        assert_is_hessian_of(lambda: CE(model(x), y), model, H)
    batches = [{"x": x, "y": y}] * 2
    plain = Whole(lambda data: data["x"])
    assert not hessian(plain, loss, batches).batches.single


class Graph:
    """An object with tensors that moves between devices, as graph libraries define it."""

    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def to(self, device):
        raise AssertionError("data are not moved")


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    note: str = "kept"


Named = collections.namedtuple("Named", "x other")


class Encoding(collections.UserDict):
    """A mapping with attributes, as tokenizers return it."""

    def __getattr__(self, name):
        return self.__dict__["data"][name]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "make",
    [
        Graph,
        Sample,
        lambda x: Named(x, "kept"),
        lambda x: types.SimpleNamespace(x=x, nested=[{"deep": (x, None)}]),
        lambda x: Encoding(x=x),
    ],
    ids=["graph", "dataclass", "named tuple", "namespace", "mapping with attributes"],
)
def test_any_object_is_an_input_and_a_target_of_its_own_type(make, strategy):
    x, y = randn(4, 3), torch.tensor([0, 1, 2, 0])
    model = Whole(lambda data: data.x)
    expected = explicit_hessian(model, lambda: CE(model.b(torch.tanh(model.a(x))), y))
    pairs = [(make(x[:2]), y[:2]), (make(x[2:]), y[2:])]
    for data in ((make(x), y), [(make(x), y)], pairs, [list(pair) for pair in pairs]):
        H = hessian(model, CE, data, strategy=strategy)
        assert relative(H.to_dense(), expected) < TOLERANCE
    if not isinstance(make(x), Graph | types.SimpleNamespace):  # torch refuses those of objects
        with torch.inference_mode():
            inferred = make(x * 1), y * 1
        assert relative(hessian(model, CE, inferred).to_dense(), expected) < TOLERANCE
    plain = Pair()
    plain.load_state_dict(model.state_dict())
    loss = lambda outputs, t: (outputs - t.x).square().mean()  # noqa: E731
    H = hessian(plain, loss, (x, make(x)), strategy=strategy)
    assert_is_hessian_of(lambda: (plain(x) - x).square().mean(), plain, H)


def test_an_object_that_holds_inputs_and_targets_is_a_batch():
    x, y = randn(4, 3), torch.tensor([0, 1, 2, 0])
    model, loss = Whole(lambda data: data.x), lambda outputs, data: CE(outputs, data.y)
    expected = explicit_hessian(model, lambda: CE(model.b(torch.tanh(model.a(x))), y))
    halves = [Graph(x[:2], y[:2]), Graph(x[2:], y[2:])]
    for data in (Graph(x, y), [Graph(x, y)], halves):
        assert relative(hessian(model, loss, data).to_dense(), expected) < TOLERANCE


class Detector(nn.Module):
    """Images of different sizes, and the targets in training, as detection models take them."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 2, 2, dtype=DOUBLE)

    def forward(self, images, targets=None):
        assert isinstance(images, list | tuple)
        assert targets is None
        return torch.stack([torch.tanh(self.a(x[None])).mean((0, 2, 3)) for x in images])


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_list_of_images_is_one_argument(kind):
    model, images = Detector(), [randn(1, 4, 4), randn(1, 5, 3)]
    targets = [{"label": torch.tensor(0)}, {"label": torch.tensor(1)}]
    loss = lambda o, t: CE(o, torch.stack([one["label"] for one in t]))  # noqa: E731
    data = kind(images), kind(targets)
    expected = explicit_hessian(model, lambda: loss(model(images), targets))
    for batches in (data, [data], [data, data]):
        H = hessian(model, loss, batches)
        assert relative(H.to_dense(), expected) < TOLERANCE
    assert next(iter(H.batches)).samples == 2


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.o = nn.GRU(2, 2, dtype=DOUBLE), nn.Linear(2, 2, dtype=DOUBLE)

    def forward(self, packed):
        assert isinstance(packed, nn.utils.rnn.PackedSequence)
        return self.o(self.r(packed)[1][0])


def test_packed_sequences_stay_packed():
    model, y = Recurrent(), torch.tensor([0, 1])
    packed = nn.utils.rnn.pack_sequence([randn(4, 2), randn(3, 2)])
    H = hessian(model, CE, (packed, y))
    assert_is_hessian_of(lambda: CE(model(packed), y), model, H)
    several = hessian(model, CE, [(packed, y), (packed, y)])
    assert relative(several.to_dense(), H.to_dense()) < TOLERANCE


class Convolution(Pair):
    def forward(self, x, A):
        return self.b(A @ torch.tanh(self.a(A @ x)))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_inputs_are_kept_sparse_in_several_batches(layout):
    model, data = Convolution(), []
    for seed in (0, 1):
        x, A = randn(6, 3), (torch.rand(6, 6, dtype=DOUBLE) < 0.4).to(DOUBLE)
        data.append(((x, A.to_sparse(layout=layout)), torch.randint(3, (6,)), A, seed))
    batches = [batch[:2] for batch in data]
    H = hessian(model, CE, batches)
    assert_is_hessian_of(lambda: sum(CE(model(x, A), y) for (x, _), y, A, _ in data) / 2, model, H)
    dense = [((x, A), y) for (x, _), y, A, _ in data]
    checksums = [[b.checksum for b in hessian(model, CE, d).batches] for d in (batches, dense)]
    for sparse, same in zip(*checksums, strict=True):  # the layout does not matter
        assert sparse == pytest.approx(same)


def test_a_list_of_two_batches_stays_one():
    model, (x, y) = Pair(), (randn(8, 3), torch.randint(3, (8,)))
    exact = explicit_hessian(model, lambda: CE(model(x), y))
    pairs = (x[:4], y[:4]), (x[4:], y[4:])
    for data in (list(pairs), pairs, [list(p) for p in pairs], tuple(list(p) for p in pairs)):
        assert relative(hessian(model, CE, data).to_dense(), exact) < TOLERANCE
    loss = lambda outputs, t: CE(outputs, t)  # noqa: E731
    assert relative(hessian(model, loss, list(pairs)).to_dense(), exact) < TOLERANCE


def test_data_that_may_be_one_batch_or_two_need_an_answer():
    model, (a, b, c, d) = Pair(), randn(4, 6, 3)
    data = [[a, b], [c, d]]
    loss = lambda o, t: (o - (t[0] + t[1] if isinstance(t, list) else t)).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match="pass batch=True for one batch, or batch=False for two"):
        hessian(model, loss, data)
    one = hessian(model, loss, data, batch=True)
    assert_is_hessian_of(lambda: (model(a, b) - c - d).square().mean(), model, one)
    assert relative(hessian(model, loss, [data]).to_dense(), one.to_dense()) < TOLERANCE
    two = hessian(model, loss, data, batch=False)
    mean = lambda: ((model(a) - b).square().mean() + (model(c) - d).square().mean()) / 2  # noqa: E731
    assert_is_hessian_of(mean, model, two)
    with pytest.raises(TypeError, match="a batch must be a pair"):
        hessian(model, loss, [a, b, c], batch=True)
    images = [randn(3, 3), randn(3, 3), randn(3, 3)]
    with pytest.raises(ValueError, match="pass a tuple of the arguments"):
        hessian(Detector(), loss, (images[:2], None)).gradient()


def test_the_users_containers_are_not_changed():
    x, y = randn(4, 3), torch.tensor([0, 1, 2, 0])
    encoding, model = Encoding(x=x), Whole(lambda data: data["x"])
    data = [encoding, y]
    hessian(model, CE, data).to_dense()
    assert data[0] is encoding
    assert encoding["x"] is x
    assert data[1] is y


def test_every_function_of_data_has_the_keyword_batch():
    takes_data = [
        getattr(matfree_torch, name)
        for name in matfree_torch.__all__
        if inspect.isfunction(getattr(matfree_torch, name))
    ]
    takes_data = [f for f in takes_data if "data" in inspect.signature(f).parameters]
    assert {f.__name__ for f in takes_data} >= {"hessian", "ggn", "fisher", "loss_landscape"}
    for function in takes_data:
        parameters = inspect.signature(function).parameters
        forwarded = "options" in parameters  # to the curvature that has the keyword
        assert forwarded or parameters["batch"].default is None, function.__name__


def test_batches_are_moved_to_a_device_with_their_types():
    x = randn(4, 3)
    packed = nn.utils.rnn.pack_sequence([randn(4, 2), randn(3, 2)])
    movable = Movable(x)
    data = [packed, Sample(x), Named(x, 1), Encoding(x=x), [movable, None]]
    moved = moved_to_device(data, torch.device("meta"))
    assert [type(a) for a in moved] == [type(a) for a in data]
    assert moved[0].data.is_meta
    assert not moved[0].batch_sizes.is_meta
    assert all(a.x.is_meta for a in (*moved[1:4], moved[4][0]))
    assert not movable.x.is_meta


class Movable(Graph):
    """An object that moves itself in place, as graph libraries do."""

    def to(self, device):
        self.x = self.x.to(device)
        return self


def test_two_pairs_for_a_model_of_one_argument_need_an_answer():
    model, x = nn.Linear(3, 3).to(DOUBLE), torch.randn(6, 3, dtype=DOUBLE)
    loss = lambda z, y: (z - y).square().mean()  # noqa: E731
    pairs = (x[:3], x[:3] + 1), (x[3:], x[3:] + 1)
    with pytest.raises(ValueError, match="pass batch=True for one batch, or batch=False for two"):
        hessian(model, loss, pairs)
    exact = hessian(model, loss, (x, x + 1)).to_dense()
    assert relative(hessian(model, loss, pairs, batch=False).to_dense(), exact) < 1e-12
    assert relative(hessian(model, loss, list(pairs)).to_dense(), exact) < 1e-12
