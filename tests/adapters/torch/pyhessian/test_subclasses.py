"""What programs and subclasses change about PyHessian's objects, and its spellings of arguments."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, autograd_hessian  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch.pyhessian import hessian, hessian_with_activation  # noqa: E402
from matfree_torch.pyhessian.utils import group_product, hessian_vector_product  # noqa: E402

criterion = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE).eval()
    inputs = torch.randn(12, 3, dtype=DOUBLE)
    targets = torch.arange(12) % 3
    return model, (inputs, targets), autograd_hessian(model, criterion, (inputs, targets))


def in_batches(data, size):
    return list(zip(*(x.split(size) for x in data), strict=True))


def largest(matrix):
    return float(torch.linalg.eigvalsh(matrix).abs().max())


def flat(tensors):
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def shifts(base, shift):
    """A subclass in whose matrix ``shift`` is added to the diagonal."""

    class Shifted(base):
        def __init__(self, model, criterion, data=None, dataloader=None, cuda=False):
            super().__init__(model, criterion, data=data, dataloader=dataloader, cuda=cuda)
            self.num_calls = 0

        def dataloader_hv_product(self, v):
            self.num_calls += 1
            _, Hv = super().dataloader_hv_product(v)
            Hv = [h + shift * x for h, x in zip(Hv, v, strict=True)]
            return group_product(Hv, v).item(), Hv

    return Shifted


@pytest.mark.parametrize("base", [hessian, hessian_with_activation])
def test_all_methods_compute_with_the_product_of_a_subclass(problem, base):
    model, data, explicit = problem
    hessian_comp = shifts(base, 5.0)(model, criterion, dataloader=in_batches(data, 5))
    exact = explicit + 5.0 * torch.eye(len(explicit), dtype=DOUBLE)
    values, vectors = hessian_comp.eigenvalues(top_n=2, tol=1e-8)
    assert values[0] == pytest.approx(largest(exact), rel=1e-8)
    residual = exact @ flat(vectors[1]) - values[1] * flat(vectors[1])
    assert float(residual.norm()) < 1e-6
    assert hessian_comp.trace(maxIter=100)[0] == pytest.approx(float(exact.trace()), rel=1e-10)
    nodes, _ = hessian_comp.density(iter=40)
    assert max(nodes[0]) == pytest.approx(largest(exact), rel=1e-8)
    assert hessian_comp.num_calls > 0
    assert isinstance(hessian_comp, base)


def test_as_in_pyhessian_the_product_of_a_subclass_is_for_loaders_only(problem):
    model, data, explicit = problem
    hessian_comp = shifts(hessian, 5.0)(model, criterion, data=data)
    assert hessian_comp.eigenvalues(tol=1e-6)[0][0] == pytest.approx(largest(explicit), rel=1e-6)


def test_a_product_assigned_to_the_object_counts_as_well(problem):
    model, data, explicit = problem
    hessian_comp = hessian(model, criterion, dataloader=in_batches(data, 4))
    original = hessian_comp.dataloader_hv_product
    hessian_comp.dataloader_hv_product = lambda v: (0.0, [2 * x for x in original(v)[1]])
    expected = 2 * largest(explicit)
    assert hessian_comp.eigenvalues(tol=1e-6)[0][0] == pytest.approx(expected, rel=1e-6)


def test_a_subclass_whose_product_has_wrong_shapes_is_refused(problem):
    model, data, _ = problem
    hessian_comp = hessian(model, criterion, dataloader=in_batches(data, 4))
    hessian_comp.dataloader_hv_product = lambda v: (0.0, v[:2])
    with pytest.raises(ValueError, match="the matvec's result must have one tensor"):
        hessian_comp.trace(maxIter=3)


@pytest.mark.parametrize("size", [12, 5])
def test_the_product_over_a_loader_is_that_of_the_whole_hessian(problem, size):
    model, data, explicit = problem
    for arguments in ({"dataloader": in_batches(data, size)}, {"data": data}):
        hessian_comp = hessian(model, criterion, **arguments)
        v = [torch.randn_like(p) for p in hessian_comp.params]
        value, Hv = hessian_comp.dataloader_hv_product(v)
        assert isinstance(value, float)
        assert torch.allclose(flat(Hv), explicit @ flat(v), atol=1e-12)
        assert value == pytest.approx(float(flat(v) @ explicit @ flat(v)), rel=1e-10)
        with pytest.raises(ValueError, match="4 in all: got 3"):
            hessian_comp.dataloader_hv_product(v[:3])
        with pytest.raises(ValueError, match=r"v\[0\] must have the shape"):
            hessian_comp.dataloader_hv_product(v[::-1])


def test_arguments_by_position_and_the_attributes_of_pyhessian(problem):
    model, (inputs, targets), explicit = problem
    hessian_comp = hessian(model, criterion, (inputs, targets), None, False)
    assert hessian_comp.inputs is inputs
    assert hessian_comp.targets is targets
    assert hessian_comp.model is model
    assert not hessian_comp.full_dataset
    assert hessian_comp.device == "cpu"
    values, vectors = hessian_comp.eigenvalues(100, 1e-6, 2)
    assert len(values) == len(vectors) == 2
    exact = sorted(torch.linalg.eigvalsh(explicit).tolist(), key=abs)
    assert values == pytest.approx(exact[:-3:-1], rel=1e-6)
    assert len(hessian_comp.density(10, 3)[0]) == 3
    assert hessian(model, criterion, [inputs, targets]).trace(100) == pytest.approx(
        [float(explicit.trace())]
    )
    loader = hessian(model, criterion, None, in_batches((inputs, targets), 4))
    assert loader.full_dataset
    assert loader.eigenvalues(tol=1e-6)[0] == pytest.approx([exact[-1]], rel=1e-6)


def test_loaders_may_be_tuples_of_two_batches(problem):
    model, data, _ = problem
    hessian_comp = hessian_with_activation(
        model, criterion, dataloader=tuple(in_batches(data, 6)), modules=nn.Linear
    )
    hessian_comp.insert_hook()
    assert hessian_comp.get_activ_rand_v()[0].shape == (6, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_iterations_give_few_values_and_a_warning(problem, count):
    model, data, _ = problem
    hessian_comp = hessian(model, criterion, data=data)
    with pytest.warns(mf.ConvergenceWarning):
        assert len(hessian_comp.trace(maxIter=count, tol=1e-6)) == count
    assert len(hessian_comp.density(iter=count)[0][0]) <= count
    with pytest.warns(mf.ConvergenceWarning):
        assert len(hessian_comp.eigenvalues(maxIter=count, tol=1e-12)[0]) == 1


def test_a_tolerance_of_zero_stands_for_all_iterations(problem):
    model, data, explicit = problem
    hessian_comp = hessian(model, criterion, data=data)
    assert len(hessian_comp.trace(maxIter=7, tol=0)) == 7
    assert hessian_comp.eigenvalues(tol=0)[0][0] == pytest.approx(largest(explicit), rel=1e-12)


def test_the_gradient_of_one_batch_can_be_differentiated(problem):
    model, data, explicit = problem
    hessian_comp = hessian(model, criterion, data=data)
    v = [torch.ones_like(p) for p in hessian_comp.params]
    Hv = hessian_vector_product(hessian_comp.gradsH, hessian_comp.params, v)
    assert torch.allclose(flat(Hv), explicit.sum(dim=1), atol=1e-13)
    assert all(p.grad is None for p in model.parameters())


def test_some_parameters_in_any_order_give_their_block(problem):
    model, data, explicit = problem
    for arguments in ({"data": data}, {"dataloader": in_batches(data, 5)}):
        hessian_comp = hessian(model, criterion, **arguments)
        hessian_comp.params = [model[2].weight, model[0].weight]
        block = explicit[np.ix_(*[np.r_[0:12, 16:28]] * 2)]
        values, vectors = hessian_comp.eigenvalues(tol=1e-8)
        assert values[0] == pytest.approx(largest(block), rel=1e-8)
        assert [tuple(x.shape) for x in vectors[0]] == [(3, 4), (4, 3)]
        second_first = torch.cat([flat(vectors[0])[12:], flat(vectors[0])[:12]])
        assert float((block @ second_first - values[0] * second_first).norm()) < 1e-6
        gradients = hessian_comp.gradsH
        assert [g.shape for g in gradients] == [p.shape for p in hessian_comp.params]


def test_a_copy_of_a_parameter_is_no_parameter(problem):
    model, data, _ = problem
    hessian_comp = hessian(model, criterion, data=data)
    with pytest.raises(ValueError, match=r"params\[0\], of shape \(4, 3\), is no parameter"):
        hessian_comp.params = [model[0].weight.clone()]


class Penalized(hessian):
    """The Hessian of the loss with a penalty on the weights, by an assigned gradient."""

    def __init__(self, model, criterion, data, strength):
        super().__init__(model, criterion, data=data, cuda=False)
        loss = criterion(model(self.inputs), self.targets)
        loss = loss + strength / 2 * sum((p**2).sum() for p in self.params)
        self.gradsH = torch.autograd.grad(loss, self.params, create_graph=True)


def test_an_assigned_gradient_is_the_one_that_is_differentiated(problem):
    model, data, explicit = problem
    hessian_comp = Penalized(model, criterion, data, 0.7)
    exact = explicit + 0.7 * torch.eye(len(explicit), dtype=DOUBLE)
    assert hessian_comp.eigenvalues(tol=1e-8)[0][0] == pytest.approx(largest(exact), rel=1e-8)
    assert hessian_comp.trace(maxIter=100) == pytest.approx([float(exact.trace())])
    hessian_comp.gradsH = [g.detach() for g in hessian_comp.gradsH]
    with pytest.raises(mf.OperatorError, match="create_graph=True"):
        hessian_comp.trace()
    with pytest.raises(ValueError, match="gradsH must have one tensor"):
        hessian_comp.gradsH = hessian_comp.gradsH[:1]


def test_results_follow_the_parameters(problem):
    model, data, _ = problem
    model = copy.deepcopy(model)
    hessian_comp = hessian(model, criterion, data=data)
    hessian_comp.eigenvalues()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    exact = largest(autograd_hessian(model, criterion, data))
    assert hessian_comp.eigenvalues(tol=1e-6)[0][0] == pytest.approx(exact, rel=1e-6)
