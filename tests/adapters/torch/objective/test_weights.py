"""Weights of batches: what a loss divides its sum by, in every form in which it may be written."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, explicit_hessian, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from matfree_torch import (  # noqa: E402
    activation_traces,
    batch_jackknife,
    fisher,
    ggn,
    hessian,
    loss_landscape,
)

TOLERANCE = 1e-10
CLASSES = 4
LENGTHS = ((3, 2), (2, 5), (4, 3))
WEIGHT = torch.tensor([1.0, 3.0, 0.2, 2.0], dtype=DOUBLE)


class Tagger(nn.Module):
    """Class logits for every position of a sequence, (samples, classes, positions)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.o = nn.Embedding(6, 3, dtype=DOUBLE), nn.Linear(3, CLASSES, dtype=DOUBLE)

    def forward(self, x):
        return self.o(torch.tanh(self.e(x))).transpose(1, 2)


class Wrapper(nn.Module):
    """A loss inside a module without the attribute ``reduction``."""

    def __init__(self, loss):
        super().__init__()
        self.inner = loss

    def forward(self, outputs, targets):
        return self.inner(outputs, targets)


def ragged(last=CLASSES):
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randint, generator=generator)
    return [(draw(6, size=size), draw(last, size=size)) for size in LENGTHS]


def concatenated(model, batches, loss):
    """The loss of all positions of all batches."""
    outputs = [model(x).transpose(1, 2).reshape(-1, CLASSES) for x, _ in batches]
    return loss(torch.cat(outputs), torch.cat([y.reshape(-1) for _, y in batches]))


OPTIONS = {
    "plain": {},
    "class weights": {"weight": WEIGHT},
    "ignored class": {"ignore_index": 0},
    "both": {"weight": WEIGHT, "ignore_index": 1},
    "label smoothing": {"label_smoothing": 0.1},
}
FORMS = {
    "module": lambda **o: nn.CrossEntropyLoss(**o),
    "partial": lambda **o: functools.partial(F.cross_entropy, **o),
    "partial of a module": lambda **o: functools.partial(nn.CrossEntropyLoss(**o)),
    "function around it": lambda **o: lambda z, y: F.cross_entropy(z, y, **o),
    "module around it": lambda **o: Wrapper(nn.CrossEntropyLoss(**o)),
    "flattened": lambda **o: (
        lambda z, y: F.cross_entropy(z.transpose(1, 2).reshape(-1, CLASSES), y.reshape(-1), **o)
    ),
    "scaled and shifted": lambda **o: lambda z, y: 1 + 2 * F.cross_entropy(z, y, **o) / 2,
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_cross_entropy_weights_ragged_batches_by_what_it_counts(form, options):
    model, batches = Tagger(), ragged()
    exact = explicit_hessian(
        model,
        lambda: concatenated(model, batches, lambda z, y: F.cross_entropy(z, y, **options)),
    )
    H = hessian(model, form(**options), batches)
    assert relative(H.to_dense(), exact) < TOLERANCE


BY_HAND = {
    "gathered": lambda z, y: -torch.log_softmax(z, 1).gather(1, y[:, None]).mean(),
    "sum over numel": lambda z, y: F.cross_entropy(z, y, reduction="sum") / y.numel(),
    "sum times 1/n": lambda z, y: F.cross_entropy(z, y, reduction="none").sum() * (1 / y.numel()),
    "mask": lambda z, y: (
        (F.cross_entropy(z, y, reduction="none") * (y >= 0)).sum() / (y >= 0).sum()
    ),
    "two terms": lambda z, y: F.cross_entropy(z, y) + 0 * z.square().sum(1).mean(),
}


@pytest.mark.parametrize("loss", BY_HAND.values(), ids=BY_HAND)
@pytest.mark.parametrize("make", [hessian, ggn], ids=["hessian", "ggn"])
def test_a_mean_written_by_hand_is_recognized(loss, make):
    model, batches = Tagger(), ragged()
    exact = make(model, nn.CrossEntropyLoss(), batches).to_dense()
    assert relative(make(model, loss, batches).to_dense(), exact) < TOLERANCE


def per_sequence(z, y):
    """A sum over positions and a mean over samples."""
    return F.cross_entropy(z, y, reduction="none").sum(1).mean()


@pytest.mark.parametrize("loss", [per_sequence, Wrapper(per_sequence)], ids=["function", "module"])
def test_a_mean_over_samples_of_sums_over_positions_weights_batches_by_samples(loss):
    model, batches = Tagger(), ragged()
    exact = sum(len(x) * explicit_hessian(model, lambda b=(x, y): loss(model(b[0]), b[1]))
                for x, y in batches) / 9  # fmt: skip
    H = hessian(model, loss, batches)
    assert relative(H.to_dense(), exact) < TOLERANCE
    assert [batch.weight for batch in H.batches] == [3, 2, 4]


def test_everything_computed_from_batches_has_the_same_weights():
    model, batches, loss = Tagger(), ragged(), FORMS["function around it"](weight=WEIGHT)
    module = nn.CrossEntropyLoss(weight=WEIGHT)
    H, G = hessian(model, loss, batches), hessian(model, module, batches)
    assert H.loss() == pytest.approx(G.loss())
    assert relative(H.gradient(), G.gradient()) < TOLERANCE
    lines = [loss_landscape(model, f, batches, "random", seed=0, points=3) for f in (loss, module)]
    assert lines[0].values == pytest.approx(lines[1].values)
    options = {"modules": "o", "method": "gauss-newton"}
    traces = [activation_traces(model, f, batches, **options)["o"].value for f in (loss, module)]
    assert traces[0] == pytest.approx(traces[1])
    left_out = [batch_jackknife(A, num_probes=2, seed=0).left_out for A in (H, G)]
    assert left_out[0] == pytest.approx(left_out[1])


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (F.mse_loss, nn.MSELoss),
        (F.l1_loss, nn.L1Loss),
        (F.smooth_l1_loss, nn.SmoothL1Loss),
        (F.huber_loss, nn.HuberLoss),
        (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
    ],
)
def test_elementwise_losses_weight_ragged_batches_by_elements(function, module):
    model, batches = Tagger(), []
    for x, _ in ragged():
        batches.append((x, torch.rand(len(x), CLASSES, x.shape[1], dtype=DOUBLE)))
    exact = [x.numel() for _, x in batches]
    wrapped = lambda z, y: function(z, y)  # noqa: E731
    for loss in (function, module(), wrapped, functools.partial(function, reduction="mean")):
        weights = [batch.weight for batch in hessian(model, loss, batches).batches]
        assert [w / weights[0] for w in weights] == [n / exact[0] for n in exact]


