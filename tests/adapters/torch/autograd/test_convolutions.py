"""Replaced convolutions and normalizations, compared with explicit matrices."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402  # after the check for torch
    DOUBLE,
    autograd_hessian,
    explicit_ggn,
    flat_parameters,
    relative,
)
from torch import nn  # noqa: E402

from matfree_torch import activation_hessian, ggn, hessian  # noqa: E402
from matfree_torch.autograd.convolutions import fast_double_backward  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10

LAYERS = {
    "one dimension": (lambda: nn.Conv1d(2, 4, 3, padding=1), (2, 5)),
    "two dimensions": (lambda: nn.Conv2d(2, 4, 3), (2, 4, 4)),
    "three dimensions": (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 2)),
    "stride with a remainder": (lambda: nn.Conv2d(2, 4, 2, stride=2, padding=1), (2, 4, 3)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=2), (2, 4, 4)),
    "groups": (lambda: nn.Conv2d(2, 4, 3, groups=2), (2, 4, 4)),
    "no bias": (lambda: nn.Conv2d(2, 4, 3, bias=False), (2, 4, 4)),
    "different sizes by dimension": (
        lambda: nn.Conv2d(2, 3, (1, 3), stride=(1, 2), padding=(0, 1)),
        (2, 2, 5),
    ),
    "padding by name": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 3, 3)),
    "circular padding": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 3, 3)),
    "normalized": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), (2, 4, 4)),
    "normalized without weights": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, affine=False)),
        (2, 5),
    ),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        (2, 5),
    ),
}


def problem(name):
    """The layer between two smooth ones, so that its gradient in the input matters."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(5, *shape, dtype=DOUBLE)
    layer = make().to(DOUBLE).eval()
    before = nn.Sequential(layer, nn.Tanh(), nn.Flatten())
    for module in layer.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    width = before(x).shape[1]
    first = nn.Sequential(nn.Unflatten(1, shape), layer)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(x[0].numel(), x[0].numel()), nn.Tanh(), first, nn.Tanh(),
        nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip
    return model.to(DOUBLE).eval(), (x, torch.randint(3, (5,)))


@pytest.mark.parametrize("name", LAYERS)
def test_the_hessian_and_the_gauss_newton_matrix_are_the_explicit_ones(name):
    model, data = problem(name)
    exact = autograd_hessian(model, CE, data)
    assert relative(hessian(model, CE, data).to_dense(), exact) < TOLERANCE
    assert relative(ggn(model, CE, data).to_dense(), explicit_ggn(model, CE, data)) < TOLERANCE


def test_a_subset_of_the_parameters_takes_the_principal_submatrix():
    model, data = problem("two dimensions")
    exact = autograd_hessian(model, CE, data)
    H = hessian(model, CE, data)
    names = list(H.names)
    for rows, columns in [("3.1.bias", "3.1.weight"), ("3.1.bias", "1.*"), ("6.*", "3.1.bias")]:
        picked = [
            torch.cat([torch.arange(H.layout.size)[H.partition[n]] for n in names if match(n, p)])
            for p in (rows, columns)
        ]
        expected = exact[picked[0]][:, picked[1]]
        assert relative(H.block(rows, columns).to_dense(), expected) < TOLERANCE


def match(name, pattern):
    return name.startswith(pattern.removesuffix("*"))


def test_frozen_weights_and_inputs_without_gradients_are_supported():
    model, data = problem("two dimensions")
    model[1].requires_grad_(False)
    model[3][1].weight.requires_grad_(False)
    H = hessian(model, CE, data)
    assert H.names == ("3.1.bias", "6.weight", "6.bias")
    everything = autograd_hessian(model.requires_grad_(True), CE, data)
    chosen = flat_mask(model, H.names)
    assert relative(H.to_dense(), everything[chosen][:, chosen]) < TOLERANCE


def flat_mask(model, names):
    parts = [torch.full((p.numel(),), name in names) for name, p in model.named_parameters()]
    assert len(torch.cat(parts)) == len(flat_parameters(model))
    return torch.cat(parts)


def test_activations_at_a_convolution_have_the_explicit_hessian():
    model, data = problem("groups")
    x, y = data
    A = activation_hessian(model, CE, data, modules="3.1", at="input")
    a = model[:4][:3](x).detach()  # the input of the convolution before it is unflattened

    def loss(delta):
        return CE(model[4:](model[3](a + delta.reshape(a.shape))), y)

    exact = torch.autograd.functional.hessian(loss, torch.zeros(a.numel(), dtype=DOUBLE))
    assert relative(A.to_dense(), exact) < TOLERANCE


def kinds(root):
    """The names of all nodes of a graph."""
    found, waiting, seen = set(), [root], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(type(node).__name__)
            waiting += [following for following, _ in node.next_functions]
    return found


def test_the_graph_contains_no_general_rules_of_torch():
    model, (x, y) = problem("normalized")
    parameters = list(model.parameters())
    for context, general in ((torch.enable_grad(), True), (fast_double_backward(), False)):
        with context:
            value = CE(model(x), y)
        gradients = torch.autograd.grad(value, parameters, create_graph=True)
        names = set().union(*(kinds(g.grad_fn) for g in gradients))
        assert (
            "ConvolutionBackwardBackward0" in names or "ConvolutionBackward0" in names
        ) == general
        assert any("BatchNorm" in name for name in names) == general


def test_under_autocast_a_convolution_is_left_to_torch():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), fast_double_backward():
        assert layer(x).dtype == torch.bfloat16
