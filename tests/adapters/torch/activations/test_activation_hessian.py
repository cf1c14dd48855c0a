"""Activation Hessians against explicit ones, whose forward passes are written out by hand."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402  # needs torch
    DOUBLE,
    Residual,
    assert_untouched,
    batch,
    network,
    relative,
    snapshot,
)
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import activation_hessian, activation_traces  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10
SAMPLES = 5


def residual(activation=None):
    """A skip connection around an activation that is called twice; all layers have one width."""
    torch.manual_seed(0)
    net = nn.Sequential(Residual(4, activation), nn.Linear(4, 3)).to(DOUBLE)
    x, y = batch(samples=SAMPLES)
    return net, (x[:, :4].contiguous(), y)


def by_hand(net, x, deltas, at):
    """The forward pass of the residual network, with zeros added at the ports of all calls."""
    block, head = net[0], net[1]
    act = nn.ReLU() if isinstance(block.relu, nn.ReLU) else block.relu
    first, one, second, two, last = deltas

    def through(layer, a, delta):
        return layer(a) + delta if at == "output" else layer(a + delta)

    if at == "tensor":
        x = x + first
        return head(x + act(block.b(act(block.a(x) + one) + second) + two) + last)
    r = through(act, through(block.a, x, first), one)
    r = through(act, through(block.b, r, second), two)
    return through(head, x + r, last)


def explicit(net, loss, data, at):
    x, y = data
    shapes = [(SAMPLES, 4)] * 4 + [(SAMPLES, 3 if at == "output" else 4)]
    sizes = [rows * columns for rows, columns in shapes]

    def function(flat):
        parts = torch.split(flat, sizes)
        deltas = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return loss(by_hand(net, x, deltas, at), y)

    return torch.autograd.functional.hessian(function, torch.zeros(sum(sizes), dtype=DOUBLE))


ACTIVATIONS = {"relu in place": lambda: None, "gelu": nn.GELU, "tanh": nn.Tanh}
EVERY_CALL = ("0.a", "0.relu#0", "0.b", "0.relu#1", "1")


def _leaves(name, module):
    return not list(module.children())


@pytest.mark.parametrize("at", ["input", "output", "tensor"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_operator_is_the_explicit_hessian_in_every_call_of_every_module(activation, at):
    net, data = residual(activation())
    A = activation_hessian(net, CE, data, modules=_leaves, at=at)
    assert A.names == EVERY_CALL
    exact = explicit(net, CE, data, at)
    assert relative(A.to_dense(), exact) < TOLERANCE
    assert mf.check_operator(A).hermitian
    words = {"input": "in the inputs", "output": "in the outputs", "tensor": "in the tensors read"}
    assert words[at] in repr(A)
    rows, columns = A.partition["0.a"], A.partition["0.relu#1"]
    cross = A.block("0.a", "0.relu#1")
    assert cross.shape == (20, 20)
    assert (cross.to_dense() - exact[rows, columns]).abs().max() < TOLERANCE * exact.abs().max()
    wide = A.block("0.*", "1")
    assert (wide.H.to_dense() - wide.to_dense().T).abs().max() < TOLERANCE * exact.abs().max()
    assert relative(A.block("1").to_dense(), exact[A.partition["1"], A.partition["1"]]) < TOLERANCE


def test_input_and_tensor_ports_differ_if_a_skip_connection_reads_the_tensor_too():
    net, data = residual()
    inside, tensor = (
        activation_hessian(net, CE, data, modules="0.a", at=at).to_dense()
        for at in ("input", "tensor")
    )
    assert relative(inside, tensor) > 0.1


def hooked_matrix(net, module, data):
    """The common recipe: differentiate what a backward hook gets by what a forward hook got."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args: seen.update(activation=args[0])),
        module.register_full_backward_hook(lambda m, into, out: seen.update(gradient=into[0])),
    ]
    x, y = data
    torch.autograd.grad(CE(net(x), y), list(net.parameters()), create_graph=True)
    activation, gradient = seen["activation"], seen["gradient"]  # the passes below overwrite them
    columns = [
        torch.autograd.grad(gradient, activation, e.view_as(activation), retain_graph=True)[0]
        for e in torch.eye(activation.numel(), dtype=DOUBLE)
    ]
    for handle in handles:
        handle.remove()
    return torch.stack([column.reshape(-1) for column in columns], dim=1)


