"""TF32 is disabled while a network is differentiated, and torch's settings are restored."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.backends import cuda  # noqa: E402
from support.networks import batch  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import (  # noqa: E402
    activation_hessian,
    activation_traces,
    fisher,
    ggn,
    hessian,
    hessian_of,
)
from matfree_torch.autograd.precision import full_precision, without_cudnn  # noqa: E402

BACKENDS = torch.backends
SWITCHES = (
    BACKENDS,
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
)
OLD = (
    torch.get_float32_matmul_precision,
    lambda: BACKENDS.cuda.matmul.allow_tf32,
    lambda: BACKENDS.cudnn.allow_tf32,
    lambda: BACKENDS.cudnn.enabled,
    lambda: BACKENDS.cudnn.benchmark,
)
CE = nn.CrossEntropyLoss()


def settings():
    """All of torch's settings of precision, by its old switches and its new ones."""
    found = [switch.fp32_precision for switch in SWITCHES]
    for read in OLD:
        try:
            found.append(read())
        except RuntimeError:  # the old and new switches contradict each other
            found.append("contradiction")
    return found


def _high():
    torch.set_float32_matmul_precision("high")


def _medium():
    torch.set_float32_matmul_precision("medium")


def _old():
    BACKENDS.cuda.matmul.allow_tf32 = True
    BACKENDS.cudnn.allow_tf32 = False


def _new():
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


def _everything():
    BACKENDS.fp32_precision = "tf32"


@pytest.fixture(
    params=[None, _high, _medium, _old, _new, _everything],
    ids=lambda f: f.__name__ if f else "default",
)
def caller(request):
    """Settings that a caller may have made, each restored afterwards."""
    before = settings()
    old = torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32
    new = [switch.fp32_precision for switch in SWITCHES]
    if request.param is not None:
        request.param()
    yield
    for switch, precision in zip(
        SWITCHES[1:2] + SWITCHES[3:5], ("none", "tf32", "tf32"), strict=True
    ):
        switch.fp32_precision = precision
    torch.set_float32_matmul_precision(old[0])
    BACKENDS.cudnn.allow_tf32 = old[1]
    for switch, precision in zip(SWITCHES, new, strict=True):
        switch.fp32_precision = precision
    assert settings() == before


def assert_full():
    assert [switch.fp32_precision for switch in SWITCHES[1:2] + SWITCHES[3:6]] == ["ieee"] * 4


class Watching(nn.Linear):
    """A layer that checks torch's settings in its forward and backward passes."""

    def __init__(self, check):
        super().__init__(6, 3)
        self.check = check

    def forward(self, x):
        self.check()
        return _Watched.apply(super().forward(x), self.check)


class _Watched(torch.autograd.Function):
    """The identity, which checks torch's settings in its backward passes."""

    @staticmethod
    def forward(ctx, x, check):
        ctx.check = check
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.check()
        return _Watched.apply(gradient, ctx.check), None


def test_settings_are_restored_after_use_and_after_an_error(caller):
    before = settings()
    with full_precision(), without_cudnn():
        assert_full()
        assert not BACKENDS.cudnn.enabled
        assert torch.get_float32_matmul_precision() == "highest"
        with full_precision():
            assert_full()
    assert settings() == before
    with pytest.raises(ZeroDivisionError), full_precision(), without_cudnn():
        1 / 0  # noqa: B018  # for the error
    assert settings() == before


OPERATORS = {
    "hessian": lambda model, data, **o: hessian(model, CE, data, **o),
    "recompute": lambda model, data, **o: hessian(model, CE, data, strategy="recompute", **o),
    "ggn": lambda model, data, **o: ggn(model, CE, data, **o),
    "empirical": lambda model, data, **o: fisher(model, CE, data, kind="empirical", **o),
    "activation": lambda model, data, **o: activation_hessian(
        model, CE, data, modules="0", at="input", **o
    ),
    "hessian_of": lambda model, data, **o: hessian_of(
        lambda t: CE(torch.func.functional_call(model, t, data[0]), data[1]),
        dict(model.named_parameters()),
        **o,
    ),
}


def _data():
    x, y = batch()
    return x.float(), y


@pytest.mark.parametrize("make_operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_forward_and_both_backward_passes_run_in_full_precision(caller, make_operator):
    seen = []

    def check():
        seen.append(1)
        assert_full()

    before = settings()
    model = nn.Sequential(Watching(check))
    A = make_operator(model, _data())
    A @ A.space.probes(2, seed=0)
    forward = len(seen)
    A @ A.space.probes(2, seed=0)
    assert len(seen) > forward > 0  # matvecs with the kept graph as well
    assert settings() == before


@pytest.mark.parametrize("make_operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_if_tf32_is_allowed_torchs_settings_hold(make_operator):
    here, seen = settings(), []
    model = nn.Sequential(Watching(lambda: seen.append(settings())))
    A = make_operator(model, _data(), allow_tf32=True)
    assert "TF32 allowed, noise not yet measured" in repr(A)
    A @ A.space.probes(1, seed=0)
    assert seen
    assert all(settings == here for settings in seen)
    assert "TF32 allowed, noise " in repr(A)
    assert f"{A.noise:.0e}" in repr(A)


def test_traces_and_errors_restore_the_settings(caller):
    before = settings()
    model = nn.Sequential(Watching(assert_full))
    activation_traces(model, CE, _data(), modules="0", num_probes=2, seed=0)
    hessian(model, CE, _data()).gradient()
    assert settings() == before

    def broken():
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        hessian(nn.Sequential(Watching(broken)), CE, _data()).gradient()
    assert settings() == before


def test_recurrent_layers_run_without_cudnn_and_no_other_setting_changes():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            seen.append(BACKENDS.cudnn.enabled)
            assert_full()
            return self.head(self.cell(x[:, None, :])[0][:, 0])

    seen, before = [], settings()
    torch.manual_seed(0)
    H = hessian(Recurrent(), CE, _data())
    assert mf.check_operator(H).hermitian
    assert not any(seen)
    assert settings() == before


@pytest.mark.gpu
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda t: t.__name__)
def test_recurrent_layers_have_the_same_hessian_on_gpu_and_host(make):
    device = cuda()

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = make(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x.reshape(-1, 2, 6))[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent().double()
    x, y = torch.randn(20, 12, dtype=torch.float64), torch.randint(3, (20,))
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    here = hessian(model, CE, (x, y)) @ v
    there = hessian(model.to(device), CE, (x.to(device), y.to(device))) @ v.to(device)
    assert there.device.type == "cuda"
    assert (there.cpu() - here).norm() < 1e-12 * here.norm()


@pytest.mark.gpu
def test_convolutions_on_a_gpu_have_full_precision_unless_tf32_is_allowed():
    device = cuda()
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("this device has no TF32")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.Tanh(), nn.Conv2d(32, 32, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(32 * 16, 3),
    )  # fmt: skip
    x, y = torch.randn(64, 16, 8, 8), torch.randint(3, (64,))
    exact = hessian(model.double(), CE, (x.double(), y))
    v = exact.space.probes(1, seed=1)[:, 0]
    here = exact @ v
    model = model.float().to(device)
    errors = []
    for allowed in (False, True):
        H = hessian(model, CE, (x.to(device), y.to(device)), allow_tf32=allowed)
        there = (H @ v.float().to(device)).double().cpu()
        errors.append(float((there - here).norm() / here.norm()))
    assert errors[0] < 1e-4  # eps of single precision is 1e-7, of TF32 1e-3
    assert errors[1] > 3 * errors[0]  # the caller's settings hold: torch's default for convolutions
