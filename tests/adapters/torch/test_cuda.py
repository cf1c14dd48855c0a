"""Tensors and networks on a CUDA device: results equal the host's and stay on the device."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.backends import cuda  # noqa: E402
from support.networks import DOUBLE, batch, relative  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree.arrays import to_host  # noqa: E402
from matfree_torch import activation_hessian, fisher, ggn, hessian  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support")

CE = nn.CrossEntropyLoss()
LAYOUTS = {
    "dense": lambda A: A,
    "CSR": lambda A: A.to_sparse_csr(),
    "CSC": lambda A: A.to_sparse_csc(),
    "COO": lambda A: A.to_sparse_coo(),
    "BSR": lambda A: A.to_sparse_bsr((2, 2)),
    "BSC": lambda A: A.to_sparse_bsc((2, 2)),
}


def _matrix(dtype):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(20, 20, dtype=dtype, generator=generator)
    return torch.where(torch.rand(20, 20, generator=generator) < 0.3, A, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_matvecs_of_every_layout_stay_on_the_device_of_the_tensor(where, layout, dtype):
    device = cuda() if where == "cuda" else torch.device("cpu")
    A = _matrix(dtype)
    ours = mf.aslinearoperator(LAYOUTS[layout](A.to(device)))
    X = ours.space.probes(3, seed=1)
    assert X.device == device
    exact = A.numpy()
    for result, expected in (
        (ours.matmat(X), exact @ to_host(X)),
        (ours.H.matmat(X), exact.conj().T @ to_host(X)),
    ):
        assert result.device == device
        assert np.abs(to_host(result) - expected).max() < 1e-13
    diagonal = mf.diagonal(ours, num_probes=4, seed=0).value
    assert diagonal.device == device


@pytest.mark.gpu
def test_a_tensor_on_a_second_device_stays_there():
    cuda()
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one CUDA device")
    A = torch.diag(torch.arange(1.0, 51, dtype=DOUBLE, device="cuda:1"))
    result = mf.eigsh(A, 3, seed=0)
    assert result.vectors.device == A.device
    assert result.values == pytest.approx([50, 49, 48], abs=1e-4)


def _model():
    torch.manual_seed(0)
    layers = nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4).eval()
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).to(DOUBLE)


CURVATURES = {
    **{
        strategy: lambda model, data, s=strategy: hessian(model, CE, data, strategy=s)
        for strategy in ("auto", "recompute", "forward", "folded")
    },
    "ggn": lambda model, data: ggn(model, CE, data),
    "empirical Fisher": lambda model, data: fisher(model, CE, data, kind="empirical"),
    "activations": lambda model, data: activation_hessian(model, CE, data, modules=nn.Conv2d),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CURVATURES)
def test_curvatures_on_a_gpu_equal_those_on_the_host(name):
    device = cuda()
    x, y = batch()
    on_host = CURVATURES[name](_model(), (x, y))
    on_device = CURVATURES[name](_model().to(device), (x.to(device), y.to(device)))
    X = on_host.space.probes(3, seed=1)
    AX = on_device.matmat(X.to(device))
    assert AX.device == device
    assert relative(AX.cpu(), on_host.matmat(X)) < 1e-12
    assert mf.trace(on_device, num_probes=6, seed=1).value == pytest.approx(
        mf.trace(on_host, num_probes=6, seed=1).value, rel=1e-10
    )


@pytest.mark.gpu
def test_matvecs_with_a_stored_graph_do_not_synchronize():
    device = cuda()
    H = hessian(_model().to(device), CE, tuple(x.to(device) for x in batch()))
    v = H.space.probes(2, seed=1)
    H @ v  # the first matvec tests symmetry
    H @ v  # the second one reads the data again
    torch.cuda.set_sync_debug_mode("error")
    try:
        H @ v
    finally:
        torch.cuda.set_sync_debug_mode("default")