def test_the_common_recipe_with_hooks_is_wrong_on_a_residual_network():
    torch.manual_seed(0)
    layers = nn.Linear(4, 4), Residual(4, nn.ReLU()), nn.Linear(4, 3)
    net, (_, data) = nn.Sequential(*layers).to(DOUBLE), residual()
    hooked = hooked_matrix(net, net[1].a, data)
    assert relative(hooked, hooked.T) > 1
    for at in ("input", "tensor"):
        A = activation_hessian(net, CE, data, modules="1.a", at=at).to_dense()
        assert relative(A, A.T) < TOLERANCE
        assert abs(hooked.trace() - A.trace()) > 0.9 * A.trace()


def block_traces(exact, A):
    return {name: exact[rows, rows].trace().item() for name, rows in A.partition.items()}


@pytest.mark.parametrize("at", ["input", "output", "tensor"])
def test_traces_of_a_piecewise_linear_network_are_exact(at):
    net, data = residual()
    A = activation_hessian(net, CE, data, modules=_leaves, at=at)
    exact = block_traces(explicit(net, CE, data, at), A)
    traces = A.traces()
    assert tuple(traces) == EVERY_CALL
    for name, trace in traces.items():
        assert abs(trace.value - exact[name]) < TOLERANCE * exact[name]
        assert trace.method == "exact"
        assert trace.stderr == 0
        assert trace.num_matvecs == 3  # one pass per class
        assert "3 backward passes" in trace.reason
        assert f"at='{at}'" in trace.reason


def test_probes_are_used_if_the_hessian_is_not_the_gauss_newton_matrix():
    net, data = residual(nn.GELU())
    A = activation_hessian(net, CE, data, modules=_leaves)
    exact = block_traces(explicit(net, CE, data, "input"), A)
    traces = A.traces(num_probes=50, seed=3)
    assert traces["1"].method == "exact"  # everything after it is linear
    assert abs(traces["1"].value - exact["1"]) < TOLERANCE * exact["1"]
    for name in EVERY_CALL[:-1]:
        assert traces[name].method == "hutchinson"
        assert "differ by" in traces[name].reason
        assert abs(traces[name].value - exact[name]) < 5 * traces[name].stderr
        same = mf.trace(A.block(name), num_probes=50, seed=3)
        assert abs(traces[name].value - same.value) < 1e-12
        spread = np.std(same.samples, ddof=1) / np.sqrt(50)  # its variances are not recorded
        assert abs(traces[name].stderr - spread) < 1e-12
    with pytest.raises(mf.OperatorError, match="is not its Gauss-Newton matrix"):
        A.traces("exact")


def test_the_gauss_newton_trace_is_labelled_as_such():
    net, data = residual(nn.Tanh())
    A = activation_hessian(net, CE, data, modules=_leaves)
    x, _ = data
    z = net(x).detach()
    of_outputs = torch.autograd.functional.hessian(
        lambda f: CE(f.view(z.shape), data[1]), z.reshape(-1)
    )

    def outputs(flat):
        parts = torch.split(flat, [20] * 5)
        return by_hand(net, x, [part.view(SAMPLES, 4) for part in parts], "input")

    J = torch.autograd.functional.jacobian(outputs, torch.zeros(100, dtype=DOUBLE))
    J = J.reshape(z.numel(), -1)
    exact = block_traces(J.T @ of_outputs @ J, A)
    for name, trace in A.traces("gauss-newton").items():
        assert trace.method == "gauss-newton"
        assert abs(trace.value - exact[name]) < TOLERANCE * exact[name]


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_per_sample_traces_are_the_contributions_of_the_samples_entries(method):
    net, data = residual()
    A = activation_hessian(net, CE, data, modules=_leaves)
    exact = explicit(net, CE, data, "input")
    for name, trace in A.traces(method, num_probes=200, seed=0, per_sample=True).items():
        rows = A.partition[name]
        diagonal = exact[rows, rows].diagonal().view(SAMPLES, -1).sum(dim=1).numpy()
        assert trace.value.shape == (SAMPLES,)
        allowed = 5 * trace.stderr + TOLERANCE
        assert (abs(trace.value - diagonal) < allowed).all()
        alone = A.traces(method, num_probes=200, seed=0)[name]
        assert abs(trace.value.sum() - alone.value) < TOLERANCE


def test_samples_that_mix_are_detected():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).to(DOUBLE)
    data = batch(samples=SAMPLES)
    A = activation_hessian(net, CE, data, modules=nn.Linear, at="output")
    with pytest.raises(mf.OperatorError, match="samples of the batch mix"):
        A.traces(per_sample=True)
    exact = block_traces(A.to_dense(), A)
    traces = A.traces("gauss-newton")
    assert traces["3"].num_matvecs == 3 * SAMPLES  # each sample takes its own passes
    assert abs(traces["3"].value - exact["3"]) < TOLERANCE * exact["3"]
    net.eval()
    calm = activation_hessian(net, CE, data, modules=nn.Linear, at="output")
    exact = block_traces(calm.to_dense(), calm)
    for name, trace in calm.traces("exact").items():
        assert trace.num_matvecs == 3
        assert abs(trace.value - exact[name]) < TOLERANCE * exact[name]


