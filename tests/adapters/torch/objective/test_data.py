"""All forms of data, weight decay, blocks by name, and the loss along a direction."""

import collections

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support import resnet  # noqa: E402  # after the check for torch
from support.networks import (  # noqa: E402
    DOUBLE,
    assert_untouched,
    batch,
    flat_parameters,
    network,
    outputs_of,
    relative,
    snapshot,
)
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import activation_hessian, activation_traces, fisher, ggn, hessian  # noqa: E402

CE = nn.CrossEntropyLoss()
TOLERANCE = 1e-10


class Output(collections.OrderedDict):
    """A dictionary with attributes, as the models of Hugging Face return it."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as cause:
            raise AttributeError(name) from cause


class Encoder(nn.Module):
    """Class logits of tokens and a mask, and the loss if labels are given."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.classifier = nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        h = self.embeddings(input_ids)
        padding = None if attention_mask is None else attention_mask == 0
        h = self.layer(h, src_key_padding_mask=padding)
        logits = self.classifier(h[:, 0])
        if labels is None:
            return Output(logits=logits)
        return Output(loss=CE(logits, labels), logits=logits)


class Logits(nn.Module):
    """The same encoder as a model of (tokens, mask) that returns a tensor."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens, mask):
        return self.encoder(tokens, mask).logits


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder().to(DOUBLE)


def tokenised(samples=9, ignored=0):
    tokens, labels = batch("tokens", samples=samples)
    mask = torch.ones_like(tokens)
    mask[: samples // 2, -1] = 0
    labels[:ignored] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def part(mapping, rows):
    return {name: x[rows] for name, x in mapping.items()}


@pytest.mark.parametrize("make", [hessian, ggn], ids=["hessian", "ggn"])
def test_a_model_that_takes_and_returns_mappings_is_differentiated(encoder, make):
    whole = tokenised(ignored=2)
    pair = (whole["input_ids"], whole["attention_mask"]), whole["labels"]
    reference = make(Logits(encoder), CE, pair)
    v = reference.space.probes(2, seed=0)
    exact = reference @ v
    for loss, data in (
        (None, whole),
        (None, collections.UserDict(whole)),
        (lambda outputs, batch: outputs.loss, whole),
        (lambda outputs, batch: CE(outputs.logits, batch["labels"]), whole),
        (CE, ({n: whole[n] for n in ("input_ids", "attention_mask")}, whole["labels"])),
        (None, [part(whole, slice(0, 4)), part(whole, slice(4, 9))]),  # 2 and 5 labels count
    ):
        operator = make(encoder, loss, data)
        assert relative(operator @ v, exact) < TOLERANCE
    assert mf.check_operator(operator).hermitian


def test_a_loader_of_mappings_and_the_activations_of_such_a_model(encoder):
    whole = tokenised(12)
    samples = [part(whole, i) for i in range(12)]
    loader = DataLoader(samples, batch_size=5)
    H = hessian(encoder, None, whole)
    v = H.space.probes(1, seed=0)
    assert relative(hessian(encoder, None, loader) @ v, H @ v) < TOLERANCE
    settings = {"modules": nn.Linear, "at": "output", "num_probes": 8, "seed": 0}
    traces = activation_traces(encoder, None, loader, **settings)
    assert traces["classifier"].method == "exact"
    assert traces["layer.linear1"].method in ("exact", "hutchinson")
    once = activation_traces(encoder, None, whole, **settings)["classifier"]
    assert abs(once.value - traces["classifier"].value) < TOLERANCE * once.value
    A = activation_hessian(encoder, None, whole, modules=["layer", "classifier"], at="tensor")
    assert mf.check_operator(A).hermitian
    F = fisher(encoder, CE, ({"input_ids": whole["input_ids"]}, whole["labels"]), kind="exact")
    assert F.positive_semidefinite


def test_labels_for_every_token_need_a_normalizer(encoder):
    batches = [{"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, 3)}] * 2
    tokens = [{**b, "labels": b["labels"].long()} for b in batches]
    for loss in (None, lambda outputs, b: outputs.loss + outputs.logits.square().mean()):
        H = hessian(TokenModel(), loss, tokens)
        with pytest.raises(ValueError, match=r"pass normalizer=.*predicts the next token"):
            H.gradient()
    with pytest.raises(mf.OperatorError, match="this one does not; pass a loss"):
        hessian(encoder, None, {"input_ids": tokens[0]["input_ids"]}).gradient()
    with pytest.raises(TypeError, match="loss must be a function"):
        hessian(encoder, "cross-entropy", tokens)


class TokenModel(nn.Module):
    """Class logits of every token, and their mean loss over tokens that are not ignored."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, input_ids, labels=None, targets=None):
        logits = self.head(torch.tanh(self.embedding(input_ids)))
        chosen = targets if labels is None else labels
        loss = None if chosen is None else CE(logits.transpose(1, 2), chosen)
        return Output(loss=loss, logits=logits)


def of_tokens(name, *shapes):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for shape in shapes:
        tokens, labels = (torch.randint(5, shape, generator=generator) for _ in range(2))
        labels[0, 0] = -100
        batches.append({"input_ids": tokens, name: labels})
    return batches


