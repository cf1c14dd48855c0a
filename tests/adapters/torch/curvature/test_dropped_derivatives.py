"""Second derivatives that torch drops while the matrix stays symmetric are refused by name."""

import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, batch, relative  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd import Function  # noqa: E402
from torch.autograd.function import once_differentiable  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import activation_hessian, fisher, ggn, hessian, hessian_of  # noqa: E402
from matfree_torch.derivative_checks import checks  # noqa: E402

CE = nn.CrossEntropyLoss()
STRATEGIES = ("auto", "recompute")


def swish_slope(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


class Swish(Function):
    """x sigmoid(x), with a slope that has no graph, as in a fused kernel."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            slope = swish_slope(x)
        return g * slope


class SavedSlope(Function):
    """The same with the slope computed in the forward pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(swish_slope(x))
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Once(Function):
    """The same, declared to be differentiable once."""

    forward = Swish.forward

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * swish_slope(ctx.saved_tensors[0])


class WithoutGraph(Function):
    """The same with a backward pass that has no graph at all."""

    forward = Swish.forward

    @staticmethod
    def backward(ctx, g):
        with torch.no_grad():
            return g * swish_slope(ctx.saved_tensors[0])


class Correct(Function):
    """The same with a differentiable backward pass."""

    forward = Swish.forward

    @staticmethod
    def backward(ctx, g):
        return g * swish_slope(ctx.saved_tensors[0])


class Rounded(Function):
    """A straight-through estimator: rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx, g):
        return g


class Apply(nn.Module):
    """A layer that applies an autograd function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class FusedCrossEntropy(Function):
    """Cross-entropy whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx, z, y):
        p = torch.softmax(z, 1)
        ctx.save_for_backward((p - nn.functional.one_hot(y, z.shape[1])) / len(y))
        return -torch.log(p[range(len(y)), y]).mean()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def mlp(*middle, dtype=DOUBLE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), *middle, nn.Linear(4, 3)).to(dtype)


def data(dtype=DOUBLE):
    x, y = batch()
    return x.to(dtype), y


WRONG = (Swish, SavedSlope, Once, WithoutGraph)


@pytest.mark.parametrize("function", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_activation_without_a_second_derivative_is_named(function, dtype, strategy):
    model = mlp(Apply(function), dtype=dtype)
    H = hessian(model, CE, data(dtype), strategy=strategy)
    with pytest.raises(mf.OperatorError, match=rf"in Apply layer '1'.*{function.__name__}"):
        H @ torch.ones(H.shape[0], dtype=dtype)


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("kink", [nn.ReLU(), nn.LeakyReLU(), nn.MaxPool1d(1), nn.Hardtanh()])
def test_kinks_elsewhere_in_the_network_do_not_hide_it(position, kink):
    middle = (kink, Apply(Swish)) if position == "before" else (Apply(Swish), kink)
    H = hessian(mlp(*middle, dtype=torch.float32), CE, data(torch.float32))
    with pytest.raises(mf.OperatorError, match=r"in Apply layer '[12]'.*Swish"):
        H.to_dense()


def test_it_is_found_in_every_position():
    deep = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(4, 4), Apply(Swish)), nn.Tanh())
    on_outputs = nn.Sequential(mlp(nn.Tanh()), Apply(Swish))

    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(Swish.apply(self.first(x)))

    for model, place in (
        (mlp(deep), r"layer '1\.1\.1'"),
        (on_outputs, "layer '1'"),
        (Inline(), r"Inline \(the model itself\)"),
    ):
        H = hessian(model.to(DOUBLE), CE, [batch(), batch()])
        with pytest.raises(mf.OperatorError, match=place):
            mf.trace(H, num_probes=1)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("kink", [nn.Identity(), nn.ReLU()])
def test_correct_custom_functions_are_accepted(dtype, kink):
    H = hessian(mlp(Apply(Correct), kink, dtype=dtype), CE, data(dtype))
    expected = hessian(mlp(nn.SiLU(), kink, dtype=dtype), CE, data(dtype)).to_dense()
    assert relative(H.to_dense(), expected) < (1e-10 if dtype == DOUBLE else 1e-4)


def test_a_gradient_that_is_no_derivative_is_not_judged_but_reported():
    H = hessian(mlp(Apply(Rounded)), CE, data())
    with pytest.warns(UserWarning, match="Rounded in Apply layer '1' could not be tested"):
        H @ torch.ones(H.shape[0], dtype=DOUBLE)


def fused(z, y):
    return FusedCrossEntropy.apply(z, y)


class FusedLoss(nn.Module):
    def forward(self, z, y):
        return FusedCrossEntropy.apply(z, y)


@pytest.mark.parametrize("loss", [fused, FusedLoss()], ids=["function", "module"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("matrix", [hessian, ggn])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_a_fused_loss_is_refused(matrix, loss, dtype, activation):
    A = matrix(mlp(activation, dtype=dtype), loss, data(dtype))
    with pytest.raises(mf.OperatorError, match=r"in the loss .*FusedCrossEntropy"):
        A @ torch.ones(A.shape[0], dtype=dtype)


def test_the_empirical_fisher_matrix_needs_the_gradient_of_the_loss_alone():
    F = fisher(mlp(nn.Tanh()), fused, data(), kind="empirical")
    assert F.to_dense().isfinite().all()


@pytest.mark.parametrize("function", [Swish, SavedSlope])
def test_gauss_newton_matrices_need_first_derivatives_of_the_network_alone(function):
    exact = ggn(mlp(nn.SiLU()), CE, data()).to_dense()
    assert relative(ggn(mlp(Apply(function)), CE, data()).to_dense(), exact) < 1e-10


@pytest.mark.parametrize("function", [Once, WithoutGraph])
@pytest.mark.parametrize("position", ["inside", "last"])
@pytest.mark.parametrize("matrix", [ggn, fisher])
def test_gauss_newton_matrices_refuse_a_backward_pass_that_is_not_linear_in_torch(
    matrix, function, position
):
    layer = Apply(function)
    model = mlp(layer) if position == "inside" else nn.Sequential(mlp(nn.Tanh()), layer)
    G = matrix(model, CE, data())
    with pytest.raises(mf.OperatorError, match=r"in Apply layer '1'"):
        G.to_dense()


@pytest.mark.parametrize("at", ["input", "output"])
def test_activation_hessians_refuse_it(at):
    model = mlp(Apply(Swish))
    with pytest.raises(mf.OperatorError, match=r"in Apply layer '1'.*Swish"):
        activation_hessian(model, CE, data(), modules=nn.Linear, at=at).to_dense()


def test_functions_of_tensors_refuse_it():
    point = {"x": torch.randn(5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))}
    H = hessian_of(lambda t: (Swish.apply(t["x"]) ** 2).sum(), point)
    with pytest.raises(mf.OperatorError, match="Swish"):
        H.to_dense()
    H = hessian_of(lambda t: (Correct.apply(t["x"]) ** 2).sum(), point)
    exact = torch.autograd.functional.hessian(
        lambda x: (nn.functional.silu(x) ** 2).sum(), point["x"]
    )
    assert relative(H.to_dense(), exact) < 1e-10


def test_finite_differences_are_the_cure():
    model, exact = mlp(Apply(Swish)), mlp(nn.SiLU())
    H = hessian(model, CE, data(), strategy="finite-difference")
    assert relative(H.to_dense(), hessian(exact, CE, data()).to_dense()) < 1e-6


def test_values_that_a_loss_holds_constant_are_not_refused():
    def focal(z, y):  # the weights are constants by intention
        terms = nn.functional.cross_entropy(z, y, reduction="none")
        return ((1 - torch.exp(-terms)).detach() * terms).mean()

    model, (x, y) = mlp(nn.Tanh()), batch()
    weights = (1 - torch.exp(-nn.functional.cross_entropy(model(x), y, reduction="none"))).detach()

    def weighted(z, y):
        return (weights * nn.functional.cross_entropy(z, y, reduction="none")).mean()

    expected = hessian(model, weighted, (x, y)).to_dense()
    assert relative(hessian(model, focal, (x, y)).to_dense(), expected) < 1e-12


class SinglePrecisionOnly(Function):
    """A function that refuses other precisions, as GPU kernels do, and whose gradient jumps."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype == DOUBLE:
            raise RuntimeError("float64 is not supported")
        ctx.save_for_backward(x)
        return torch.floor(40 * x) * x

    @staticmethod
    def backward(ctx, g):
        return g * torch.floor(40 * ctx.saved_tensors[0])


def test_a_function_that_cannot_be_tested_is_reported():
    H = hessian(mlp(Apply(SinglePrecisionOnly), dtype=torch.float32), CE, data(torch.float32))
    with pytest.warns(UserWarning, match="SinglePrecisionOnly in Apply layer '1' could not be"):
        H @ torch.ones(H.shape[0])


@torch.library.custom_op("matfree_tests::swish", mutates_args=())
def registered_swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


registered_swish.register_autograd(
    lambda ctx, g: g * swish_slope(ctx.saved_tensors[0].detach()), setup_context=_save
)


def test_an_operation_registered_with_torch_is_tested_like_a_custom_function():
    class Registered(nn.Module):
        def forward(self, x):
            return registered_swish(x)

    H = hessian(mlp(Registered()), CE, data())
    with pytest.raises(mf.OperatorError, match=r"in Registered layer '1'.*swish"):
        H.to_dense()


@pytest.mark.parametrize("strategy", ["auto", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_product_is_compared_with_a_difference_where_derivatives_are_smooth(
    monkeypatch, strategy, dtype
):
    # Without the search for custom functions, the function stands for an operation of torch.
    monkeypatch.setattr(checks, "has_custom_functions", lambda value: False)
    H = hessian(mlp(Apply(Swish), dtype=dtype), CE, [data(dtype)] * 2, strategy=strategy)
    with pytest.raises(mf.OperatorError, match=r"Apply layer '1'.*central difference"):
        H.to_dense()


@pytest.mark.parametrize("kink", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh()])
@pytest.mark.parametrize("strategy", ["auto", "recompute"])
def test_in_double_precision_kinks_do_not_prevent_the_comparison(monkeypatch, strategy, kink):
    monkeypatch.setattr(checks, "has_custom_functions", lambda value: False)
    H = hessian(mlp(kink, Apply(Swish)), CE, [data()] * 2, strategy=strategy)
    with pytest.raises(mf.OperatorError, match=r"Apply layer '2'.*central difference"):
        H.to_dense()


CHECKED = {
    "smooth": (lambda: mlp(nn.Tanh()), "H v agrees with a difference of gradients to"),
    "kinks": (lambda: mlp(nn.ReLU()), "H v agrees with a difference of gradients to"),
    "kinks in float32": (
        lambda: mlp(nn.ReLU(), dtype=torch.float32),
        "not compared .* the derivative of Relu jumps.*double precision",
    ),
    "half": (lambda: mlp(nn.Tanh(), dtype=torch.bfloat16), "not compared .* half precision"),
    "custom": (lambda: mlp(nn.ReLU(), Apply(Correct)), "second derivatives of Correct agree"),
    "hook": (lambda: mlp(ScaledGradient()), "differs from a difference .* a hook"),
}


class ScaledGradient(nn.Module):
    """A tensor hook makes the gradient something else than the derivative of the loss."""

    def forward(self, x):
        y = torch.tanh(x)
        if y.requires_grad:
            y.register_hook(lambda g: 2 * g)
        return y


@pytest.mark.filterwarnings("ignore:|u.T A w")
@pytest.mark.parametrize("kind", CHECKED)
def test_what_was_compared_can_be_asked(kind):
    make, expected = CHECKED[kind]
    model = make()
    H = hessian(model, CE, data(next(model.parameters()).dtype))
    assert re.search(expected, H.derivative_check)


def test_a_jump_at_the_network_itself_is_no_fault():
    model, (x, y) = mlp(nn.ReLU()), data()
    with torch.no_grad():
        model[0].bias.zero_()
    x[:2] = 0.0  # the inputs of these units are exactly zero
    check = hessian(model, CE, (x, y)).derivative_check
    assert re.search("agrees|jumps even within the smallest step", check)