class Pairs(nn.Module):
    """A network in which each sample is mixed with its neighbour."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x)
        pairs = h.view(-1, 2, 4)
        return self.b(torch.relu(h + pairs.flip(1).reshape(h.shape)))


@pytest.mark.parametrize("samples", [2, 4, 6, 24])
def test_mixing_of_neighbouring_samples_is_detected(samples):
    torch.manual_seed(0)
    net = Pairs().to(DOUBLE)
    A = activation_hessian(net, CE, batch(samples=samples), modules="a", at="output")
    exact = A.to_dense().trace()
    (trace,) = A.traces("exact").values()
    assert trace.num_matvecs == 3 * samples
    assert abs(trace.value - exact) < TOLERANCE * exact
    with pytest.raises(mf.OperatorError, match="samples of the batch mix"):
        A.traces(per_sample=True)


LOSSES = {
    "huber": lambda z, y: nn.functional.huber_loss(z, torch.ones_like(z)),
    "samples that mix": lambda z, y: (z**4).mean() + (z[0] * z[1]).sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_user_defined_loss_has_exact_traces(loss):
    net, data = residual()
    A = activation_hessian(net, loss, data, modules=_leaves)
    exact = block_traces(explicit(net, loss, data, "input"), A)
    for name, trace in A.traces("exact").items():
        assert abs(trace.value - exact[name]) < TOLERANCE * abs(exact[name])


def test_targets_at_every_position_take_a_pass_per_position():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 1)).to(DOUBLE)
    x, _ = batch("image", samples=SAMPLES)
    y = torch.randint(3, (SAMPLES, 2, 2))
    A = activation_hessian(net, nn.CrossEntropyLoss(ignore_index=1), (x, y), modules=nn.Conv2d)
    exact = block_traces(A.to_dense(), A)
    for name, trace in A.traces("exact").items():
        assert trace.num_matvecs == 3 * 4
        assert abs(trace.value - exact[name]) < TOLERANCE * exact[name]


@pytest.mark.parametrize("method", ["exact", "probes"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_traces_over_several_batches_are_summed_with_the_weights_of_the_loss(method, reduction):
    net, _ = residual()
    x, y = batch(samples=23)
    x = x[:, :4].contiguous()
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE)
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=2, reduction=reduction)
    batches = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    settings = {"modules": _leaves, "method": method, "num_probes": 60, "seed": 0}
    whole = activation_traces(net, loss, (x, y), **settings | {"method": "exact"})
    summed = activation_traces(net, loss, batches, **settings)
    samples = activation_traces(net, loss, batches, **settings, per_sample=True)
    for name, trace in summed.items():
        allowed = 5 * trace.stderr + TOLERANCE * whole[name].value
        assert abs(trace.value - whole[name].value) < allowed
        assert samples[name].value.shape == (23,)
        assert abs(samples[name].value.sum() - trace.value) < 1e-9 * trace.value


def test_modules_are_chosen_by_type_name_pattern_or_function():
    net, data = residual()

    def names(modules):
        return activation_hessian(net, CE, data, modules=modules).names

    assert names(nn.Linear) == ("0.a", "0.b", "1")
    assert names((nn.Linear, nn.ReLU)) == EVERY_CALL
    assert names("0.b") == ("0.b",)
    assert names(["0.b", "1"]) == ("0.b", "1")
    assert names("0.*") == EVERY_CALL[:-1]
    assert names(lambda name, module: "relu" in name) == ("0.relu#0", "0.relu#1")
    assert names(nn.Sequential) == ("Sequential",)


@pytest.mark.parametrize("name", ["long short-term memory", "attention", "transformer layer"])
def test_the_port_of_a_layer_that_returns_a_tuple_is_its_first_tensor(name):
    model, data = network(name)
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    inner = next(n for n in ("layer", "attention", "0") if n in dict(model.named_modules()))
    for at in ("input", "output"):
        A = activation_hessian(model, CE, data, modules=[inner, head], at=at)
        report = mf.check_operator(A)
        assert report.ok
        assert report.hermitian
        rows = A.partition[head]
        exact = A.to_dense()[rows, rows].trace()
        assert abs(A.traces()[head].value - exact) < TOLERANCE * exact


@pytest.mark.parametrize("at", ["input", "output", "tensor"])
@pytest.mark.parametrize("name", ["convolution", "batch norm, training", "residual"])
def test_the_model_is_restored_also_after_an_error(name, at):
    model, data = network(name)
    before = snapshot(model)
    A = activation_hessian(model, CE, data, modules=_leaves, at=at)
    A @ torch.ones(A.shape[0], dtype=DOUBLE)
    A.traces(num_probes=2)
    assert_untouched(before, snapshot(model))
    calls = iter([False, True])

    def broken(outputs, targets):
        if next(calls):
            raise RuntimeError("in the loss")
        return CE(outputs, targets)

    failing = activation_hessian(model, broken, data, modules=_leaves, at=at)
    with pytest.raises(RuntimeError, match="in the loss"):
        failing @ torch.ones(A.shape[0], dtype=DOUBLE)
    assert_untouched(before, snapshot(model))


def test_frozen_parameters_and_inference_mode_do_not_change_results():
    net, data = residual()
    exact = activation_hessian(net, CE, data, modules=_leaves).to_dense()
    net.requires_grad_(False)
    with torch.inference_mode():
        A = activation_hessian(net, CE, data, modules=_leaves)
        dense, traces = A.to_dense().clone(), A.traces()
    assert torch.equal(dense, exact)
    assert abs(traces["1"].value - exact[A.partition["1"], A.partition["1"]].trace()) < 1e-12


def test_half_precision_models_have_single_precision_vectors():
    net, (x, y) = residual()
    exact = activation_traces(net, CE, (x, y), modules=_leaves, method="exact")
    net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    A = activation_hessian(net, CE, (x, y), modules=_leaves)
    assert A.dtype == torch.float32
    for name, trace in A.traces("gauss-newton").items():
        assert abs(trace.value - exact[name].value) < 0.1 * exact[name].value  # 8 bits


def test_the_graph_is_rebuilt_after_a_training_step():
    net, data = residual()
    A = activation_hessian(net, CE, data, modules=_leaves)
    old = A.to_dense()
    with torch.no_grad():
        net[1].weight.mul_(1.5)
    assert relative(A.to_dense(), old) > 0.1
    assert torch.equal(A.to_dense(), activation_hessian(net, CE, data, modules=_leaves).to_dense())


class Careless(nn.Module):
    """An in-place activation of a tensor that is read again, or whose result is not used."""

    def __init__(self, ignored):
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.ignored = ignored

    def forward(self, x):
        h = self.a(x)
        r = self.relu(h)
        return self.b(h if self.ignored else h + r)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_port_where_adding_zero_changes_the_network_is_an_error(ignored):
    _, data = residual()
    torch.manual_seed(0)
    net = Careless(ignored).to(DOUBLE)
    with pytest.raises(mf.OperatorError, match="adding zero at the ports changes the loss"):
        activation_hessian(net, CE, data, modules="relu").traces()
    if not ignored:
        return
    with pytest.raises(mf.OperatorError, match="changed in place by a call whose result"):
        activation_hessian(net, CE, data, modules="b", at="tensor").traces()


ERRORS = {
    "several batches": (
        lambda net, data: activation_hessian(net, CE, [data, data], modules="1"),
        mf.OperatorError,
        "over one batch.*activation_traces",
    ),
    "no such type": (
        lambda net, data: activation_hessian(net, CE, data, modules=nn.Conv2d),
        ValueError,
        "selects none of the model's modules",
    ),
    "no such name": (
        lambda net, data: activation_hessian(net, CE, data, modules="2.*"),
        ValueError,
        r"no module matches '2\.\*'",
    ),
    "no such place": (
        lambda net, data: activation_hessian(net, CE, data, modules="1", at="weight"),
        ValueError,
        "at must be 'input'",
    ),
    "no such method": (
        lambda net, data: activation_hessian(net, CE, data, modules="1").traces("best"),
        ValueError,
        "method must be one of 'auto'",
    ),
    "no such block": (
        lambda net, data: activation_hessian(net, CE, data, modules="1").block("0"),
        ValueError,
        "no port matches '0'",
    ),
    "vector loss": (
        lambda net, data: activation_hessian(
            net, nn.CrossEntropyLoss(reduction="none"), data, modules="1"
        ),
        mf.OperatorError,
        "scalar tensor",
    ),
    "detached": (
        lambda net, data: activation_hessian(
            net, lambda z, y: CE(z.detach(), y), data, modules="1"
        ).traces(),
        mf.OperatorError,
        "does not depend on the ports",
    ),
    "tokens": (
        lambda net, data: activation_hessian(
            *(network("embedding")[0], CE, batch("tokens")), modules=nn.Embedding
        ),
        mf.OperatorError,
        "no floating point tensor as input.*at='output'",
    ),
}


@pytest.mark.parametrize(("make", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_invalid_arguments_raise_a_clear_error(make, kind, message):
    net, data = residual()
    with pytest.raises(kind, match=message):
        make(net, data)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
