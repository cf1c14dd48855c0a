"""Which batches keep their graphs between products, for how long, and within which memory."""

import copy
import gc
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.hvp_problems import (  # noqa: E402  # only where torch is
    CE,
    STRATEGIES,
    Dropping,
    mlp,
    problem,
    ragged,
)
from support.networks import (  # noqa: E402
    DOUBLE,
    assert_untouched,
    autograd_hessian,
    batch,
    relative,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from matfree_torch import fisher, ggn, hessian  # noqa: E402
from matfree_torch.autograd import graph_memory  # noqa: E402
from matfree_torch.hvp import graph_cache  # noqa: E402


def test_results_are_bitwise_equal_whether_graphs_are_kept_or_recomputed():
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


class CountingLoader:
    """Batches that count the passes over them, and may change in every pass."""

    def __init__(self, batches, change=None):
        self.batches, self.passes, self.change = batches, 0, change

    def __iter__(self):
        self.passes += 1
        if self.change is not None:
            self.batches = self.change(self.batches)
        return iter(self.batches)


def test_data_are_read_only_twice_if_all_batches_are_kept():
    model, data = problem("tanh")
    loader = CountingLoader(ragged(data))
    H = hessian(model, CE, loader)
    X = H.space.probes(2, seed=0)
    for _ in range(5):
        H @ X
    assert loader.passes == 2
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    for _ in range(5):
        H @ X
    assert loader.passes == 3  # new weights need one pass; the data have been compared before
    assert relative(H.to_dense(), autograd_hessian(model, CE, data)) < 1e-10


def test_data_that_change_between_passes_are_detected_even_if_all_batches_are_kept():
    model, data = problem("tanh")
    loader = CountingLoader(ragged(data), change=lambda batches: [(x + 1, y) for x, y in batches])
    H = hessian(model, CE, loader)
    H @ H.space.probes(1, seed=0)
    with pytest.raises(ValueError, match="two passes over the data differ"):
        H @ H.space.probes(1, seed=0)


def test_kept_batches_are_not_used_for_batches_in_another_order():
    model, data = problem("tanh")
    batches = ragged(data)
    loader = CountingLoader(batches, change=lambda batches: [*batches[1:], batches[0]])
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
def test_a_change_of_the_model_invalidates_the_cache(strategy, name):
    model, data = problem("residual convolutions")
    H = hessian(model, CE, data, strategy=strategy)
    X = H.space.probes(2, seed=0)
    before = H @ X
    with torch.no_grad():
        CHANGES[name](model)
    after = H @ X
    assert relative(after, before) > 1e-4
    assert relative(after, hessian(copy.deepcopy(model), CE, data) @ X) < 1e-12


def test_a_change_of_the_data_or_the_loss_invalidates_the_cache():
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


def test_random_numbers_do_not_depend_on_which_batches_are_kept():
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


def test_a_block_of_vectors_takes_one_forward_pass_for_each_batch():
    model, data = problem("tanh")
    calls = []
    H = hessian(model, CE, ragged(data), strategy="recompute")
    H.inspect()
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    H @ H.space.probes(7, seed=0)
    handle.remove()
    assert len(calls) == 3


def test_the_memory_of_graphs_is_predicted_before_they_are_built():
    model = mlp(width=50)
    x, y = batch(samples=400)
    small = hessian(model, CE, (x[:200], y[:200])).memory
    large = hessian(model, CE, (x, y)).memory
    assert small.kept == 0
    activations = (
        200 * (50 + 3 + 3) * 8
    )  # the outputs of tanh, logits and probabilities, in float64
    assert activations < small.per_batch < 12 * activations
    assert 1.5 < large.per_batch / small.per_batch < 2.01
    H = hessian(model, CE, ragged((x, y), (300, 100)), memory=large.per_batch + 20_000)
    assert str(H.memory).endswith(f"budget {graph_memory.readable(large.per_batch + 20_000)}")
    H @ H.space.probes(1, seed=0)
    assert H.memory.kept == 2  # the smaller batch is predicted to fit
    for G in (ggn(model, CE, (x, y)), fisher(model, CE, (x, y), kind="empirical")):
        assert activations < G.memory.per_batch < 24 * activations


def test_exceeding_the_free_memory_is_an_error_before_it_is_allocated(monkeypatch):
    model, data = problem("tanh")
    monkeypatch.setattr(graph_memory, "available_memory", lambda device: 1000)
    H = hessian(model, CE, data, memory=10**9)
    with pytest.raises(MemoryError, match=r"the first batch's gradient takes .*smaller batches"):
        H @ H.space.probes(1, seed=0)
    monkeypatch.setattr(graph_cache, "available_memory", lambda device: None)
    assert hessian(model, CE, data, strategy="folded").memory.budget == 2**31
    folded = hessian(model, CE, ragged(data), strategy="folded", memory=1000)
    with pytest.raises(MemoryError, match=r"folded .*raise memory="):
        folded @ folded.space.probes(1, seed=0)


@pytest.mark.parametrize(
    ("strategy", "several"), [("auto", True), *((name, False) for name in STRATEGIES)]
)
def test_repeated_products_leak_no_objects(strategy, several):
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
    assert after[0] <= before[0] + 20  # caches of the interpreter
    assert_untouched(state, snapshot(model))


@pytest.mark.parametrize("strategy", ["auto", "folded"])
def test_deleting_an_operator_frees_its_graphs_without_the_garbage_collector(strategy):
    model, data = problem("tanh")
    H = hessian(model, CE, data, strategy=strategy)
    H @ H.space.probes(1, seed=0)
    (entry,) = H._graphs._entries
    folded = strategy == "folded"
    value = entry.prepared._constants.constant0 if folded else entry.prepared["0.weight"]
    alive = weakref.ref(value)
    gc.collect()
    gc.disable()
    try:
        del H, entry, value
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("num_batches", [1, 3])
def test_a_loss_that_uses_torch_func_is_correct_though_its_graph_cannot_be_measured(num_batches):
    def with_slope_penalty(outputs, targets):  # a penalty on a derivative, by torch.func
        slope = torch.func.vmap(torch.func.grad(lambda z: (z**3).sum()))(outputs)
        return ((outputs - targets) ** 2).mean() + 0.1 * (slope**2).mean()

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1).double()
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    size = 6 // num_batches
    data = [(x[i : i + size], y[i : i + size]) for i in range(0, 6, size)]
    H = hessian(model, with_slope_penalty, data[0] if num_batches == 1 else data)

    def loss_at(theta):
        z = x @ theta[:2, None] + theta[2]
        return ((z - y) ** 2).mean() + 0.1 * ((3 * z**2) ** 2).mean()

    theta = torch.cat([model.weight.detach().reshape(-1), model.bias.detach()])
    expected = torch.autograd.functional.hessian(loss_at, theta)
    for _ in range(2):
        assert torch.allclose(H.to_dense(), expected, rtol=1e-10, atol=1e-12)
    assert H.memory.kept == (1 if num_batches == 1 else 0)
