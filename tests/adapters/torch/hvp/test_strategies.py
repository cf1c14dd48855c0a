"""Every way of computing products against explicit Hessians; what is kept, and what is not."""

import ast
import copy
import gc
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402
    DOUBLE,
    Attention,
    assert_untouched,
    autograd_hessian,
    batch,
    relative,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
import matfree_torch  # noqa: E402
from matfree_torch import fisher, ggn, hessian, hessian_of  # noqa: E402
from matfree_torch.autograd import graph_memory  # noqa: E402
from matfree_torch.hvp import graph_cache  # noqa: E402

CE = nn.CrossEntropyLoss()
EXACT = ("auto", "recompute", "forward", "folded")
STRATEGIES = (*EXACT, "finite-difference")


class ResidualConvolutions(nn.Module):
    """Convolutions, batch norm, an activation in place and a skip."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(12, 3)

    def forward(self, x):
        h = self.relu(self.one(self.first(x)))
        g = self.two(self.second(h))
        g += h
        return self.head(torch.tanh(self.relu(g)).flatten(1))


def _statistics(model):
    """Batch norms as training leaves them."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator, dtype=DOUBLE))
            module.running_var.copy_(torch.rand(shape, generator=generator, dtype=DOUBLE) + 0.5)
    return model.eval()


def mlp(width=5, activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), activation(), nn.Linear(width, 3)).to(DOUBLE)


NETWORKS = {
    "tanh": (mlp, "vector"),
    "residual convolutions": (lambda: _statistics(ResidualConvolutions().to(DOUBLE)), "image"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)).to(
            DOUBLE
        ),
        "vector",
    ),
    "attention": (lambda: Attention().to(DOUBLE), "sequence"),
}


def problem(name):
    make, kind = NETWORKS[name]
    torch.manual_seed(0)
    return make(), batch(kind)


def ragged(data, sizes=(5, 4, 3)):
    return list(zip(*(torch.split(x, sizes) for x in data), strict=True))


@pytest.fixture(scope="module", params=NETWORKS)
def explicit(request):
    model, data = problem(request.param)
    return model, data, autograd_hessian(model, CE, data)


@pytest.mark.parametrize("strategy", EXACT)
def test_every_strategy_gives_the_explicit_hessian(explicit, strategy):
    model, data, exact = explicit
    before = snapshot(model)
    traced = strategy == "folded"  # which takes a while
    for given in [data] * traced or (data, ragged(data)):
        H = hessian(model, CE, given, strategy=strategy)
        X = H.space.probes(4, seed=0, kind="gaussian")
        assert relative(H @ X, exact @ X) < 1e-10
        assert f"strategy '{strategy}'" in repr(H)
    assert_untouched(before, snapshot(model))


@pytest.mark.filterwarnings("ignore:the model contains ReLU")
def test_finite_differences_are_right_to_their_own_error(explicit):
    model, data, exact = explicit
    before = snapshot(model)
    H = hessian(model, CE, ragged(data), strategy="finite-difference")
    X = H.space.probes(4, seed=0, kind="gaussian")
    assert relative(H @ X, exact @ X) < 1e-7  # some eps^(2/3)
    assert H.noise < 1e-7
    assert_untouched(before, snapshot(model))
    assert "no graph kept" in repr(H)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_blocks_subsets_and_functions_go_by_every_strategy(strategy):
    model, data = problem("tanh")
    limit = 1e-7 if strategy == "finite-difference" else 1e-12
    whole = hessian(model, CE, data)
    exact, rows = whole.to_dense(), slice(*(whole.partition[n].start for n in ("2.weight",)), None)
    H = hessian(model, CE, data, strategy=strategy, weight_decay=0.1)
    assert relative(H.block("2.bias", "0.bias").to_dense(), exact[-3:, 30:35]) < limit
    X = H.space.probes(2, seed=0)
    assert relative(H @ X, exact @ X + 0.1 * X) < limit
    part = hessian(model, CE, data, params="2.*", strategy=strategy)
    assert relative(part @ X[rows], exact[rows, rows] @ X[rows]) < limit
    point = {"a.b": torch.tensor([1.0, 2.0], dtype=DOUBLE), "c": torch.tensor([3.0], dtype=DOUBLE)}
    function = hessian_of(lambda t: (t["a.b"] ** 2 * t["c"]).sum(), point, strategy=strategy)
    expected = torch.tensor([[6.0, 0, 2], [0, 6, 4], [2, 4, 0]], dtype=DOUBLE)
    assert relative(function.to_dense(), expected) < max(limit, 1e-9)


