"""PyHessian's functions of lists of tensors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, autograd_hessian  # noqa: E402
from torch import nn  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch.pyhessian.utils import (  # noqa: E402
    get_params_grad,
    group_add,
    group_product,
    hessian_vector_product,
    normalization,
    orthnormal,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using backward")  # of create_graph=True, by torch


def flat(tensors):
    return np.concatenate([np.ravel(x.detach().numpy()) for x in tensors])


def random_list(seed, dtype=DOUBLE, shapes=((2, 3), (), (4,))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def small_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(DOUBLE)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(6, 3, dtype=DOUBLE, generator=generator), torch.tensor([0, 1, 1, 0, 1, 0])


def test_the_inner_product_is_that_of_the_flat_vectors():
    x, y = random_list(0), random_list(1)
    assert float(group_product(x, y)) == pytest.approx(flat(x) @ flat(y), rel=1e-14)
    assert float(group_product([], [])) == 0.0
    z = [torch.tensor([3.0 + 4.0j])]
    assert float(group_product(z, z)) == 25.0


@pytest.mark.parametrize("function", [group_product, group_add])
def test_lists_of_different_lengths_are_refused(function):
    with pytest.raises(ValueError, match="got 3 and 2"):
        function(random_list(0), random_list(1)[:2])


@pytest.mark.parametrize("alpha", [1, -0.5, torch.tensor(2.0, dtype=DOUBLE)])
def test_group_add_changes_its_first_list_and_returns_it(alpha):
    x, y = random_list(0), random_list(1)
    expected = flat(x) + float(alpha) * flat(y)
    assert group_add(x, y, alpha=alpha) is x
    assert np.allclose(flat(x), expected, rtol=1e-15)


def test_group_add_changes_parameters_so_that_operators_notice():
    model = small_model()
    params = list(model.parameters())
    versions = [p._version for p in params]
    group_add(params, [torch.ones_like(p) for p in params], alpha=0.1)
    assert all(p._version > version for p, version in zip(params, versions, strict=True))


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-30, 1e25])
def test_normalized_lists_have_length_one_whatever_their_scale(scale):
    x = [scale * t for t in random_list(0, torch.float32)]
    before = [t.clone() for t in x]
    assert np.linalg.norm(flat(normalization(x)).astype(float)) == pytest.approx(1.0, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))


def test_a_list_of_zeros_stays_zero():
    assert not flat(normalization([torch.zeros(3)])).any()
    assert not flat(orthnormal([torch.zeros(3)], [[torch.ones(3)]])).any()


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (0.3, 50.0)])
def test_orthnormal_projects_out_vectors_of_any_length(lengths):
    a, b, w = random_list(0), random_list(1), random_list(2)
    u = flat(a) / np.linalg.norm(flat(a))
    v = flat(b) - u * (u @ flat(b))
    v /= np.linalg.norm(v)
    expected = flat(w) - u * (u @ flat(w)) - v * (v @ flat(w))
    expected /= np.linalg.norm(expected)
    others = [[lengths[0] * x for x in a], [lengths[1] * x for x in orthnormal(b, [a])]]
    before = flat(w)
    assert np.allclose(flat(orthnormal(w, others)), expected, atol=1e-14)
    assert np.array_equal(flat(w), before)
    assert np.allclose(flat(orthnormal(w, [])), before / np.linalg.norm(before))


def test_orthnormal_is_accurate_where_the_vector_is_nearly_in_the_span():
    u = normalization(random_list(0, torch.float32))
    w = [x + 1e-6 * y for x, y in zip(u, random_list(1, torch.float32), strict=True)]
    assert abs(float(group_product(orthnormal(w, [u]), u))) < 1e-6


@pytest.mark.parametrize("frozen", [False, True])
def test_the_product_by_hand_is_that_of_the_explicit_hessian(batch, frozen):
    model, (inputs, targets) = small_model(), batch
    model[0].weight.requires_grad_(not frozen)
    nn.CrossEntropyLoss()(model(inputs), targets).backward(create_graph=True)
    params, grads = get_params_grad(model)
    assert len(params) == 4 - frozen
    v = [torch.ones_like(p) for p in params]
    Hv = hessian_vector_product(grads, params, v)
    assert isinstance(Hv, tuple)
    model[0].weight.requires_grad_(True)
    kept = [np.full(p.numel(), p is not model[0].weight or not frozen) for p in model.parameters()]
    kept = np.concatenate(kept)
    H = autograd_hessian(model, nn.CrossEntropyLoss(), batch).numpy()[np.ix_(kept, kept)]
    assert np.allclose(flat(Hv), H.sum(axis=1), atol=1e-13)


def test_gradients_without_a_graph_are_constant_but_not_all_of_them(batch):
    x, y = (torch.tensor([2.0], requires_grad=True) for _ in range(2))
    one = [torch.ones(1)]
    gradients = torch.autograd.grad((x**3 + y).sum(), [x, y], create_graph=True)
    assert [float(h) for h in hessian_vector_product(gradients, [x, y], one * 2)] == [12.0, 0.0]
    with pytest.raises(mf.OperatorError, match="create_graph=True"):
        hessian_vector_product([g.detach() for g in gradients], [x, y], one * 2)


def test_a_frozen_parameter_and_a_wrong_shape_are_named(batch):
    model, (inputs, targets) = small_model(), batch
    model[0].bias.requires_grad_(False)
    nn.CrossEntropyLoss()(model(inputs), targets).backward(create_graph=True)
    params, grads = get_params_grad(model)
    every = list(model.parameters())
    with pytest.raises(ValueError, match=r"params\[1\], of shape \(4,\), is frozen"):
        hessian_vector_product([p.grad for p in every], every, [torch.ones_like(p) for p in every])
    with pytest.raises(ValueError, match=r"3 in all: got 2"):
        hessian_vector_product(grads, params, grads[:2])
    with pytest.raises(ValueError, match=r"v\[0\] must have the shape \(4, 3\): got \(2,\)"):
        hessian_vector_product(grads, params, grads[::-1])