@pytest.mark.parametrize("name", ["labels", "targets"])
@pytest.mark.parametrize("shapes", [[(2, 3), (4, 3)], [(2, 3), (2, 5)]])
def test_ragged_batches_of_labels_for_every_token_weigh_right_or_are_refused(name, shapes):
    model, batches = TokenModel().to(DOUBLE), of_tokens(name, *shapes)
    counts = [int((batch[name] != -100).sum()) for batch in batches]
    parts = [n * hessian(model, None, b).to_dense() for n, b in zip(counts, batches, strict=True)]
    exact = sum(parts) / sum(counts)
    own = lambda outputs, b: CE(outputs.logits.transpose(1, 2), b[name])  # noqa: E731
    assert relative(hessian(model, own, batches).to_dense(), exact) < TOLERANCE
    counted = hessian(model, None, batches, normalizer=lambda b: (b[name] != -100).sum())
    assert relative(counted.to_dense(), exact) < TOLERANCE
    for loss in (None, lambda outputs, b: outputs.loss):
        with pytest.raises(ValueError, match=r"ass normalizer=.*!= -100\)\.sum\(\)"):
            hessian(model, loss, batches).to_dense()


def test_blocks_by_name_are_submatrices():
    model, data = network("layer norm")
    for make in (hessian, ggn, lambda *a: fisher(*a, kind="empirical")):
        H = make(model, CE, data)
        dense, where = H.to_dense(), H.partition
        rows = torch.cat([torch.arange(H.shape[0])[where[n]] for n in ("0.weight", "0.bias")])
        columns = torch.arange(H.shape[0])[where["4.weight"]]
        square, cross = H.block("0.*"), H.block("0.*", "4.weight")
        assert relative(square.to_dense(), dense[rows][:, rows]) < TOLERANCE
        assert relative(cross.to_dense(), dense[rows][:, columns]) < TOLERANCE
        assert relative(cross.H.to_dense(), dense[columns][:, rows]) < TOLERANCE
        assert mf.check_operator(cross).adjoint < TOLERANCE
        assert "block 0.weight ... 0.bias x 4.weight of" in repr(cross)
    with pytest.raises(ValueError, match="no parameter matches '9"):
        H.block("9.*")


def test_blocks_over_a_loader_and_in_half_precision():
    model, (x, y) = network("linear")
    whole = hessian(model, CE, (x, y))
    pieces = hessian(model, CE, [(x[:7], y[:7]), (x[7:], y[7:])])
    exact = whole.block("0.weight", "3.bias").to_dense()
    assert relative(pieces.block("0.weight", "3.bias").to_dense(), exact) < TOLERANCE
    half = hessian(model.to(torch.bfloat16), CE, (x.to(torch.bfloat16), y))
    assert half.block("3.*").dtype == torch.float32
    assert half.block("3.*").to_dense().dtype == torch.float32


def test_weight_decay_adds_its_multiple_of_the_identity():
    model, (x, y) = network("linear")
    H = hessian(model, CE, (x, y)).to_dense()
    everything = hessian(model, CE, (x, y), weight_decay=0.3)
    assert relative(everything.to_dense(), H + 0.3 * torch.eye(len(H), dtype=DOUBLE)) < TOLERANCE
    weights = hessian(model, CE, [(x[:5], y[:5]), (x[5:], y[5:])], weight_decay={"*.weight": 0.3})
    diagonal = torch.zeros(len(H), dtype=DOUBLE)
    for name, rows in weights.partition.items():
        diagonal[rows] = 0.3 * name.endswith("weight")
    assert relative(weights.to_dense(), H + torch.diag(diagonal)) < TOLERANCE
    assert "weight decay" in repr(weights)
    block = weights.block("0.*", "0.weight")
    columns = weights.partition["0.weight"]
    rows = slice(0, weights.partition["0.bias"].stop)
    assert relative(block.to_dense(), (H + torch.diag(diagonal))[rows, columns]) < TOLERANCE
    flat = flat_parameters(model)
    gradient = hessian(model, CE, (x, y)).gradient()
    assert relative(weights.gradient(), gradient + diagonal * flat) < TOLERANCE
    exact = CE(model(x), y).detach() + diagonal @ flat**2 / 2
    assert abs(weights.loss() - exact) < 1e-12
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="weight_decay must be finite"):
            hessian(model, CE, (x, y), weight_decay=bad)
    with pytest.raises(ValueError, match="no parameter matches 'bias'"):
        hessian(model, CE, (x, y), weight_decay={"bias": 1.0})


