"""The cells of PyHessian's tutorial about activations, on networks with residual branches."""

import copy
import re
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, assert_untouched, autograd_hessian, snapshot  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch.pyhessian.hessian_with_activation import hessian_with_activation  # noqa: E402

criterion = nn.CrossEntropyLoss()


class Residual(nn.Module):
    """Three layers; the middle one is bypassed, so that its input has two readers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 2)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def tail(self, h, around):
        return self.fc((torch.tanh(self.conv2(h)) + around).flatten(1))

    def forward(self, x):
        h = torch.sigmoid(self.conv1(x))
        return self.tail(h, h)


class Plain(Residual):
    """The same layers without the bypass."""

    def tail(self, h, around):
        return super().tail(h, 0.0)


def make(kind):
    torch.manual_seed(6)
    model = kind().to(DOUBLE).eval()
    inputs = torch.randn(6, 1, 3, 3, dtype=DOUBLE)
    return model, inputs, torch.tensor([0, 1, 2, 2, 1, 0])


def explicit_block(model, inputs, targets, layer):
    """The Hessian with respect to what conv2 or fc alone reads, from the rest of the network."""
    h = torch.sigmoid(model.conv1(inputs)).detach()

    def loss_of(x):
        if layer == "conv2":
            return criterion(model.tail(x.reshape(h.shape), h), targets)
        return criterion(model.fc(x.reshape(len(inputs), -1)), targets)

    around = h if type(model) is Residual else 0.0
    x = h if layer == "conv2" else (torch.tanh(model.conv2(h)) + around).detach()
    return torch.autograd.functional.hessian(loss_of, x.reshape(-1))


def prepared(kind, **arguments):
    model, inputs, targets = make(kind)
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets), **arguments)
    hessian_comp.insert_hook("conv2")
    hessian_comp.insert_hook("fc")
    return model, inputs, targets, hessian_comp


def test_layers_are_chosen_by_the_end_of_their_names_and_add_up():
    model, inputs, targets = make(Plain)
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets))
    hessian_comp.insert_hook("fc")
    assert hessian_comp.layer_names == ("fc",)
    hessian_comp.insert_hook("2")
    assert hessian_comp.layer_names == ("conv2", "fc")
    hessian_comp.insert_hook("2")
    assert hessian_comp.layer_names == ("conv2", "fc")
    hessian_comp.insert_hook()
    assert hessian_comp.layer_names == ("conv1", "conv2", "fc")


def test_numbers_at_the_end_are_ignored_with_a_warning_where_pyhessian_would_choose_none():
    model, inputs, targets = make(Plain)
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets))
    with pytest.warns(UserWarning, match=r"no module's name ends with 'conv'.* 2 that end"):
        hessian_comp.insert_hook("conv")
    assert hessian_comp.layer_names == ("conv1", "conv2")
    with pytest.raises(ValueError, match=r"no module's name ends with 'pool'.*conv1, conv2, fc"):
        hessian_comp.insert_hook("pool")
    assert hessian_comp.layer_names == ("conv1", "conv2")


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_recorded_activations_and_gradients_are_those_of_the_layers(kind):
    model, inputs, targets, hessian_comp = prepared(kind)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v = hessian_comp.get_activ_rand_v(dont_reset=True)
    assert list(hessian_comp.activations) == list(hessian_comp.activation_grads) == ["conv2", "fc"]
    h = torch.sigmoid(model.conv1(inputs))
    assert torch.allclose(hessian_comp.activations["conv2"][0], h, atol=1e-14)
    read = h.detach().requires_grad_()
    around = h.detach() if kind is Residual else 0.0
    out = model.fc((torch.tanh(model.conv2(read)) + around).flatten(1))
    (gradient,) = torch.autograd.grad(criterion(out, targets), read)
    assert torch.allclose(hessian_comp.activation_grads["conv2"][0], gradient, atol=1e-14)

    # PyHessian's own computation, a derivative of the gradients in the activations, is right here
    for layer, x in zip(("conv2", "fc"), v, strict=True):
        by_hand = torch.autograd.grad(
            hessian_comp.activation_grads[layer],
            hessian_comp.activations[layer],
            [x],
            retain_graph=True,
        )[0]
        exact = explicit_block(model, inputs, targets, layer) @ x.reshape(-1)
        assert torch.allclose(by_hand.reshape(-1), exact, atol=1e-13)
    hessian_comp.reset_reg_active()
    activations, gradients = hessian_comp.get_same_size_activ_grad()
    assert [x.shape for x in activations] == [g.shape for g in gradients] == [x.shape for x in v]
    assert_untouched(before, snapshot(model))


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_the_matvecs_of_all_layers_are_those_of_explicit_blocks(kind):
    model, inputs, targets, hessian_comp = prepared(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v = hessian_comp.get_activ_rand_v()
    value, Hv = hessian_comp.dataloader_activation_hv_product(v)
    total = 0.0
    for layer, x, y, z in zip(("conv2", "fc"), v, Hv, hessian_comp.hv_activ(v), strict=True):
        exact = explicit_block(model, inputs, targets, layer) @ x.reshape(-1)
        assert torch.allclose(y.reshape(-1), exact, atol=1e-13)
        assert torch.allclose(z, y, atol=1e-14)
        total += float(x.reshape(-1) @ exact)
    assert value == pytest.approx(total, rel=1e-10)
    with pytest.raises(ValueError, match="one tensor for each activation, 2 in all: got 1"):
        hessian_comp.dataloader_activation_hv_product(v[:1])


def test_a_branch_is_reported_once_and_only_where_there_is_one():
    *_, hessian_comp = prepared(Residual)
    with pytest.warns(UserWarning, match=r"input of conv2 is read by other operations") as caught:
        hessian_comp.get_activ_rand_v()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hessian_comp.get_activ_rand_v()
        hessian_comp.trace_activ(maxIter=4, tol=0)
        *_, plain = prepared(Plain)
        plain.get_activ_rand_v()
        *_, shared = prepared(Residual, at="tensor")
        shared.get_activ_rand_v()


@pytest.mark.parametrize("at", ["output", "tensor"])
def test_other_ports_record_their_own_tensors(at):
    model, inputs, targets, hessian_comp = prepared(Residual, at=at)
    h = torch.sigmoid(model.conv1(inputs))
    expected = model.conv2(h) if at == "output" else h
    assert torch.allclose(hessian_comp.activations["conv2"][0], expected, atol=1e-14)
    if at == "tensor":
        read = h.detach().requires_grad_()
        gradient = torch.autograd.grad(criterion(model.tail(read, read), targets), read)[0]
    else:
        read = expected.detach().requires_grad_()
        out = model.fc((torch.tanh(read) + h.detach()).flatten(1))
        gradient = torch.autograd.grad(criterion(out, targets), read)[0]
    assert torch.allclose(hessian_comp.activation_grads["conv2"][0], gradient, atol=1e-14)


def test_frozen_parameters_do_not_hide_the_input_of_the_first_layer():
    model, inputs, targets = make(Plain)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    hessian_comp = hessian_with_activation(model, criterion, data=(inputs, targets))
    hessian_comp.insert_hook("conv1")
    assert torch.equal(hessian_comp.activations["conv1"][0], inputs)
    leaf = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(model(leaf), targets), leaf)
    assert torch.allclose(hessian_comp.activation_grads["conv1"][0], gradient, atol=1e-14)


@pytest.mark.filterwarnings("ignore:the input of")
def test_traces_have_one_list_per_probe_and_one_number_per_layer():
    model, inputs, targets, hessian_comp = prepared(Residual)
    exact = [
        float(explicit_block(model, inputs, targets, layer).trace()) for layer in ("conv2", "fc")
    ]
    rows = hessian_comp.trace_activ(maxIter=60, tol=0, seed=1)
    assert np.shape(rows) == (60, 2)
    assert all(isinstance(x, float) for row in rows for x in row)
    stderr = np.std(np.array(rows), axis=0, ddof=1) / 60**0.5
    assert np.all(abs(np.mean(rows, axis=0) - exact) <= 4 * stderr + 1e-10)
    assert rows == hessian_comp.trace_activ(maxIter=60, tol=0, seed=1)
    assert rows != hessian_comp.trace_activ(maxIter=60, tol=0, seed=2)
    assert np.shape(hessian_comp.trace_activ(1, 0)) == (1, 2)


@pytest.mark.filterwarnings("ignore:the input of")
def test_traces_stop_at_their_tolerance_or_warn():
    model, inputs, targets, hessian_comp = prepared(Residual)
    exact = float(explicit_block(model, inputs, targets, "conv2").trace())
    rows = hessian_comp.trace_activ(maxIter=2000, tol=0.5, seed=0)
    assert len(rows) < 2000
    half = 2.2 * np.std([row[0] for row in rows], ddof=1) / len(rows) ** 0.5
    assert half < 0.55 * abs(exact)
    with pytest.warns(mf.ConvergenceWarning, match="20 probes reach a 95 % half-width"):
        assert len(hessian_comp.trace_activ(maxIter=20, tol=1e-6, seed=0)) == 20


def test_traces_and_products_are_over_the_whole_loader():
    model, inputs, targets = make(Plain)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=3)
    hessian_comp = hessian_with_activation(model, criterion, dataloader=loader)
    hessian_comp.insert_hook("fc")
    halves = [explicit_block(model, inputs[i : i + 3], targets[i : i + 3], "fc") for i in (0, 3)]
    exact = sum(float(block.trace()) for block in halves) / 2
    assert hessian_comp.trace_activ() == [[pytest.approx(exact, rel=1e-10)]] * 2
    v = hessian_comp.get_activ_rand_v()
    value, (Hv,) = hessian_comp.dataloader_activation_hv_product(v)
    mean = sum(block @ v[0].reshape(-1) for block in halves) / 2
    assert torch.allclose(Hv.reshape(-1), mean, atol=1e-13)
    assert value == pytest.approx(float(v[0].reshape(-1) @ mean), rel=1e-10)


def test_batches_of_another_size_are_left_out_of_the_product_with_a_warning():
    model, inputs, targets = make(Plain)
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    hessian_comp = hessian_with_activation(model, criterion, dataloader=batches)
    hessian_comp.insert_hook("fc")
    v = hessian_comp.get_activ_rand_v()
    with pytest.warns(UserWarning, match="shapes of the vectors: 1; pass drop_last=True"):
        _, (Hv,) = hessian_comp.dataloader_activation_hv_product(v)
    exact = explicit_block(model, inputs[:4], targets[:4], "fc") @ v[0].reshape(-1)
    assert torch.allclose(Hv.reshape(-1), exact, atol=1e-13)


def test_the_methods_about_parameters_are_those_of_hessian():
    model, inputs, targets = make(Plain)
    hessian_comp = hessian_with_activation(
        model, criterion, dataloader=[(inputs, targets)], cuda=False
    )
    exact = autograd_hessian(model, criterion, (inputs, targets))
    largest = float(torch.linalg.eigvalsh(exact).abs().max())
    assert hessian_comp.eigenvalues(tol=1e-6)[0][0] == pytest.approx(largest, rel=1e-6)
    assert hessian_comp.trace(maxIter=200) == [pytest.approx(float(exact.trace()), rel=1e-9)]
    assert max(hessian_comp.density(iter=60)[0][0]) == pytest.approx(largest, rel=1e-6)
    hessian_comp.insert_hook("fc")
    assert hessian_comp.eigenvalues(tol=1e-6)[0][0] == pytest.approx(largest, rel=1e-6)


def test_layers_are_printed_only_when_asked_for(capsys):
    *_, hessian_comp = prepared(Plain)
    hessian_comp.get_activ_rand_v()
    assert capsys.readouterr().out == ""
    hessian_comp.get_activ_rand_v(show_layer=True)
    assert re.match(r"conv2: .*\(6, 2, 2, 2\)\nfc: .*\(6, 8\)\n$", capsys.readouterr().out)


def test_what_is_recorded_follows_the_parameters():
    model, inputs, targets, hessian_comp = prepared(Plain)
    old = hessian_comp.activations["conv2"][0]
    with torch.no_grad():
        model.conv1.weight.mul_(2.0)
    assert not torch.allclose(hessian_comp.activations["conv2"][0], old)
    assert hessian_with_activation(model, criterion, data=(inputs, targets)).activations == {}


def test_a_module_that_is_called_twice_has_an_entry_for_each_call():
    torch.manual_seed(0)
    fc = nn.Linear(3, 3).to(DOUBLE)
    model = nn.Sequential(fc, nn.Tanh(), fc)
    data = torch.randn(4, 3, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])
    hessian_comp = hessian_with_activation(model, criterion, data=data)
    hessian_comp.insert_hook("0")
    x = torch.tanh(fc(data[0]))
    assert list(hessian_comp.activations) == ["0#0", "0#1"]
    assert torch.allclose(hessian_comp.activations["0#1"][0], x, atol=1e-14)


def test_a_subclass_can_override_a_method_about_activations():
    class Doubled(hessian_with_activation):
        def hv_activ(self, v=None):
            return [2 * x for x in super().hv_activ(v)]

    model, inputs, targets = make(Plain)
    ours, theirs = (
        kind(copy.deepcopy(model), criterion, data=(inputs, targets))
        for kind in (hessian_with_activation, Doubled)
    )
    for hessian_comp in (ours, theirs):
        hessian_comp.insert_hook("fc")
        hessian_comp.get_activ_rand_v()
    assert torch.equal(2 * ours.hv_activ()[0], theirs.hv_activ()[0])


@pytest.mark.parametrize("at", ["input", "output"])
def test_modules_that_work_in_place_do_not_change_what_is_recorded(at):
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4).to(DOUBLE), nn.Linear(4, 3).to(DOUBLE)
    model = nn.Sequential(first, nn.ReLU(inplace=True), last)
    data = torch.randn(5, 3, dtype=DOUBLE), torch.tensor([0, 1, 2, 0, 1])
    layer = "1" if at == "input" else "0"  # the tensor that the ReLU overwrites, in both cases
    hessian_comp = hessian_with_activation(model, criterion, data=data, at=at)
    hessian_comp.insert_hook(layer)
    read = first(data[0]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(last(torch.relu(read)), data[1]), read)
    assert torch.allclose(hessian_comp.activations[layer][0], read, atol=1e-14)
    assert torch.allclose(hessian_comp.activation_grads[layer][0], gradient, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Using backward", "ignore:Using a non-full backward hook")
@pytest.mark.parametrize("kind", [Residual, Plain])
def test_hooks_give_the_same_matrix_without_a_branch_and_an_asymmetric_one_with_it(kind):
    model, inputs, targets, hessian_comp = prepared(kind)
    read, flowed = [], []
    handles = [
        model.conv2.register_forward_hook(lambda module, args, output: read.append(args[0])),
        model.conv2.register_backward_hook(lambda module, grads, _: flowed.append(grads[0])),
    ]
    criterion(model(inputs), targets).backward(create_graph=True)
    for handle in handles:
        handle.remove()
    units = torch.eye(read[0].numel(), dtype=DOUBLE).reshape(-1, *read[0].shape)
    gradient = flowed[0]  # further derivatives call the hook again
    rows = [torch.autograd.grad(gradient, read, unit, retain_graph=True)[0] for unit in units]
    by_hooks = torch.stack(rows).reshape(len(units), -1)
    block = hessian_comp.operator.block("conv2").to_dense()
    assert torch.allclose(block, block.T, atol=1e-14)
    if kind is Plain:
        assert torch.allclose(by_hooks, block, atol=1e-14)
    else:
        assert float((by_hooks - by_hooks.T).norm() / by_hooks.norm()) > 0.5
