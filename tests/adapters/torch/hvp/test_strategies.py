"""Hessian-vector products of every strategy against explicit Hessians."""

import ast
import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.hvp_problems import (  # noqa: E402  # only where torch is
    CE,
    EXACT,
    NETWORKS,
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

import matfree as mf  # noqa: E402
import matfree_torch  # noqa: E402
from matfree_torch import ggn, hessian, hessian_of  # noqa: E402

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(scope="module", params=NETWORKS)
def explicit(request):
    model, data = problem(request.param)
    return model, data, autograd_hessian(model, CE, data)


@pytest.mark.parametrize("strategy", EXACT)
def test_every_strategy_gives_the_explicit_hessian(explicit, strategy):
    model, data, exact = explicit
    before = snapshot(model)
    traced = strategy == "folded"  # tracing takes a while
    for given in [data] * traced or (data, ragged(data)):
        H = hessian(model, CE, given, strategy=strategy)
        X = H.space.probes(4, seed=0, kind="gaussian")
        assert relative(H @ X, exact @ X) < 1e-10
        assert f"strategy '{strategy}'" in repr(H)
    assert_untouched(before, snapshot(model))


@pytest.mark.filterwarnings("ignore:the model contains ReLU")
def test_finite_differences_have_the_expected_accuracy(explicit):
    model, data, exact = explicit
    before = snapshot(model)
    H = hessian(model, CE, ragged(data), strategy="finite-difference")
    X = H.space.probes(4, seed=0, kind="gaussian")
    assert relative(H @ X, exact @ X) < 1e-7  # a few eps^(2/3)
    assert H.noise < 1e-7
    assert_untouched(before, snapshot(model))
    assert "no graph kept" in repr(H)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_supports_blocks_subsets_and_functions(strategy):
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


def test_compositions_that_torch_computes_wrongly_are_not_used():
    for path in Path(matfree_torch.__file__).parent.rglob("*.py"):
        names = {
            getattr(node, "attr", getattr(node, "id", ""))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        }
        assert names.isdisjoint({"jacrev", "jacfwd", "vhp", "hvp", "linearize", "forward_ad"}), path
        text = path.read_text(encoding="utf-8")
        if "func.jvp" in text:
            assert "torch.func.jvp(torch.func.grad(" in text
            assert "grad(torch.func.jvp" not in text


def test_every_product_of_a_strategy_draws_the_same_random_numbers():
    torch.manual_seed(0)
    model, data = Dropping().to(DOUBLE), batch()
    state, results = torch.get_rng_state(), {}
    for strategy in EXACT:
        torch.set_rng_state(state)
        H = hessian(model, CE, data, strategy=strategy)
        torch.rand(3)  # draws outside the operator do not matter
        X = H.space.probes(2, seed=0)
        before = torch.get_rng_state()
        results[strategy] = H @ X
        assert torch.equal(H @ X, results[strategy])
        assert H.noise < 1e-12
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results["auto"], results["recompute"])
    assert relative(results["folded"], results["forward"]) < 1e-12  # torch.func draws other numbers


class GraphNetwork(nn.Module):
    """A graph network: a sparse adjacency matrix times features."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, neighbours):
        return self.head(torch.tanh(torch.sparse.mm(neighbours, self.features.weight.T)))


def test_sparse_inputs_are_supported():
    torch.manual_seed(0)
    dense = torch.randint(2, (12, 5)).to(DOUBLE)
    model, y = GraphNetwork().to(DOUBLE), batch()[1]
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
def test_invalid_strategies_and_budgets_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        hessian(mlp(), CE, batch(), **options)


def test_gauss_newton_matrices_accept_only_graph_strategies():
    with pytest.raises(ValueError, match="strategy must be one of 'auto', 'recompute'"):
        ggn(mlp(), CE, batch(), strategy="folded")


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
def test_half_precision_is_accurate_to_rounding_and_noise_measures_it(dtype):
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


def test_noise_is_at_rounding_level_in_double_precision():
    model, data = problem("tanh")
    assert hessian(model, CE, data).noise < 1e-13
    assert mf.check_operator(hessian(model, CE, data)).hermitian
