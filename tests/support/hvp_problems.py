"""Small networks on which every strategy for Hessian-vector products is tested."""

import torch
from torch import nn

from support.networks import DOUBLE, Attention, batch

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
    """Give batch norms the running statistics that training would leave."""
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


class Dropping(nn.Module):
    """A functional dropout, which no module announces; the operator fixes its random numbers."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(nn.functional.dropout(torch.tanh(self.inner(x)), 0.5, training=True))