def test_no_composition_is_used_that_torch_gets_wrong():
    for path in Path(matfree_torch.__file__).parent.rglob("*.py"):
        names = {
            getattr(node, "attr", getattr(node, "id", ""))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        }
        assert names.isdisjoint({"jacrev", "jacfwd", "vhp", "hvp", "linearize", "forward_ad"}), path
        if "jvp" in names:
            assert "torch.func.jvp(torch.func.grad(" in path.read_text(encoding="utf-8")
            assert "grad(torch.func.jvp" not in path.read_text(encoding="utf-8")


def test_kept_or_made_again_the_numbers_are_the_same_bits():
    model, data = problem("residual convolutions")
    batches = ragged(data)
    all_kept = hessian(model, CE, batches)
    X = all_kept.space.probes(3, seed=1)
    expected = all_kept @ X
    one = all_kept.memory.per_batch
    for budget, count in ((0, 0), (one, 1), (2 * one, 2), (10 * one, 3)):
        H = hessian(model, CE, batches, memory=budget)
        for _ in range(3):
            assert torch.equal(H @ X, expected)
        assert H.memory.kept == count
        assert H.memory.budget == budget
    assert torch.equal(hessian(model, CE, batches, strategy="recompute") @ X, expected)
    single = hessian(model, CE, data)
    assert torch.equal(single @ X, hessian(model, CE, data, memory=0) @ X)
    for G in (ggn, fisher):
        kept_all, none = G(model, CE, batches), G(model, CE, batches, strategy="recompute")
        assert torch.equal(kept_all @ X, none @ X)
        assert kept_all.memory.kept == 3
        assert "recomputed" in repr(none)


class Counted:
    """Batches, and how often they were gone through."""

    def __init__(self, batches, change=None):
        self.batches, self.passes, self.change = batches, 0, change

    def __iter__(self):
        self.passes += 1
        if self.change is not None:
            self.batches = self.change(self.batches)
        return iter(self.batches)


def test_data_whose_batches_are_kept_are_read_twice_and_no_more():
    model, data = problem("tanh")
    loader = Counted(ragged(data))
    H = hessian(model, CE, loader)
    X = H.space.probes(2, seed=0)
    for _ in range(5):
        H @ X
    assert loader.passes == 2
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    for _ in range(5):
        H @ X
    assert loader.passes == 3  # other weights, and data that are known to stay the same
    assert relative(H.to_dense(), autograd_hessian(model, CE, data)) < 1e-10


def test_data_that_change_are_found_by_the_second_block_also_where_all_is_kept():
    model, data = problem("tanh")
    loader = Counted(ragged(data), change=lambda batches: [(x + 1, y) for x, y in batches])
    H = hessian(model, CE, loader)
    H @ H.space.probes(1, seed=0)
    with pytest.raises(ValueError, match="two passes over the data differ"):
        H @ H.space.probes(1, seed=0)


def test_batches_in_another_order_are_never_taken_for_kept_ones():
    model, data = problem("tanh")
    batches = ragged(data)
    loader = Counted(batches, change=lambda batches: [*batches[1:], batches[0]])
    exact = autograd_hessian(model, CE, data)
    one = hessian(model, CE, batches).memory.per_batch
    H = hessian(model, CE, loader, memory=one)
    X = H.space.probes(2, seed=0)
    for _ in range(4):
        assert relative(H @ X, exact @ X) < 1e-10
    assert H.memory.kept == 0
    shuffled = DataLoader(TensorDataset(*data), batch_size=5, shuffle=True)
    assert relative(hessian(model, CE, shuffled).to_dense(), exact) < 1e-10


CHANGES = {
    "weight": lambda model: model.first.weight.mul_(2),
    "weight replaced": lambda model: setattr(model.head.weight, "data", 2 * model.head.weight.data),
    "buffer": lambda model: model.one.running_var.mul_(3),
    "mode": lambda model: model.two.train(),
}


