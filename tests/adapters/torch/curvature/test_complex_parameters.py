"""Complex parameters are real and imaginary parts; the oracle holds them as real parameters."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import (  # noqa: E402
    batch_jackknife,
    fisher,
    ggn,
    hessian,
    hessian_of,
    loss_landscape,
    towards,
)

CE = nn.CrossEntropyLoss()
STRATEGIES = ("auto", "recompute", "forward", "folded", "finite-difference")


class Fourier(nn.Module):
    """A layer of a Fourier neural operator, with complex weights or their real counterparts."""

    def __init__(self, real, dtype=DOUBLE):
        super().__init__()
        self.real = real
        self.first, self.last = nn.Linear(3, 8, dtype=dtype), nn.Linear(8, 2, dtype=dtype)
        w = torch.randn(5, dtype=dtype.to_complex())
        mix = torch.randn(2, 2, dtype=dtype.to_complex())
        self.w = nn.Parameter(torch.view_as_real(w).clone() if real else w)
        self.mix = nn.Parameter(torch.view_as_real(mix).clone() if real else mix)

    def forward(self, x):
        w, mix = map(torch.view_as_complex, (self.w, self.mix)) if self.real else (self.w, self.mix)
        h = torch.fft.irfft(torch.fft.rfft(self.first(x)) * w, n=8)
        z = self.last(torch.tanh(h))
        z = (torch.tanh(z.to(mix.dtype) @ mix.conj().T) * 1j).imag
        return z + (mix @ mix).abs().sum()


def pair(dtype=DOUBLE, seed=0):
    models = []
    for real in (False, True):
        torch.manual_seed(seed)
        models.append(Fourier(real, dtype))
    return models


def data(dtype=DOUBLE):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, dtype=dtype, generator=generator)
    return x, torch.randint(2, (6,), generator=generator)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_hessian_is_that_of_real_and_imaginary_parts(strategy):
    C, R = (hessian(model, CE, data(), strategy=strategy) for model in pair())
    assert C.names == R.names
    assert C.partition == R.partition
    assert C.dtype == DOUBLE
    tolerance = 1e-6 if strategy == "finite-difference" else 1e-10
    assert relative(C.to_dense(), R.to_dense()) < tolerance
    assert relative(C.gradient(), R.gradient()) < 1e-12


@pytest.mark.parametrize("kind", ["ggn", "exact", "empirical"])
def test_gauss_newton_and_fisher_matrices_are_those_of_real_and_imaginary_parts(kind):
    def make(model):
        return ggn(model, CE, data()) if kind == "ggn" else fisher(model, CE, data(), kind=kind)

    C, R = map(make, pair())
    assert relative(C.to_dense(), R.to_dense()) < 1e-10


def test_vectors_alternate_between_real_and_imaginary_parts():
    complex_model, _ = pair()
    H = hessian(complex_model, CE, data(), params=["w", "first.bias"])
    vector = torch.arange(float(H.shape[0]), dtype=DOUBLE)
    tensors = H.unflatten(vector)
    assert tensors["w"].dtype == torch.complex128
    part = vector[H.partition["w"]]
    assert torch.equal(tensors["w"], torch.complex(part[::2], part[1::2]))
    assert torch.equal(H.flatten(tensors), vector)
    with pytest.raises(
        ValueError, match=r"'w' is torch\.complex128: got a tensor of torch\.float64"
    ):
        H.flatten(tensors | {"w": tensors["w"].real})


def test_names_select_complex_parameters():
    C, R = (hessian(model, CE, data(), params="w") for model in pair())
    assert C.shape == (10, 10)
    assert relative(C.to_dense(), R.to_dense()) < 1e-10
    C, R = (hessian(model, CE, data()).block("w", "*.weight") for model in pair())
    assert relative(C.to_dense(), R.to_dense()) < 1e-10


def test_single_precision_and_weight_decay():
    C, R = (
        hessian(model, CE, data(torch.float32), weight_decay=0.3) for model in pair(torch.float32)
    )
    assert C.dtype == torch.float32
    assert relative(C.to_dense(), R.to_dense()) < 1e-4  # rounding errors of float32
    C, R = (hessian(model, CE, data(), weight_decay={"w": 0.3}) for model in pair())
    assert relative(C.to_dense(), R.to_dense()) < 1e-10
    assert relative(C.gradient(), R.gradient()) < 1e-12
    step = torch.randn(C.shape[0], dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    assert C.loss(step) == pytest.approx(R.loss(step), rel=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_functions_of_complex_tensors(strategy):
    complex_model, real_model = pair()
    x, y = data()

    def value(model):
        return lambda tensors: CE(functional_call(model, tensors, (x,)), y)

    C, R = (
        hessian_of(value(model), dict(model.named_parameters()), strategy=strategy)
        for model in (complex_model, real_model)
    )
    tolerance = 1e-6 if strategy == "finite-difference" else 1e-10
    assert relative(C.to_dense(), R.to_dense()) < tolerance


def test_a_quadratic_form_in_one_complex_number():
    point = {"z": torch.tensor([0.5 - 2j], dtype=torch.complex128)}
    H = hessian_of(lambda t: (t["z"] ** 2).real.sum(), point)  # a^2 - b^2
    assert relative(H.to_dense(), torch.tensor([[2.0, 0.0], [0.0, -2.0]], dtype=DOUBLE)) < 1e-15


def test_landscapes_move_complex_parameters():
    complex_model, real_model = pair()
    other, real_other = pair(seed=7)
    lines = [
        loss_landscape(model, CE, data(), target, span=(0, 1), points=3).values
        for model, target in (
            (complex_model, other),
            (real_model, real_other),
            (complex_model, towards(other.state_dict())),
        )
    ]
    exact = CE(other(data()[0]), data()[1]).item()
    assert lines[0][0, -1] == pytest.approx(exact, rel=1e-12)
    assert relative(torch.tensor(lines[0]), torch.tensor(lines[1])) < 1e-12
    assert relative(torch.tensor(lines[2]), torch.tensor(lines[1])) < 1e-12
    line = loss_landscape(
        complex_model, CE, data(), "random", points=3, seed=0, filter_normalize=True
    )
    assert torch.tensor(line.values).isfinite().all()


def test_batches_of_a_complex_model_vary_like_those_of_the_real_one():
    x, y = data()
    batches = [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])]
    C, R = (batch_jackknife(hessian(model, CE, batches), seed=0) for model in pair())
    assert C.value == pytest.approx(R.value, rel=1e-10)
    assert C.data_stderr == pytest.approx(R.data_stderr, rel=1e-8)


def test_a_complex_loss_is_an_error():
    complex_model, _ = pair()
    H = hessian(complex_model, lambda z, y: CE(z, y) + 0j, data())
    with pytest.raises(mf.OperatorError, match=r"must be real: got torch\.complex128"):
        H.to_dense()
