"""Networks whose parameters are cut up over real processes, beside one process that has all."""

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
    """What each of four processes saw, forked from one."""
    folder = tmp_path_factory.mktemp("cut")
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
    "columns, inputs cut",
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
def test_processes_have_together_what_one_has(answers, name):
    for answer in answers:
        ours, alone = answer[name]
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


@pytest.mark.parametrize("name", BY_PAIRS)
def test_a_transformer_of_two_processes_is_that_of_one(answers, name):
    seen = [answer[name] for answer in answers if name in answer]
    assert len(seen) == 2
    for ours, alone in seen:
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


def test_torch_alone_loses_terms_of_it(answers):
    """Should this fail, ``twice_differentiable`` has become unnecessary."""
    ours, alone = answers[3]["torch's own"]
    assert abs(ours - alone).max() > 0.1 * abs(alone).max()


def test_tensors_by_name_are_cut_up_as_parameters_are(answers):
    assert answers[0]["placements kept"]


def test_graphs_are_kept_in_all_processes_alike(answers):
    assert [answer["graphs kept"] for answer in answers[:2]] == [2, 2]


@pytest.mark.parametrize("name", ["left", "twin left", "left by differences"])
def test_models_are_left_as_they_were_found(answers, name):
    assert all(answer[name] for answer in answers if name in answer)


def test_differences_of_its_own_gradients_are_near(answers):
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
def test_what_cannot_be_done_is_refused_in_all_processes(answers, name, kind, text):
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
def test_entries_of_a_box_are_those_of_an_array_cut_so(shape, sides):
    from matfree_torch.distributed.redistribution import Region

    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    cut = numbers[tuple(slice(side.start, side.stop) for side in sides)].ravel()
    region = Region(shape, sides)
    assert region.size == cut.size
    assert [region.below(i) for i in range(numbers.size + 1)] == [
        int((cut < i).sum()) for i in range(numbers.size + 1)
    ]
    for begin, end in itertools.combinations(range(cut.size + 1), 2):
        places = region.entries(range(begin, end), torch.device("cpu"))
        assert np.array_equal(torch.from_numpy(numbers.ravel())[places], cut[begin:end])


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