@pytest.mark.filterwarnings("ignore:BatchNorm2d layer")
@pytest.mark.parametrize(
    ("strategy", "name"), [*(("auto", name) for name in CHANGES), ("folded", "weight")]
)
def test_nothing_kept_outlives_a_change_of_the_model(strategy, name):
    model, data = problem("residual convolutions")
    H = hessian(model, CE, data, strategy=strategy)
    X = H.space.probes(2, seed=0)
    before = H @ X
    with torch.no_grad():
        CHANGES[name](model)
    after = H @ X
    assert relative(after, before) > 1e-4
    assert relative(after, hessian(copy.deepcopy(model), CE, data) @ X) < 1e-12


def test_nothing_kept_outlives_a_change_of_data_or_of_the_loss():
    model, (x, y) = problem("tanh")
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))
    batches = ragged((x, y), (7, 5))
    H = hessian(model, loss, (x, y))
    several = hessian(model, loss, batches)
    X = H.space.probes(2, seed=0)
    for change in (lambda: x.mul_(1.5), lambda: loss.weight.mul_(loss.weight.flip(0))):
        assert relative(several @ X, H @ X) < 1e-12
        change()
        exact = autograd_hessian(model, loss, (x, y))
        assert relative(H @ X, exact @ X) < 1e-10
        assert relative(several @ X, exact @ X) < 1e-10


class Dropping(nn.Module):
    """Random numbers that no module tells of: fixed by the operator."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(nn.functional.dropout(torch.tanh(self.inner(x)), 0.5, training=True))


def test_every_product_of_a_strategy_draws_the_same_random_numbers():
    torch.manual_seed(0)
    model, data = Dropping().to(DOUBLE), batch()
    state, results = torch.get_rng_state(), {}
    for strategy in EXACT:
        torch.set_rng_state(state)
        H = hessian(model, CE, data, strategy=strategy)
        torch.rand(3)  # what is drawn elsewhere does not matter
        X = H.space.probes(2, seed=0)
        before = torch.get_rng_state()
        results[strategy] = H @ X
        assert torch.equal(H @ X, results[strategy])
        assert H.noise < 1e-12
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results["auto"], results["recompute"])
    assert relative(results["folded"], results["forward"]) < 1e-12  # torch draws others here


def test_what_is_kept_does_not_change_the_random_numbers_of_the_rest():
    torch.manual_seed(0)
    model, batches = Dropping().to(DOUBLE), ragged(batch(), (6, 6))
    one, state = hessian(model, CE, batches).memory.per_batch, torch.get_rng_state()
    results = []
    for budget in (0, one, None):
        torch.set_rng_state(state)
        H = hessian(model, CE, batches, memory=budget)
        X = H.space.probes(2, seed=0)
        results += [H @ X, H @ X]
    assert H.memory.kept == 2
    assert all(torch.equal(result, results[0]) for result in results)
    torch.set_rng_state(state)
    differenced = hessian(model, CE, batches, strategy="finite-difference") @ X
    assert relative(differenced, results[0]) < 1e-7


def test_one_forward_serves_a_whole_block():
    model, data = problem("tanh")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    H = hessian(model, CE, ragged(data), strategy="recompute")
    H @ H.space.probes(7, seed=0)
    handle.remove()
    assert len(calls) == 3


def test_the_graphs_memory_is_predicted_before_it_is_taken():
    model = mlp(width=50)
    x, y = batch(samples=400)
    small = hessian(model, CE, (x[:200], y[:200])).memory
    large = hessian(model, CE, (x, y)).memory
    assert small.kept == 0
    activations = 200 * (50 + 3 + 3) * 8  # tanh's output, logits, probabilities in double
    assert activations < small.per_batch < 12 * activations
    assert 1.5 < large.per_batch / small.per_batch < 2.01
    H = hessian(model, CE, ragged((x, y), (300, 100)), memory=large.per_batch + 20_000)
    assert str(H.memory).endswith(f"budget {graph_memory.readable(large.per_batch + 20_000)}")
    H @ H.space.probes(1, seed=0)
    assert H.memory.kept == 2  # the smaller batch is predicted to take less
    for G in (ggn(model, CE, (x, y)), fisher(model, CE, (x, y), kind="empirical")):
        assert activations < G.memory.per_batch < 24 * activations


def test_memory_that_is_not_there_is_an_error_before_it_is_taken(monkeypatch):
    model, data = problem("tanh")
    monkeypatch.setattr(graph_memory, "available_memory", lambda device: 1000)
    H = hessian(model, CE, data, memory=10**9)
    with pytest.raises(MemoryError, match=r"graph of the first batch passes .*smaller batches"):
        H @ H.space.probes(1, seed=0)
    monkeypatch.setattr(graph_cache, "available_memory", lambda device: None)
    assert hessian(model, CE, data, strategy="folded").memory.budget == 2**31
    folded = hessian(model, CE, ragged(data), strategy="folded", memory=1000)
    with pytest.raises(MemoryError, match=r"folded .*raise memory="):
        folded @ folded.space.probes(1, seed=0)


def test_what_is_available_is_told_by_machine_and_container(tmp_path, monkeypatch):
    there = graph_memory.available_memory(torch.device("cpu"))
    assert there is None or there > 2**20
    assert graph_memory.available_memory(torch.device("meta")) is None
    for name, text in {
        "memory.max": "1000000",
        "memory.current": "900000",
        "memory.stat": "anon 100\ninactive_file 50000",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(graph_memory, "_GROUP", tmp_path)
    assert graph_memory.available_memory(torch.device("cpu")) == 150000
    (tmp_path / "memory.max").write_text("max")
    assert graph_memory.available_memory(torch.device("cpu")) != 150000
    assert graph_memory.readable(3 * 2**30) == "3 GiB"


class Graph(nn.Module):
    """A graph network: sparse neighbours times features."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, neighbours):
        return self.head(torch.tanh(torch.sparse.mm(neighbours, self.features.weight.T)))


