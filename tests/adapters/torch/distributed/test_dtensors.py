"""Networks with parameters sharded over real processes, compared with one process."""

import itertools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[4]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of four forked processes."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run(
        [sys.executable, "-m", "support.dtensors", str(folder)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = pickle.loads((folder / "answers.pickle").read_bytes())
    assert all(found), done.stderr
    return found


BY_PAIRS = [
    "embedding by rows",
    "recomputed, weights, decay",
    "ggn",
    "fisher",
    "block",
    "unflatten",
    "flatten",
    "embedding by columns",
    "eigsh",
]
BY_ALL = [
    "rows",
    "columns, sharded inputs",
    "boxes",
    "data parallel too",
    "a function",
    "twin",
    "twin, eigsh",
    "twin after a step",
    "twin of a hybrid",
    "twin's ggn",
    "twin's activations",
    "differences' gradient",
    "differences' loss",
]
ALGORITHMS = ["gradient", "loss", "loss along a direction", "trace", "density"]


@pytest.mark.parametrize("name", [*BY_ALL, *ALGORITHMS, *(f"twin, {name}" for name in ALGORITHMS)])
def test_processes_compute_together_what_one_computes(answers, name):
    for answer in answers:
        ours, alone = answer[name]
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


@pytest.mark.parametrize("name", BY_PAIRS)
def test_a_transformer_over_two_processes_agrees_with_one_process(answers, name):
    seen = [answer[name] for answer in answers if name in answer]
    assert len(seen) == 2
    for ours, alone in seen:
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


def test_torch_alone_drops_terms_of_the_second_derivative(answers):
    """If this fails, ``twice_differentiable`` has become unnecessary."""
    ours, alone = answers[3]["torch alone"]
    assert abs(ours - alone).max() > 0.1 * abs(alone).max()


def test_tensors_by_name_have_the_placements_of_parameters(answers):
    assert answers[0]["placements kept"]


def test_all_processes_keep_the_same_number_of_graphs(answers):
    assert [answer["number of graphs"] for answer in answers[:2]] == [2, 2]


@pytest.mark.parametrize("name", ["left", "twin left", "left by differences"])
def test_models_are_not_modified(answers, name):
    assert all(answer[name] for answer in answers if name in answer)


def test_finite_differences_of_gradients_are_close(answers):
    for answer in answers:
        ours, alone = answer["differences"]
        assert abs(ours - alone).max() <= 1e-8 * abs(alone).max()  # eps^(2/3) is 4e-11


ERRORS = {
    "uneven": (ValueError, r"same number of batches in all processes: got \[1, 1, 2, 1\]"),
    "other batches": ("OperatorError", "process 3 differs from process 0 in its batches"),
    "other weights": (
        "OperatorError",
        "process 2 differs from process 0 in its unsharded weights or buffers",
    ),
    "group of a mesh": (ValueError, "these need the same data; omit it"),
    "forward": (ValueError, "can only be differentiated in reverse mode; pass strategy='auto'"),
    "activations": ("OperatorError", "activations are sharded as well"),
    "landscape": ("OperatorError", "a landscape is computed by a single process"),
    "landscape of a twin": ("OperatorError", "a landscape is computed by a single process"),
    "sharded twice": (ValueError, "are sharded already"),
    "number of vectors": (
        "OperatorError",
        "process 1 differs from process 0 in its numbers of vectors",
    ),
    "a group": (ValueError, "omit process_group="),
    "both": ("OperatorError", "by fully_shard and in another way; use tensor parallelism alone"),
    "several meshes": (ValueError, "over several meshes"),
    "old": ("OperatorError", "wrapped by FullyShardedDataParallel"),
    "memory": (
        MemoryError,
        r"full parameters take 888 B.*each process has 1.95 KiB available on cpu",
    ),
}


@pytest.mark.parametrize(("name", "kind", "text"), [(n, *e) for n, e in ERRORS.items()], ids=ERRORS)
def test_unsupported_requests_raise_in_all_processes(answers, name, kind, text):
    for answer in answers:
        seen, message = answer[name]
        assert seen == getattr(kind, "__name__", kind)
        assert re.search(text, message)


BOXES = [
    ((5,), (range(1, 4),)),
    ((4, 3), (range(1, 3), range(3))),
    ((4, 3), (range(4), range(1, 3))),
    ((4, 5), (range(1, 3), range(2, 4))),
    ((3, 4, 2), (range(3), range(1, 3), range(2))),
    ((3, 4, 2), (range(1, 2), range(1, 3), range(2))),
    ((2, 3), (range(2, 2), range(3))),
    ((), ()),
]


@pytest.mark.parametrize(("shape", "sides"), BOXES)
def test_entries_of_a_region_are_those_of_a_sliced_array(shape, sides):
    from matfree_torch.distributed.redistribution import Region

    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    entries = numbers[tuple(slice(side.start, side.stop) for side in sides)].ravel()
    region = Region(shape, sides)
    assert region.size == entries.size
    assert [region.below(i) for i in range(numbers.size + 1)] == [
        int((entries < i).sum()) for i in range(numbers.size + 1)
    ]
    for begin, end in itertools.combinations(range(entries.size + 1), 2):
        positions = region.entries(range(begin, end), torch.device("cpu"))
        assert np.array_equal(torch.from_numpy(numbers.ravel())[positions], entries[begin:end])


def test_the_example_of_the_documentation_runs_under_torchrun(tmp_path):
    script = ROOT / "docs" / "how-to" / "examples" / "tensor_parallel.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "rows of this process" in done.stdout
