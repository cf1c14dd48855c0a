"""The cells of PyHessian's tutorial, run on a small convolutional network."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import (  # noqa: E402
    DOUBLE,
    assert_untouched,
    autograd_hessian,
    flat_parameters,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import activation_hessian  # noqa: E402
from matfree_torch.pyhessian import (  # noqa: E402
    get_esd_plot,
    get_params_grad,
    hessian,
    hessian_with_activation,
)

criterion = nn.CrossEntropyLoss()


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return model.to(DOUBLE).eval()


@pytest.fixture(scope="module")
def tutorial():
    model, generator = make_model(), torch.Generator().manual_seed(1)
    inputs = torch.rand(24, 1, 4, 4, dtype=DOUBLE, generator=generator)
    targets = torch.randint(3, (24,), generator=generator)
    explicit = autograd_hessian(model, criterion, (inputs, targets))
    return model, inputs, targets, explicit


def get_params(model_orig, model_perb, direction, alpha):
    """The helper of the tutorial, which expects one tensor per parameter."""
    for m_orig, m_perb, d in zip(
        model_orig.parameters(), model_perb.parameters(), direction, strict=True
    ):
        m_perb.data = m_orig.data + alpha * d
    return model_perb


def test_the_cells_of_the_tutorial_run_and_their_results_are_correct(tutorial):
    model, inputs, targets, explicit = tutorial
    before = snapshot(model)

    hessian_comp = hessian(model, criterion, data=(inputs, targets), cuda=False)
    top_eigenvalues, top_eigenvector = hessian_comp.eigenvalues()
    exact = torch.linalg.eigvalsh(explicit)
    exact = exact[exact.abs().argsort(descending=True)]
    assert isinstance(top_eigenvalues[-1], float)
    # a residual of 1e-3 leaves an error of its square divided by the gap
    assert top_eigenvalues[-1] == pytest.approx(float(exact[0]), rel=1e-4)

    lams = np.linspace(-1e-3, 1e-3, 3)
    loss_list, model_perb = [], copy.deepcopy(model)
    for lam in lams:
        model_perb = get_params(model, model_perb, top_eigenvector[0], lam)
        loss_list.append(criterion(model_perb(inputs), targets).item())
    curvature = np.diff(loss_list, 2)[0] / 1e-6
    assert curvature == pytest.approx(top_eigenvalues[0], rel=1e-3)

    top_eigenvalues, top_eigenvector = hessian_comp.eigenvalues(top_n=2)
    assert top_eigenvalues == pytest.approx(exact[:2].tolist(), rel=1e-4)
    shapes = [p.shape for p in model.parameters()]
    assert all([v.shape for v in vector] == shapes for vector in top_eigenvector)
    assert abs(sum((a * b).sum() for a, b in zip(*top_eigenvector, strict=True))) < 1e-12

    trace = hessian_comp.trace(maxIter=100, tol=0.5, seed=0)
    spread = np.std(trace, ddof=1) / len(trace) ** 0.5
    assert len(trace) < 100
    assert abs(np.mean(trace) - float(explicit.trace())) < 4 * spread  # false alarm 1 in 1,000

    density_eigen, density_weight = hessian_comp.density(n_v=2, seed=0)
    assert len(density_eigen) == len(density_weight) == 2
    for nodes, weights in zip(density_eigen, density_weight, strict=True):
        assert sum(weights) == pytest.approx(1.0)
        assert max(map(abs, nodes)) == pytest.approx(float(exact.abs().max()), rel=1e-6)
    assert_untouched(before, snapshot(model))


def test_the_gradient_has_the_shapes_of_the_parameters(tutorial):
    model, inputs, targets, _ = tutorial
    twin = copy.deepcopy(model)
    criterion(twin(inputs), targets).backward()
    params, grads = get_params_grad(twin)
    hessian_comp = hessian(model, criterion, data=(inputs, targets))
    assert [p.shape for p in params] == [g.shape for g in grads]
    for ours, theirs in zip(hessian_comp.gradsH, grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-14)
    assert all(p is q for p, q in zip(hessian_comp.params, model.parameters(), strict=True))


def test_every_sample_of_a_dataloader_counts_once(tutorial):
    model, inputs, targets, explicit = tutorial
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7)  # 7 + 7 + 7 + 3
    hessian_comp = hessian(model, criterion, dataloader=loader)
    exact = float(torch.linalg.eigvalsh(explicit).abs().max())
    assert hessian_comp.eigenvalues()[0][0] == pytest.approx(exact, rel=1e-4)


def test_a_budget_of_n_matvecs_gives_the_exact_trace(tutorial):
    model, inputs, targets, explicit = tutorial
    found = hessian(model, criterion, data=(inputs, targets)).trace(maxIter=200)
    assert found == [pytest.approx(float(explicit.trace()), rel=1e-10)]


def test_a_seed_reproduces_everything(tutorial):
    model, inputs, targets, _ = tutorial
    hessian_comp = hessian(model, criterion, data=(inputs, targets))
    assert hessian_comp.density(20, seed=4) == hessian_comp.density(20, seed=4)
    with pytest.warns(mf.ConvergenceWarning, match="raise max_matvecs"):
        samples = hessian_comp.trace(30, seed=4)
    with pytest.warns(mf.ConvergenceWarning):
        assert samples == hessian_comp.trace(30, seed=4)
    assert len(samples) == 30


def test_the_plot_is_drawn_on_axes_and_no_file_is_written(tutorial, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    model, inputs, targets, _ = tutorial
    monkeypatch.chdir(tmp_path)
    nodes, weights = hessian(model, criterion, data=(inputs, targets)).density(30, seed=0)
    ax = get_esd_plot(nodes, weights)
    assert ax.get_yscale() == "log"
    assert list(tmp_path.iterdir()) == []
    shuffled = [nodes[0][::-1]], [weights[0][::-1]]  # lists of another program may be in any order
    twin = get_esd_plot(*shuffled, size=sum(p.numel() for p in model.parameters()))
    ours, theirs = (a.lines[0].get_xydata() for a in (ax, twin))
    assert np.allclose(ours, theirs)
    pyplot.close("all")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_cuda_without_a_device_is_an_error_that_says_what_to_do(tutorial):
    model, inputs, targets, _ = tutorial
    for make in (hessian, hessian_with_activation):
        with pytest.raises(ValueError, match="no CUDA device; or pass cuda=False"):
            make(model, criterion, data=(inputs, targets), cuda=True)


def test_data_and_dataloader_are_mutually_exclusive(tutorial):
    model, inputs, targets, _ = tutorial
    for given in ({}, {"data": (inputs, targets), "dataloader": [(inputs, targets)]}):
        with pytest.raises(ValueError, match="either data"):
            hessian(model, criterion, **given)


def test_a_model_in_training_mode_stays_in_it_with_a_warning(tutorial):
    _, inputs, targets, _ = tutorial
    model = make_model().train()
    with pytest.warns(UserWarning, match="PyHessian would have called model.eval"):
        hessian_comp = hessian(model, criterion, data=(inputs, targets))
    exact = autograd_hessian(model, criterion, (inputs, targets))
    found = hessian_comp.eigenvalues(tol=1e-6)[0][0]
    assert abs(found) == pytest.approx(float(torch.linalg.eigvalsh(exact).abs().max()), rel=1e-6)
    assert model.training


def test_frozen_parameters_are_in_no_list(tutorial):
    _, inputs, targets, _ = tutorial
    model = make_model()
    model[0].requires_grad_(False)
    vector = hessian(model, criterion, data=(inputs, targets)).eigenvalues()[1][0]
    left = [p.shape for p in model.parameters() if p.requires_grad]
    assert [v.shape for v in vector] == left == [p.shape for p in get_params_grad(model)[0]]


def explicit_activation_blocks(model, inputs, targets):
    """Second derivatives with respect to both convolutions' inputs, from two half networks."""
    h = model[:4](inputs).detach()

    def loss_of(x0, x4):
        return criterion(model[4:](model[:4](inputs + x0) + x4), targets)

    zeros = torch.zeros_like(inputs), torch.zeros_like(h)
    blocks = torch.autograd.functional.hessian(loss_of, zeros)
    sizes = inputs.numel(), h.numel()
    return [[blocks[i][j].reshape(sizes[i], sizes[j]) for j in (0, 1)] for i in (0, 1)]