def test_sparse_inputs_are_no_obstacle():
    torch.manual_seed(0)
    dense = torch.randint(2, (12, 5)).to(DOUBLE)
    model, y = Graph().to(DOUBLE), batch()[1]
    plain = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    plain[0].weight, plain[2].weight, plain[2].bias = (
        model.features.weight,
        model.head.weight,
        model.head.bias,
    )
    H = hessian(model, CE, (dense.to_sparse(), y), params=["features.weight", "head.*"])
    assert relative(H.to_dense(), autograd_hessian(plain, CE, (dense, y))) < 1e-10
    assert H.memory.per_batch > 0


REFUSED = {
    "unknown": ({"strategy": "backward"}, "strategy must be one of 'auto', .*got 'backward'"),
    "budget for nothing": ({"strategy": "forward", "memory": 1}, "keeps nothing"),
    "negative": ({"memory": -1}, "memory must be a number of bytes"),
    "not whole": ({"memory": 1.5}, "memory must be a number of bytes"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_strategies_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        hessian(mlp(), CE, batch(), **options)


def test_gauss_newton_matrices_have_graphs_to_keep_and_no_other_strategy():
    with pytest.raises(ValueError, match="strategy must be one of 'auto', 'recompute'"):
        ggn(mlp(), CE, batch(), strategy="folded")


def _targets(kind):
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(12, 3, dtype=DOUBLE, generator=generator)
    return {"real": y, "sign": torch.sign(y), "share": torch.sigmoid(y), "label": batch()[1]}[kind]


def _weighted(outputs, targets):
    weight = torch.linspace(1, 2, 36, dtype=DOUBLE).view(12, 3)
    return nn.functional.mse_loss(outputs, targets, weight=weight)


LOSSES = {
    "squared": (nn.MSELoss(), "real"),
    "squared, sum": (nn.MSELoss(reduction="sum"), "real"),
    "squared, terms": (lambda z, y: nn.MSELoss(reduction="none")(z, y).mean(), "real"),
    "squared, weights": (_weighted, "real"),
    "Huber": (nn.HuberLoss(delta=0.7), "real"),
    "smooth l1": (nn.SmoothL1Loss(), "real"),
    "soft margin": (nn.SoftMarginLoss(), "sign"),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2, 3], dtype=DOUBLE)), "share"),
    "Poisson": (nn.PoissonNLLLoss(), "share"),
    "smoothed classes": (nn.CrossEntropyLoss(label_smoothing=0.1), "label"),
}


