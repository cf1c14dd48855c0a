"""Captured and replayed programs, with a fake recorder and, on a GPU, with CUDA graphs."""

import contextlib
import gc
import inspect
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from support.backends import cuda  # noqa: E402
from support.networks import DOUBLE, batch, relative  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import matfree as mf  # noqa: E402
from matfree_torch import hessian  # noqa: E402
from matfree_torch.hvp import constant_folding  # noqa: E402
from matfree_torch.hvp.cuda_graphs import CapturedProgram, CudaGraphs, Recording, recorder_for  # noqa: E402

CE = nn.CrossEntropyLoss()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(DOUBLE)


class Tape(TorchDispatchMode):
    """Records operations and replays them on the same tensors, without calling the program."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.operations:
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if old.data_ptr() != new.data_ptr():  # not a view
                    old.copy_(new)


class TapeRecorder:
    """A recorder for the CPU that behaves like CUDA graphs."""

    def __init__(self):
        self.tapes = []

    def record(self, work):
        tape = Tape()
        with tape:
            result = work()
        self.tapes.append(weakref.ref(tape))
        return Recording(tape.replay, result)


class RefusingRecorder:
    def __init__(self):
        self.attempts = 0

    def record(self, work):
        self.attempts += 1
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")


@pytest.fixture
def recorder(monkeypatch):
    found = TapeRecorder()
    monkeypatch.setattr(constant_folding, "recorder_for", lambda device: found)
    return found


def _vectors(H, count=3):
    return list(H.space.probes(count, seed=1, kind="gaussian").T)


def _eager(model, data, v):
    H = hessian(model, CE, data, strategy="folded")
    return H @ v


def test_a_replay_computes_the_captured_program():
    calls = []

    def program(x, y):
        calls.append((x.data_ptr(), y.data_ptr()))
        return 2 * x + y.sum(), (x * y)[:1]

    captured = CapturedProgram(program, TapeRecorder())
    pairs = [(torch.full((3,), float(i)), torch.arange(3.0) - i) for i in range(4)]
    results = [captured(x, y) for x, y in pairs]
    for (x, y), (first, second) in zip(
        pairs, results, strict=True
    ):  # later replays must not overwrite results
        assert torch.equal(first, 2 * x + y.sum())
        assert torch.equal(second, (x * y)[:1])
    assert len(calls) == 1
    assert calls[0] != (pairs[0][0].data_ptr(), pairs[0][1].data_ptr())  # the inputs are copied


def test_a_program_may_return_its_argument_or_a_constant():
    constant = torch.ones(2)
    captured = CapturedProgram(lambda x: (x, constant), TapeRecorder())
    for i in range(3):
        x = torch.full((2,), float(i))
        got = captured(x)
        assert torch.equal(got[0], x)
        assert torch.equal(got[1], constant)
        got[0].fill_(7)  # results belong to the caller
        got[1].fill_(7)
    assert torch.equal(constant, torch.ones(2))


def test_replayed_products_equal_those_of_the_folded_program(recorder, monkeypatch):
    x, y = batch()
    data = [(x[:7], y[:7]), (x[7:], y[7:])]
    model = mlp()
    H = hessian(model, CE, data, strategy="folded")
    got = [H @ v for v in _vectors(H)]
    block = H.matmat(torch.stack(_vectors(H), dim=1))
    part = H.block("0.*").to_dense()
    assert len(recorder.tapes) == 2  # one capture for each batch, for blocks of any width
    monkeypatch.setattr(constant_folding, "recorder_for", recorder_for)
    exact = hessian(model, CE, data, strategy="folded")
    for v, one, column in zip(_vectors(H), got, block.T, strict=True):
        assert torch.equal(one, exact @ v)
        assert torch.equal(column, one)
    assert torch.equal(part, exact.block("0.*").to_dense())
    assert mf.check_operator(H).hermitian


def test_a_training_step_or_other_data_lead_to_a_new_capture(recorder):
    x, y = batch()
    x = x.clone()
    model = mlp()
    H = hessian(model, CE, (x, y), strategy="folded")
    v = _vectors(H)[0]
    before = H @ v
    for number, change in enumerate((lambda: model[0].weight.mul_(1.5), lambda: x.mul_(0.5)), 2):
        with torch.no_grad():
            change()
        after = H @ v
        assert len(recorder.tapes) == number
        assert torch.equal(after, hessian(model, CE, (x, y), strategy="folded") @ v)
        recorder.tapes.pop()  # the tape of the reference
        assert relative(after, before) > 1e-3
    gc.collect()
    alive = [tape() is not None for tape in recorder.tapes]
    assert alive == [False, False, True]  # earlier tapes have been freed


def test_a_program_that_cannot_be_captured_runs_and_warns_once(monkeypatch):
    refusing = RefusingRecorder()
    monkeypatch.setattr(constant_folding, "recorder_for", lambda device: refusing)
    model, data = mlp(), batch()
    H = hessian(model, CE, data, strategy="folded")
    v = H.space.probes(1, seed=1)[:, 0]
    with pytest.warns(UserWarning, match=r"CUDA graph \(operation not .*\); it runs operation"):
        first = H @ v
    second = H @ v  # a second warning would be an error
    assert refusing.attempts == 1
    monkeypatch.setattr(constant_folding, "recorder_for", recorder_for)
    exact = _eager(model, data, v)
    assert torch.equal(first, exact)
    assert torch.equal(second, exact)


def test_programs_on_the_cpu_are_not_captured():
    assert recorder_for(torch.device("cpu")) is None


class FakeCuda:
    """A fake of torch.cuda that logs the calls."""

    def __init__(self, monkeypatch, *, failing=False):
        self.events, self.current, self.failing = [], "the caller's", failing
        for name in ("device", "current_stream", "Stream", "stream", "set_stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)

    @contextlib.contextmanager
    def device(self, device):
        yield

    def current_stream(self):
        return self

    def Stream(self):
        return self

    def wait_stream(self, other):
        self.events.append("wait")

    @contextlib.contextmanager
    def stream(self, stream):
        self.current = "side"
        yield
        self.current = "the caller's"

    @contextlib.contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        self.current = "capturing"
        yield  # like torch, it does not restore the stream if the capture fails
        self.current = "the caller's"

    def set_stream(self, stream):
        self.current = "the caller's"

    def replay(self):
        self.events.append("replay")

    def work(self):
        self.events.append(self.current)
        if self.failing and self.current == "capturing":
            raise RuntimeError("not permitted")
        return torch.ones(1)


def test_cuda_graphs_warm_up_on_a_side_stream_and_capture_once(monkeypatch):
    fake = FakeCuda(monkeypatch)
    recording = CudaGraphs(torch.device("cuda")).record(fake.work)
    assert fake.events == ["wait", "side", "side", "side", "capturing", "wait"]
    recording.replay()
    assert fake.events[-1] == "replay"


def test_the_stream_of_the_caller_is_restored_if_the_capture_fails(monkeypatch):
    fake = FakeCuda(monkeypatch, failing=True)
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphs(torch.device("cuda")).record(fake.work)
    assert fake.current == "the caller's"


def test_torch_cuda_graph_has_the_arguments_that_are_passed():
    parameters = inspect.signature(torch.cuda.graph).parameters
    assert {"stream", "capture_error_mode"} <= parameters.keys()


@pytest.mark.gpu
def test_cuda_graphs_replay_the_folded_program(monkeypatch):
    device = cuda()
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4).eval(),
        nn.Tanh(), nn.Flatten(), nn.Linear(48, 3),
    ).to(device, torch.float64)  # fmt: skip
    data = [x.to(device) for x in batch()]
    H = hessian(model, CE, tuple(data), strategy="folded")
    got = [H @ v for v in _vectors(H)]
    assert next(iter(H._graphs._entries)).prepared._run._recording is not None
    monkeypatch.setattr(constant_folding, "recorder_for", lambda device: None)
    eager = hessian(model, CE, tuple(data), strategy="folded")
    plain = hessian(model, CE, tuple(data))
    for v, one in zip(_vectors(H), got, strict=True):
        assert relative(one, eager @ v) < 1e-14
        assert relative(one, plain @ v) < 1e-12
    with torch.no_grad():
        model[1].weight.mul_(1.5)
    v = _vectors(H)[0]
    assert relative(H @ v, eager @ v) < 1e-14
    with torch.cuda.stream(torch.cuda.Stream(device)) as _:
        torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
        on_side_stream = H @ v
        torch.cuda.current_stream(device).synchronize()
    assert torch.equal(on_side_stream, H @ v)


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_streams_unchanged():
    device = cuda()
    before = torch.cuda.current_stream(device)
    x = torch.ones(3, device=device)
    captured = CapturedProgram(
        lambda x: (x * float(x.sum()),), recorder_for(device)
    )  # reads values
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph"):
        (got,) = captured(x)
    assert torch.cuda.current_stream(device) == before
    assert torch.equal(got, 3 * x)
    assert torch.equal(captured(2 * x)[0], 12 * x)