def test_each_convolution_has_random_vectors_matvecs_and_a_trace(tutorial):
    model, inputs, targets, _ = tutorial
    before = snapshot(model)
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets))
    hessian_comp.insert_hook()
    assert hessian_comp.layer_names == ("0", "4")
    vectors = hessian_comp.get_activ_rand_v()
    assert all(set(v.unique().tolist()) == {-1.0, 1.0} for v in vectors)
    again = hessian_comp.get_activ_rand_v()
    assert not torch.equal(vectors[0], again[0])

    blocks = explicit_activation_blocks(model, inputs, targets)
    for layer, Hv in enumerate(hessian_comp.hv_activ(vectors)):
        exact = blocks[layer][layer] @ vectors[layer].reshape(-1)
        assert torch.allclose(Hv.reshape(-1), exact, atol=1e-13)
    cross = hessian_comp.hv_cross(0, 1)
    assert cross.shape == inputs.shape
    assert torch.allclose(cross.reshape(-1), blocks[0][1] @ again[1].reshape(-1), atol=1e-13)

    many = np.mean(hessian_comp.trace_activ(maxIter=400, tol=0, seed=0), axis=0)
    A = activation_hessian(model, criterion, (inputs, targets), modules=nn.Conv2d)
    errors = [e.stderr * (32 / 400) ** 0.5 for e in A.traces("probes", seed=1).values()]
    for layer, stderr in enumerate(errors):
        exact = float(blocks[layer][layer].trace())
        assert abs(many[layer] - exact) <= 5 * stderr + 1e-12
    assert_untouched(before, snapshot(model))


def test_activation_traces_are_over_the_whole_dataloader(tutorial):
    model, inputs, targets, _ = tutorial
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7, shuffle=True)
    state = torch.get_rng_state()
    hessian_comp = hessian_with_activation(
        model, criterion, dataloader=loader, modules=nn.Linear, at="output"
    )
    hessian_comp.insert_hook()
    assert torch.equal(state, torch.get_rng_state())
    whole = hessian_with_activation(
        model, criterion, data=(inputs, targets), modules=nn.Linear, at="output"
    )
    found = hessian_comp.trace_activ()  # exact: the port is the network's output
    assert np.shape(found) == (2, 1)
    assert found[-1] == pytest.approx(whole.trace_activ()[-1], rel=1e-12)


def test_methods_called_too_early_name_the_method_to_call_first(tutorial):
    model, inputs, targets, _ = tutorial
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets))
    with pytest.raises(ValueError, match="insert_hook"):
        hessian_comp.get_activ_rand_v()
    hessian_comp.insert_hook()
    with pytest.raises(ValueError, match="get_activ_rand_v"):
        hessian_comp.hv_activ()


def test_the_operator_is_the_explicit_hessian(tutorial):
    model, inputs, targets, explicit = tutorial
    operator = hessian(model, criterion, data=(inputs, targets)).operator
    v = flat_parameters(model)
    assert torch.allclose(operator @ v, explicit @ v, atol=1e-12)
