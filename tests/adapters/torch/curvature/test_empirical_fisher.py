"""The empirical Fisher matrix: outer products of gradients of samples or positions."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.networks import DOUBLE, relative  # noqa: E402  # only where torch is
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from matfree import OperatorError  # noqa: E402
from matfree_torch import fisher  # noqa: E402

TOLERANCE = 1e-10
SAMPLES, POSITIONS, CLASSES = 6, 5, 4


class Network(nn.Module):
    """A linear layer at every position; the classes are on axis 1 or last."""

    def __init__(self, outputs, classes_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.classes_first = nn.Linear(3, outputs, dtype=DOUBLE), classes_first

    def forward(self, x):
        z = torch.tanh(self.layer(x))
        return z.movedim(-1, 1) if self.classes_first else z


def flat_gradient(model, value):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))])


def by_hand(model, term, x, y, divisor, positions):
    """The sum of g g^T / divisor, with g the gradient of each sample's or position's term."""
    total = 0
    for i in range(len(x)):
        picked = [(i, j) for j in range(x.shape[1])] if positions == "samples" else [(i,)]
        for index in picked:
            g = flat_gradient(model, term(torch.tanh(model.layer(x[index])), y[index]))
            total = total + torch.outer(g, g)
    return total / divisor


def squared(z, y):
    return ((z - y) ** 2).sum()


def binary(z, y):
    return F.binary_cross_entropy_with_logits(z, y, reduction="sum")


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="sum")


X = torch.randn(SAMPLES, POSITIONS, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
REAL = torch.rand(SAMPLES, POSITIONS, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
CLASS = torch.randint(CLASSES, (SAMPLES, POSITIONS), generator=torch.Generator().manual_seed(3))
# (loss, term of one sample or position, outputs, classes on axis 1, targets, divisor)
LOSSES = {
    "squared error": (nn.MSELoss(), squared, 2, False, REAL, REAL.numel()),
    "summed squared error": (nn.MSELoss(reduction="sum"), squared, 2, False, REAL, 1),
    "squared error, function": (lambda z, y: F.mse_loss(z, y), squared, 2, False, REAL, 60),
    "squared error, by hand": (lambda z, y: (z - y).pow(2).mean(), squared, 2, False, REAL, 60),
    "squared error, undeclared sum": (squared, squared, 2, False, REAL, 1),
    "binary": (nn.BCEWithLogitsLoss(), binary, 2, False, REAL, REAL.numel()),
    "cross-entropy": (nn.CrossEntropyLoss(), cross_entropy, CLASSES, True, CLASS, 30),
    "cross-entropy, function": (
        lambda z, y: F.cross_entropy(z, y),
        *(cross_entropy, CLASSES, True, CLASS, 30),
    ),
    "cross-entropy, classes last": (
        lambda z, y: F.cross_entropy(z.reshape(-1, CLASSES), y.reshape(-1)),
        *(cross_entropy, CLASSES, False, CLASS, 30),
    ),
    "mean over samples": (
        lambda z, y: F.cross_entropy(z, y, reduction="none").sum(1).mean(),
        *(cross_entropy, CLASSES, True, CLASS, SAMPLES),
    ),
}


@pytest.mark.parametrize("positions", ["samples", "joint"])
@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_positions_are_samples_or_belong_to_one_sample(case, positions):
    loss, term, outputs, classes_first, targets, divisor = case
    model = Network(outputs, classes_first)
    F_ = fisher(model, loss, (X, targets), kind="empirical", positions=positions)
    exact = by_hand(model, term, X, targets, divisor, positions)
    assert relative(F_.to_dense(), exact) < TOLERANCE
    if positions == "samples":  # the default
        default = fisher(model, loss, (X, targets), kind="empirical")
        assert relative(default.to_dense(), exact) < TOLERANCE


def test_several_batches_add_up_to_one():
    model = Network(2)
    for loss in (nn.MSELoss(), lambda z, y: (z - y).pow(2).mean()):
        whole = fisher(model, loss, (X, REAL), kind="empirical")
        halves = [(X[:2], REAL[:2]), (X[2:], REAL[2:])]
        several = fisher(model, loss, halves, kind="empirical")
        assert relative(several.to_dense(), whole.to_dense()) < TOLERANCE


def test_the_other_kinds_do_not_depend_on_positions():
    model = Network(2)
    for options in ({"kind": "exact"}, {"kind": "monte-carlo", "num_samples": 2, "seed": 0}):
        dense = [
            fisher(model, nn.MSELoss(), (X, REAL), positions=p, **options).to_dense()
            for p in ("samples", "joint")
        ]
        assert torch.equal(*dense)


def test_targets_of_whole_samples_leave_no_choice():
    model = Network(CLASSES)
    loss = lambda z, y: F.cross_entropy(z.sum(1), y)  # noqa: E731
    dense = fisher(model, loss, (X, CLASS[:, 0]), kind="empirical").to_dense()
    exact = 0
    for x, y in zip(X, CLASS[:, 0], strict=True):
        g = flat_gradient(model, F.cross_entropy(model(x[None]).sum(1), y[None]))
        exact = exact + torch.outer(g, g) / SAMPLES
    assert relative(dense, exact) < TOLERANCE


def test_an_undetermined_axis_and_an_unknown_choice_are_errors():
    model = Network(2)
    x, y = torch.randn(2, 3, 4, 3, dtype=DOUBLE), torch.randn(2, 3, 4, 2, dtype=DOUBLE)
    with pytest.raises(OperatorError, match=r"which axis.*pass positions='joint'"):
        fisher(model, nn.MSELoss(), (x, y), kind="empirical").to_dense()
    joint = fisher(model, nn.MSELoss(), (x, y), kind="empirical", positions="joint").to_dense()
    exact = by_hand(model, squared, x, y, y.numel(), "joint")
    assert relative(joint, exact) < TOLERANCE
    with pytest.raises(OperatorError, match="targets of type NoneType"):
        fisher(model, lambda z, _: z.square().mean(), (x, None), kind="empirical").to_dense()
    with pytest.raises(ValueError, match="positions must be 'samples' or 'joint': got 'all'"):
        fisher(model, nn.MSELoss(), (x, y), kind="empirical", positions="all")


def contrastive(z, _):
    z = F.normalize(z, dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def softmax_over_positions(z, y):
    return -(torch.log_softmax(z, 1) * y).sum((1, 2)).mean()


def test_a_loss_that_couples_the_data_is_refused():
    model = Network(2)
    with pytest.raises(OperatorError, match="needs a loss that is a sum over samples"):
        fisher(model, contrastive, (X[:, 0], REAL[:, 0]), kind="empirical").to_dense()
    with pytest.raises(OperatorError, match=r"a sum over positions.*pass positions='joint'"):
        fisher(model, softmax_over_positions, (X, REAL), kind="empirical").to_dense()
    dense = fisher(model, softmax_over_positions, (X, REAL), kind="empirical", positions="joint")
    one = lambda z, y: softmax_over_positions(z[None], y[None])  # noqa: E731
    exact = by_hand(model, one, X, REAL, SAMPLES, "joint")
    assert relative(dense.to_dense(), exact) < TOLERANCE