@pytest.mark.parametrize(("loss", "kind"), LOSSES.values(), ids=LOSSES.keys())
def test_forward_strategies_take_losses_that_torch_cannot_differentiate_so(loss, kind):
    model, (x, _) = problem("tanh")
    data = x, _targets(kind)
    exact = autograd_hessian(model, loss, data)
    traced = (nn.MSELoss, nn.HuberLoss, nn.SoftMarginLoss, nn.BCEWithLogitsLoss)
    for strategy in ("forward", *["folded"] * isinstance(loss, traced)):
        H = hessian(model, loss, data, strategy=strategy)
        X = H.space.probes(4, seed=0, kind="gaussian")
        assert relative(H @ X, exact @ X) < 1e-10


def test_a_loss_whose_trace_would_end_the_interpreter_is_refused():
    model, (x, _) = problem("tanh")
    H = hessian(model, torch.ops.aten.mse_loss, (x, _targets("real")), strategy="folded")
    with pytest.raises(mf.OperatorError, match=r"cannot trace mse_loss.*crashes.*'auto'"):
        H @ H.space.probes(1, seed=0)


class Sampled(nn.Module):
    """An operation without forward mode."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        h = self.inner(x)
        grid = torch.tanh(h[:, :2]).view(-1, 1, 1, 2)
        image = torch.arange(9, dtype=h.dtype).view(1, 1, 3, 3).expand(len(h), 1, 3, 3)
        return h + nn.functional.grid_sample(image, grid, align_corners=True).view(-1, 1)


class Square(torch.autograd.Function):
    """A function in the style that only backward mode knows."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Checkpointed(nn.Module):
    """Activations computed again in the backward pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def test_what_only_backward_mode_knows_is_said_to_be_so():
    model, data = problem("tanh")
    exact = autograd_hessian(model, CE, data)
    squared = autograd_hessian(model, lambda z, y: CE(z**2, y), data)
    for given, loss, expected in (
        (Checkpointed(model), CE, exact),
        (model, lambda z, y: CE(Square.apply(z), y), squared),
    ):
        H = hessian(given, loss, data)
        X = H.space.probes(2, seed=0)
        assert relative(H @ X, expected @ X) < 1e-10
        differences = hessian(given, loss, data, strategy="finite-difference")
        assert relative(differences @ X, expected @ X) < 1e-7
        for strategy in ("forward", "folded"):
            with pytest.raises(mf.OperatorError, match=rf"{strategy}' does not support .*'auto'"):
                hessian(given, loss, data, strategy=strategy) @ X


@pytest.mark.parametrize("strategy", ["forward", "folded"])
def test_what_forward_mode_lacks_is_named(strategy):
    H = hessian(Sampled(), CE, batch(), strategy=strategy)
    with pytest.raises(mf.OperatorError, match=rf"'{strategy}' does not .*\(grid_sampler.*'auto'"):
        H @ H.space.probes(1, seed=0)
    assert (
        relative(
            hessian(Sampled(), CE, batch()).to_dense(), autograd_hessian(Sampled(), CE, batch())
        )
        < 1e-10
    )


def test_a_trace_that_needs_a_value_is_refused():
    def loss(outputs, targets):
        return CE(outputs, targets) * float(outputs.detach().sum())

    H = hessian(mlp(), loss, batch(), strategy="folded")
    with pytest.raises(mf.OperatorError, match="'folded' does not support"):
        H @ H.space.probes(1, seed=0)


def test_finite_differences_warn_of_kinks_and_refuse_half_precision():
    with pytest.warns(UserWarning, match="contains ReLU, which is piecewise linear"):
        hessian(mlp(activation=nn.ReLU), CE, batch(), strategy="finite-difference")
    half = mlp().to(torch.bfloat16)
    with pytest.raises(ValueError, match="finite differences need parameters in float32"):
        hessian(half, CE, batch(), strategy="finite-difference")


def test_finite_differences_do_not_depend_on_the_scale_of_the_vector():
    model, data = problem("tanh")
    H = hessian(model, CE, data, strategy="finite-difference")
    v = H.space.probes(1, seed=0)
    assert relative(1e30 * (H @ (1e-30 * v)), H @ v) < 1e-8
    assert (H @ (0 * v)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_right_to_its_rounding_and_the_noise_says_so(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    twin = copy.deepcopy(model).to(DOUBLE)
    x, y = batch(samples=64)
    x = x.to(dtype)
    exact = autograd_hessian(twin, CE, (x.to(DOUBLE), y))
    data = ragged((x, y), (40, 24))
    eps = torch.finfo(dtype).eps
    for strategy in EXACT:
        H = hessian(model, CE, (x, y) if strategy == "folded" else data, strategy=strategy)
        X = H.space.probes(8, seed=0)
        got = H @ X
        assert got.dtype == H.dtype == torch.float32
        error = relative(got.to(DOUBLE), exact @ X.to(DOUBLE))
        assert error < 4 * eps  # bfloat16 keeps 8 bits of every intermediate number, float16 11
        assert error / 10 < H.noise < 10 * error
    assert mf.trace(H, num_probes=4, seed=0).value > 0


def test_noise_is_rounding_in_double_precision():
    model, data = problem("tanh")
    assert hessian(model, CE, data).noise < 1e-13
    assert mf.check_operator(hessian(model, CE, data)).hermitian


@pytest.mark.parametrize(
    ("strategy", "several"), [("auto", True), *((name, False) for name in STRATEGIES)]
)
def test_many_products_leave_nothing_behind(strategy, several):
    model, data = problem("tanh")
    H = hessian(model, CE, ragged(data) if several else data, strategy=strategy)
    v = H.space.probes(1, seed=0)
    products = {"auto": 1000, "folded": 1000, "recompute": 100}.get(strategy, 30)

    def objects():
        gc.collect()
        return len(gc.get_objects()), sum(
            issubclass(type(x), torch.Tensor) for x in gc.get_objects()
        )

    for _ in range(5):
        H @ v
    state, before = snapshot(model), objects()
    for _ in range(products):
        H @ v
    after = objects()
    assert after[1] <= before[1]
    assert after[0] <= before[0] + 20  # what the interpreter itself keeps
    assert_untouched(state, snapshot(model))


@pytest.mark.parametrize("strategy", ["auto", "folded"])
def test_an_operator_that_is_dropped_frees_its_graphs_at_once(strategy):
    model, data = problem("tanh")
    H = hessian(model, CE, data, strategy=strategy)
    H @ H.space.probes(1, seed=0)
    (held,) = H._graphs._entries
    folded = strategy == "folded"
    value = held.prepared._constants.constant0 if folded else held.prepared["0.weight"]
    alive = weakref.ref(value)
    gc.collect()
    gc.disable()
    try:
        del H, held, value
        assert alive() is None
    finally:
        gc.enable()


def test_a_folded_program_repeats_nothing():
    model, data = problem("residual convolutions")
    H = hessian(model, CE, data, strategy="folded")
    H.inspect()
    (held,) = H._graphs._entries
    repeats = {f"aten.{name}.default" for name in ("clone", "detach", "_to_copy", "copy")}
    assert repeats.isdisjoint(held.prepared.operations)
    assert H.memory.per_batch == held.prepared.nbytes
    assert "fold kept" in repr(H)


@pytest.mark.parametrize("num_batches", [1, 3])
def test_a_loss_that_differentiates_inside_cannot_be_watched_and_is_right_all_the_same(num_batches):
    def slope_too(outputs, targets):  # a penalty on a derivative, by torch.func
        slope = torch.func.vmap(torch.func.grad(lambda z: (z**3).sum()))(outputs)
        return ((outputs - targets) ** 2).mean() + 0.1 * (slope**2).mean()

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1).double()
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    size = 6 // num_batches
    data = [(x[i : i + size], y[i : i + size]) for i in range(0, 6, size)]
    H = hessian(model, slope_too, data[0] if num_batches == 1 else data)

    def loss_at(theta):
        z = x @ theta[:2, None] + theta[2]
        return ((z - y) ** 2).mean() + 0.1 * ((3 * z**2) ** 2).mean()

    theta = torch.cat([model.weight.detach().reshape(-1), model.bias.detach()])
    expected = torch.autograd.functional.hessian(loss_at, theta)
    for _ in range(2):
        assert torch.allclose(H.to_dense(), expected, rtol=1e-10, atol=1e-12)
    assert H.memory.kept == (1 if num_batches == 1 else 0)
