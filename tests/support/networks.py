"""Small networks of every layer kind, and reference implementations of second derivatives."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

DOUBLE = torch.float64
CLASSES = 3


class Residual(nn.Module):
    """A residual block that calls one in-place activation twice."""

    def __init__(self, width=6, activation=None):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True) if activation is None else activation

    def forward(self, x):
        return x + self.relu(self.b(self.relu(self.a(x))))


class Last(nn.Module):
    """A layer that returns a tuple, and a linear head on the last step of the sequence."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(dim=1))


class Tied(nn.Module):
    """Two layers that share one weight, and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head, self.unused = nn.Linear(6, CLASSES), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def _head(*layers, width):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


def _transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
    return _head(layer, width=12)


NETWORKS = {
    "linear": (lambda: _head(nn.Linear(6, 5), nn.Tanh(), width=5), "vector"),
    "convolution": (lambda: _head(nn.Conv2d(2, 3, 2), nn.GELU(), width=12), "image"),
    "strided convolution": (
        lambda: _head(nn.Conv2d(2, 4, 2, 2, 1, groups=2, bias=False), nn.Tanh(), width=16),
        "image",
    ),
    "transposed convolution": (
        lambda: _head(nn.ConvTranspose2d(2, 2, 2), nn.Tanh(), width=32),
        "image",
    ),
    "average pooling": (
        lambda: _head(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.AvgPool2d(2), width=3),
        "image",
    ),
    "maximum pooling": (
        lambda: _head(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.MaxPool2d(2), width=3),
        "image",
    ),
    "adaptive pooling": (
        lambda: _head(nn.Conv2d(2, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), width=3),
        "image",
    ),
    "batch norm, training": (
        lambda: _head(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Softplus(), width=5),
        "vector",
    ),
    "batch norm, evaluation": (
        lambda: _head(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), width=12).eval(),
        "image",
    ),
    "layer norm": (lambda: _head(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), width=5), "vector"),
    "root mean square norm": (
        lambda: _head(nn.Linear(6, 5), nn.RMSNorm(5), nn.SiLU(), width=5),
        "vector",
    ),
    "group norm": (
        lambda: _head(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), width=16),
        "image",
    ),
    "instance norm": (
        lambda: _head(nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True), nn.Tanh(), width=12),
        "image",
    ),
    "attention": (Attention, "sequence"),
    "transformer layer": (_transformer, "sequence"),
    "gated recurrence": (lambda: Last(nn.GRU(4, 3, batch_first=True), 3), "sequence"),
    "long short-term memory": (lambda: Last(nn.LSTM(4, 2, batch_first=True), 2), "sequence"),
    "embedding": (lambda: _head(nn.Embedding(7, 3), nn.Tanh(), width=9), "tokens"),
    "residual": (lambda: nn.Sequential(Residual(), nn.Linear(6, CLASSES)), "vector"),
    "tied weights": (Tied, "vector"),
}
"""The constructor and the kind of inputs of a network, by the name of the layer kind."""

_INPUTS = {"vector": (6,), "image": (2, 3, 3), "sequence": (3, 4), "tokens": (3,)}


def network(name, seed=0):
    """A network in double precision, and a batch of twelve samples for it."""
    make, kind = NETWORKS[name]
    torch.manual_seed(seed)
    model = make().to(DOUBLE)
    return model, batch(kind)


def batch(kind="vector", samples=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *_INPUTS[kind])
    if kind == "tokens":
        x = torch.randint(7, shape, generator=generator)
    else:
        x = torch.randn(shape, dtype=DOUBLE, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def flat_parameters(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def outputs_of(model, x):
    """The outputs as a function of the flat parameters, with copies of the buffers."""
    shapes = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]

    def function(flat):
        parts = torch.split(flat, [size for _, _, size in shapes])
        state = {
            name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)
        }
        state |= {name: b.clone() for name, b in model.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, state, (x,))

    return function


def autograd_hessian(model, loss, data):
    """The Hessian by torch.autograd.functional, of the loss as a function of one vector."""
    x, y = data
    function = outputs_of(model, x)
    flat = flat_parameters(model)
    return torch.autograd.functional.hessian(lambda f: loss(function(f), y), flat)


def explicit_hessian(model, value):
    """The dense Hessian of a function without arguments, by double backward by hand."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(value(), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        for entry in flat
    ]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def explicit_ggn(model, loss, data):
    """J^T H_z J from an explicit Jacobian and the explicit Hessian of the loss in the outputs."""
    x, y = data
    function, flat = outputs_of(model, x), flat_parameters(model)
    z = function(flat).detach()
    J = torch.autograd.functional.jacobian(function, flat).reshape(z.numel(), -1)
    H_z = torch.autograd.functional.hessian(lambda f: loss(f.view(z.shape), y), z.reshape(-1))
    return J.T @ H_z @ J


def differenced_product(model, loss, data, v, step=1e-5):
    """H v as a difference of two gradients, which does not rely on second derivatives."""
    x, y = data
    function, flat = outputs_of(model, x), flat_parameters(model)

    def gradient(at):
        at = at.requires_grad_()
        return torch.autograd.grad(loss(function(at), y), at)[0]

    return (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step)


def relative(got, exact):
    return float((got - exact).norm() / exact.norm())


def snapshot(model):
    """The state of a model and of the global generator that a call must not change."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
        [id(buffer) for buffer in model.buffers()],
        torch.get_rng_state(),
    )


def assert_untouched(before, after):
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    assert before[1:6] == after[1:6]
    assert torch.equal(before[6], after[6])
