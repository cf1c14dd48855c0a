"""Models and losses that differentiate themselves: forces, residuals, gradient penalties."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, autograd_hessian, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402

from matfree_torch import ggn, hessian, loss_landscape  # noqa: E402

MSE = nn.MSELoss()


class Residual(nn.Module):
    """u'' + u for a network u."""

    def __init__(self, functional):
        super().__init__()
        torch.manual_seed(0)
        self.u = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).to(DOUBLE)
        self.functional = functional

    def forward(self, x):
        if self.functional:
            u = lambda t: self.u(t[None])[0, 0]  # noqa: E731  # a local formula
            second = torch.func.vmap(torch.func.grad(lambda t: torch.func.grad(u)(t)[0]))(x)
            return second + self.u(x)
        x = x.detach().requires_grad_(True)
        value = self.u(x)
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return second + value


DATA = torch.linspace(0, 1, 6, dtype=DOUBLE)[:, None], torch.zeros(6, 1, dtype=DOUBLE)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_residuals_of_differential_equations(functional, inference):
    model = Residual(functional)
    H = hessian(model, MSE, DATA)
    assert relative(H.to_dense(), autograd_hessian(model, MSE, DATA)) < 1e-10
    assert ggn(model, MSE, DATA).to_dense().isfinite().all()
    true = MSE(model(DATA[0]), DATA[1]).item()
    with torch.no_grad() if inference else torch.enable_grad():
        assert H.loss() == pytest.approx(true, rel=1e-12)
        assert H.gradient().isfinite().all()
        line = loss_landscape(model, MSE, DATA, "random", points=3, span=1e-3, seed=0)
    assert line.loss == pytest.approx(true, rel=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_penalty_in_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).to(DOUBLE)

    def loss(outputs, targets):
        value = MSE(outputs, targets)
        gradients = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        return value + 0.1 * sum(g.square().sum() for g in gradients)

    H = hessian(model, loss, DATA)
    step = 1e-5
    v = torch.randn(H.shape[0], dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    second = (H.loss(step * v) - 2 * H.loss() + H.loss(-step * v)) / step**2
    assert second == pytest.approx(float(v @ (H @ v)), rel=1e-4)  # rounding: eps / step^2