LOSSES = {
    "mean": CE,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weighted": nn.CrossEntropyLoss(
        weight=torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE), ignore_index=2
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_along_a_direction_is_that_of_the_moved_parameters(loss):
    model, (x, y) = network("batch norm, evaluation")
    before = snapshot(model)
    flat, function = flat_parameters(model), outputs_of(model, x)
    direction = torch.randn(flat.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for data in ((x, y), [(x[:7], y[:7]), (x[7:], y[7:])]):
        H = hessian(model, loss, data)
        assert abs(H.loss() - loss(model(x), y).detach()) < 1e-12
        assert abs(H.loss(direction) - loss(function(flat + direction), y)) < 1e-12
    assert_untouched(before, snapshot(model))
    with pytest.raises(ValueError, match="vector must have shape"):
        H.loss(direction[1:])
    kept = H.to_dense()  # graphs that are kept survive an evaluation along a direction
    H.loss(direction)
    assert torch.equal(H.to_dense(), kept)


def test_the_loss_its_gradient_and_its_hessian_are_those_of_one_function():
    model, data = network("gated recurrence")
    H = hessian(model, CE, data, weight_decay=0.1)
    v = torch.randn(H.shape[0], dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    h = 1e-4
    up, down, here = H.loss(h * v), H.loss(-h * v), H.loss()
    assert abs((up - down) / (2 * h) - H.gradient() @ v) < 1e-6
    assert abs((up - 2 * here + down) / h**2 - v @ (H @ v)) < 1e-5 * (v @ (H @ v)).abs()


def loader(samples=12, **settings):
    return DataLoader(TensorDataset(*batch(samples=samples)), batch_size=5, **settings)


def twice(operator):
    operator.gradient()
    operator.gradient()


def test_a_shuffling_loader_is_accepted_if_the_order_does_not_matter():
    model, _ = network("linear")
    exact = hessian(model, CE, batch()).to_dense()
    for generator in (None, torch.Generator().manual_seed(0)):
        H = hessian(model, CE, loader(shuffle=True, generator=generator))
        assert relative(H.to_dense(), exact) < TOLERANCE
        assert relative(H.to_dense(), exact) < TOLERANCE


@pytest.mark.filterwarnings("ignore:BatchNorm1d layer")
def test_a_loader_with_different_passes_is_detected_and_the_cause_named():
    model, _ = network("linear")
    own = torch.Generator().manual_seed(0)
    lossy = hessian(model, CE, loader(shuffle=True, generator=own, drop_last=True))
    with pytest.raises(ValueError, match=r"not the same.*shuffles with its own generator"):
        twice(lossy)
    sampler = WeightedRandomSampler(torch.ones(12), 12, generator=own)
    with pytest.raises(ValueError, match="WeightedRandomSampler draws new samples"):
        twice(hessian(model, CE, loader(sampler=sampler)))
    shuffled = loader(shuffle=True, generator=own)
    drawn = fisher(model, CE, shuffled, kind="monte-carlo", seed=0)
    with pytest.raises(ValueError, match=r"different batches.*shuffles"):
        twice(drawn)
    coupled, _ = network("batch norm, training")
    with pytest.raises(ValueError, match=r"different batches.*shuffles"):
        twice(hessian(coupled, CE, shuffled))


class Exhausted:
    """A re-iterable that is empty in the second pass."""

    def __init__(self):
        self.batches = iter([batch()])

    def __iter__(self):
        yield from self.batches


def test_exhausted_data_are_detected():
    model, _ = network("linear")
    with pytest.raises(ValueError, match="pass a loader that is not exhausted"):
        twice(hessian(model, CE, Exhausted()))


class Augmented(torch.utils.data.Dataset):
    """Images that are mirrored at random, by a generator that is never reset."""

    def __init__(self):
        self.x, self.y = batch("image")
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        mirrored = torch.rand(1, generator=self.generator) < 0.5
        return self.x[i].flip(-1) if mirrored else self.x[i], self.y[i]


def test_random_augmentation_is_detected():
    model, _ = network("convolution")
    with pytest.raises(ValueError, match="random augmentation"):
        twice(hessian(model, CE, DataLoader(Augmented(), batch_size=4)))


def test_a_compiled_model_is_unwrapped():
    model, data = network("linear")
    compiled = torch.compile(model, backend="eager")
    H = hessian(compiled, CE, data)
    assert H.names == hessian(model, CE, data).names
    assert relative(H.to_dense(), hessian(model, CE, data).to_dense()) < TOLERANCE


@pytest.mark.skipif(not resnet.present(), reason=f"no trained ResNet-20 in {resnet.FOLDER.name}/")
def test_a_trained_residual_network_has_the_traces_of_its_last_layers_closed_form():
    net, (x, y) = resnet.problem()
    before = snapshot(net)
    A = activation_hessian(net, CE, (x, y), modules=["fc", "layer3.2.conv2"])
    traces = A.traces(per_sample=True)
    p = torch.softmax(net(x), dim=1).detach()
    W = net.fc.weight.detach()
    exact = (p @ (W**2).sum(dim=1) - ((p @ W) ** 2).sum(dim=1)) / len(x)
    assert relative(torch.as_tensor(traces["fc"].value), exact) < 1e-9
    assert traces["layer3.2.conv2"].method == "exact"
    probed = A.traces("probes", num_probes=10, seed=0)["layer3.2.conv2"]
    assert abs(probed.value - traces["layer3.2.conv2"].value.sum()) < 5 * probed.stderr
    assert_untouched(before, snapshot(net))
