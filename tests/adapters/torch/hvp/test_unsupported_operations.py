"""Losses and operations that forward mode or tracing does not support, or only with help."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.hvp_problems import CE, mlp, problem  # noqa: E402  # only where torch is
from support.networks import DOUBLE, autograd_hessian, batch, relative  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import hessian  # noqa: E402


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
def test_forward_strategies_support_losses_without_forward_mode_in_torch(loss, kind):
    model, (x, _) = problem("tanh")
    data = x, _targets(kind)
    exact = autograd_hessian(model, loss, data)
    traced = (nn.MSELoss, nn.HuberLoss, nn.SoftMarginLoss, nn.BCEWithLogitsLoss)
    for strategy in ("forward", *["folded"] * isinstance(loss, traced)):
        H = hessian(model, loss, data, strategy=strategy)
        X = H.space.probes(4, seed=0, kind="gaussian")
        assert relative(H @ X, exact @ X) < 1e-10


def test_a_loss_whose_trace_would_crash_the_interpreter_is_an_error():
    model, (x, _) = problem("tanh")
    H = hessian(model, torch.ops.aten.mse_loss, (x, _targets("real")), strategy="folded")
    with pytest.raises(mf.OperatorError, match=r"cannot trace mse_loss.*crashes.*'auto'"):
        H @ H.space.probes(1, seed=0)


class Sampled(nn.Module):
    """A module with an operation that does not support forward mode."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        h = self.inner(x)
        grid = torch.tanh(h[:, :2]).view(-1, 1, 1, 2)
        image = torch.arange(9, dtype=h.dtype).view(1, 1, 3, 3).expand(len(h), 1, 3, 3)
        return h + nn.functional.grid_sample(image, grid, align_corners=True).view(-1, 1)


class Square(torch.autograd.Function):
    """A function that defines only reverse mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Checkpointed(nn.Module):
    """A module whose activations are recomputed in the backward pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def test_modules_that_only_support_reverse_mode_are_reported():
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
def test_operations_without_forward_mode_are_named(strategy):
    H = hessian(Sampled(), CE, batch(), strategy=strategy)
    with pytest.raises(mf.OperatorError, match=rf"'{strategy}' does not .*\(grid_sampler.*'auto'"):
        H @ H.space.probes(1, seed=0)
    assert (
        relative(
            hessian(Sampled(), CE, batch()).to_dense(), autograd_hessian(Sampled(), CE, batch())
        )
        < 1e-10
    )


def test_a_loss_that_reads_values_cannot_be_traced():
    def loss(outputs, targets):
        return CE(outputs, targets) * float(outputs.detach().sum())

    H = hessian(mlp(), loss, batch(), strategy="folded")
    with pytest.raises(mf.OperatorError, match="'folded' does not support"):
        H @ H.space.probes(1, seed=0)


def test_a_folded_program_contains_no_copies():
    model, data = problem("residual convolutions")
    H = hessian(model, CE, data, strategy="folded")
    H.inspect()
    (entry,) = H._graphs._entries
    copies = {f"aten.{name}.default" for name in ("clone", "detach", "_to_copy", "copy")}
    assert copies.isdisjoint(entry.prepared.operations)
    assert H.memory.per_batch == entry.prepared.nbytes
    assert "fold kept" in repr(H)


def _seeded(h):
    torch.manual_seed(3)
    return h * torch.rand(3, dtype=DOUBLE)


def _restored(h):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return h * torch.rand(3, dtype=DOUBLE)


@pytest.mark.parametrize("noise", [_seeded, _restored])
def test_random_numbers_that_a_loss_seeds_itself_are_right_or_not_folded(noise):
    loss = lambda z, y: CE(noise(z), y)  # noqa: E731
    model, data = mlp(), batch()
    exact = autograd_hessian(model, loss, data)
    for strategy in ("auto", "recompute", "forward"):
        assert relative(hessian(model, loss, data, strategy=strategy).to_dense(), exact) < 1e-10
    with pytest.raises(mf.OperatorError, match=r"cannot fold random numbers.*strategy='auto'"):
        hessian(model, loss, data, strategy="folded").to_dense()