def test_a_sum_is_added_if_it_is_declared_and_refused_otherwise():
    model, batches = Tagger(), ragged()
    exact = hessian(model, nn.CrossEntropyLoss(reduction="sum"), batches).to_dense()
    declared = functools.partial(F.cross_entropy, reduction="sum")
    assert relative(hessian(model, declared, batches).to_dense(), exact) < TOLERANCE
    loss = lambda z, y: F.cross_entropy(z, y, reduction="sum")  # noqa: E731
    half = lambda z, y: 0.5 * F.cross_entropy(z, y, reduction="none").sum()  # noqa: E731
    for undeclared in (loss, half, Wrapper(loss)):
        with pytest.raises(ValueError, match=r"is a sum over the terms.*loss.reduction = 'sum'"):
            hessian(model, undeclared, batches).gradient()
    loss.reduction = "sum"
    assert relative(hessian(model, loss, batches).to_dense(), exact) < TOLERANCE


def test_weights_that_are_not_determined_need_a_normalizer():
    model, batches = Tagger(), ragged()
    mixed = lambda z, y: F.cross_entropy(z, y) + z.square().sum((1, 2)).mean()  # noqa: E731
    root = lambda z, y: F.cross_entropy(z, y).sqrt()  # noqa: E731
    for loss in (mixed, root):
        with pytest.raises(ValueError, match="Pass normalizer="):
            hessian(model, loss, batches).gradient()
        H = hessian(model, loss, batches, normalizer=lambda batch: len(batch[1]))
        assert [batch.weight for batch in H.batches] == [3, 2, 4]
        equal = [batch for batch in batches if batch[0].shape[1] == 2] * 2  # no ambiguity
        assert hessian(model, loss, equal).loss() == pytest.approx(
            hessian(model, loss, equal[:1]).loss()
        )


@torch.compiler.disable
def test_an_opaque_loss_is_a_mean_over_samples_if_all_samples_have_as_many_targets():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, y):
            ctx.save_for_backward(z, y)
            return (z - y).square().mean()

        @staticmethod
        def backward(ctx, g):
            z, y = ctx.saved_tensors
            return g * 2 * (z - y) / z.numel(), None

    model = nn.Linear(3, 2, dtype=DOUBLE)
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    H = hessian(model, Opaque.apply, [(x[:5], y[:5]), (x[5:], y[5:])])
    exact = hessian(model, nn.MSELoss(), (x, y))
    assert relative(H.to_dense(), exact.to_dense()) < TOLERANCE


def test_mappings_with_class_weights_are_weighted_by_them():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.o = nn.Linear(3, CLASSES, dtype=DOUBLE)

        def forward(self, x, labels):
            return self.o(x)

    torch.manual_seed(0)
    model, x, y = Classifier(), torch.randn(7, 3, dtype=DOUBLE), torch.tensor([0, 1, 2, 3, 0, 1, 1])
    loss = lambda z, batch: F.cross_entropy(z, batch["labels"], weight=WEIGHT)  # noqa: E731
    batches = [{"x": x[rows], "labels": y[rows]} for rows in (slice(0, 5), slice(5, 7))]
    exact = hessian(model, loss, {"x": x, "labels": y}).to_dense()
    assert relative(hessian(model, loss, batches).to_dense(), exact) < TOLERANCE


def test_the_empirical_fisher_matrix_has_the_weights_of_the_observed_loss():
    model, batches = Tagger(), ragged()
    exact = fisher(model, nn.CrossEntropyLoss(), batches, kind="empirical").to_dense()
    loss = FORMS["function around it"]()
    assert relative(fisher(model, loss, batches, kind="empirical").to_dense(), exact) < TOLERANCE


@pytest.mark.parametrize("strategy", ["auto", "recompute", "folded"])
def test_class_weights_that_change_in_place_change_the_weights_of_the_batches(strategy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).to(DOUBLE)
    x, y = torch.randn(10, 3, dtype=DOUBLE), torch.tensor([0, 0, 0, 0, 1, 2, 1, 3, 2, 2])
    weight = WEIGHT.clone()

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=weight)

    H = hessian(net, loss, [(x[:4], y[:4]), (x[4:], y[4:])], strategy=strategy)
    H.to_dense()
    weight.copy_(torch.tensor([5.0, 0.1, 3.0, 1.0]))
    expected = explicit_hessian(net, lambda: loss(net(x), y))
    assert relative(H.to_dense(), expected) < TOLERANCE
