"""Operators of other torch libraries are recognized by shape, torch dtype, device and @."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import matfree as mf  # noqa: E402

A = torch.diag(torch.tensor([5.0, -4.0, 2.0, 1.0], dtype=torch.float64)) + 0.1


class LikeCurvlinops:
    """An operator with shape, torch dtype, device and @ for vectors and blocks, but no matvec."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, tuple(matrix.shape), matrix.dtype
        self.device, self.columns = matrix.device, []

    def __matmul__(self, x):
        assert isinstance(x, torch.Tensor)
        assert x.dtype == self.dtype
        self.columns.append(1 if x.ndim == 1 else x.shape[1])
        return self.matrix @ x


class LikeEigenthings:
    """A callable operator with size instead of shape, and matvec for vectors only."""

    def __init__(self, matrix):
        self.matrix, self.size, self.dtype = matrix, len(matrix), matrix.dtype
        self.device = matrix.device

    def matvec(self, x):
        assert x.ndim == 1
        return self.matrix @ x

    __call__ = __matmul__ = rmatvec = matvec


class LikeModule(torch.nn.Module):
    """An operator that is also a module, so its type belongs to torch."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, x):
        return self.matrix @ x


@pytest.mark.parametrize("kind", [LikeCurvlinops, LikeEigenthings, LikeModule])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_algorithms_accept_foreign_operators(kind, dtype):
    duck = kind(A.to(dtype))
    operator = mf.aslinearoperator(duck)
    assert operator.shape == (4, 4)
    assert operator.dtype == dtype
    x = torch.arange(8, dtype=dtype).reshape(4, 2)
    assert torch.allclose(operator @ x, A.to(dtype) @ x)
    assert torch.allclose(operator @ x[:, 0], A.to(dtype) @ x[:, 0])
    exact = np.linalg.eigvalsh(A.numpy())
    close = {"rel": 1e-4 if dtype == torch.float32 else 1e-10}
    found = mf.eigsh(duck, 2, which="BE", seed=0)
    assert found.vectors.dtype == dtype
    assert found.values == pytest.approx(exact[[-1, 0]], **close)
    assert mf.trace(duck, max_matvecs=4, seed=0).value == pytest.approx(exact.sum(), **close)
    density = mf.spectral_density(duck, seed=0)
    assert density.support == pytest.approx((exact[0], exact[-1]), **close)
    assert mf.check_operator(duck).hermitian


def test_blocks_are_passed_to_matmul_whole():
    duck = LikeCurvlinops(A)
    mf.trace(duck, num_probes=8, seed=0)
    assert 8 in duck.columns


def test_results_are_detached_from_autograd_graphs():
    duck = LikeCurvlinops(A.clone().requires_grad_())
    assert not mf.eigsh(duck, 1, seed=0).vectors.requires_grad
