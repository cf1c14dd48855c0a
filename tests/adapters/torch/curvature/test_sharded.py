"""Curvature operators on two and four processes compared with those of one process."""

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
WORKER = ROOT / "tests" / "support" / "shards.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of each process, by the number of processes."""
    folder = tmp_path_factory.mktemp("shards")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = pickle.loads((folder / "found.pickle").read_bytes())
    assert all(answer is not None for world in answers for answer in answers[world]), done.stderr
    return answers


@pytest.fixture(params=[2, 4])
def world(request):
    return request.param


AT_BOTH = [
    *("trace", "diagonal", "eigsh", "density", "block traces"),
    *("hessian", "hessian, recomputed", "ggn", "fisher", "even rows", "activation traces"),
]
AT_TWO = [
    *("xtrace", "power iteration", "density outside of pairs", "density by moments"),
    *("trace of a function", "singular values", "frobenius norm"),
]
CASES = [*((2, name) for name in (*AT_BOTH, *AT_TWO)), *((4, name) for name in AT_BOTH)]


@pytest.mark.parametrize(("world", "name"), CASES)
def test_sharded_and_data_parallel_results_are_those_of_one_process(found, world, name):
    (alone,) = found[1][0]["numbers"][name]
    for answer in found[world]:
        for ours in answer["numbers"][name]:
            assert ours.shape == alone.shape
            assert np.abs(ours - alone).max() <= 1e-12 * np.abs(alone).max()


def test_every_quantity_is_compared(found):
    assert sorted(found[1][0]["numbers"]) == sorted(AT_BOTH + AT_TWO)


def test_a_memory_budget_applies_to_the_largest_shard(found, world):
    for answer in found[world]:
        kept = {m: [run[:2] for run in runs] for m, runs in answer["budgets"].items()}
        assert kept == {m: [run[:2] for run in runs] for m, runs in first_budgets(found, world)}
        many, few = (at_once for _, at_once in kept[40_000])
        assert many > few, "shards take less memory than whole vectors"
        for (*_, ours), (*_, theirs) in answer["budgets"].values():
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def first_budgets(found, world):
    return found[world][0]["budgets"].items()


def test_a_sharded_operator_has_the_rows_and_tensors_of_its_process(found, world):
    ends = []
    for answer in found[world]:
        members = answer["members"]
        ends.append(members["rows"])
        for name in ("gathered", "tensors", "flattened", "symmetric", "names"):
            assert members[name], name
        assert members["one by one"] <= 1e-14
        assert members["noise"] < 1e-14
        assert re.match(r"<rows \d+ to \d+ of <69x69 Hessian of Sequential", members["text"])
    assert [len(rows) for rows in ends] == list({2: (48, 21), 4: (20, 0, 40, 9)}[world])


def test_without_a_seed_all_processes_agree_on_one(found, world):
    assert len({tuple(answer["members"]["seeds"]) for answer in found[world]}) == 1


def test_one_process_writes_the_checkpoint_and_each_its_own_rows(found, world):
    writers = [answer["files"]["replicated"] > 0 for answer in found[world]]
    assert writers == [True] + [False] * (world - 1)
    for rank, answer in enumerate(found[world]):
        rows = answer["members"]["rows"]
        own = [f"sharded.piece-1-{rows.start}-{rows.stop}.npz"] * (len(rows) > 0)
        assert answer["files"]["sharded"] == ["sharded.npz"] * (rank == 0) + own


def test_a_sharded_result_is_saved_by_rows_and_loaded_whole(found, world):
    for answer in found[world]:
        rows = answer["members"]["rows"]
        assert answer["files"]["name"] == f"top.rows-{rows.start}-{rows.stop}.npz"
        assert answer["files"]["read"]


ERRORS = {
    "other seeds": "another seed than process 0: the seeds are 0, 1",
    "a seed and none": "another seed than process 0: the seeds are none, 1",
    "other numbers of probes": "from process 0 in (its|their) numbers of vectors",
    "other rows": r"process \d has other rows or another block_size than process 0",
    "other block sizes": "process 1 has other rows or another block_size",
    "too many rows": r"rows must be \d numbers of rows, one for each process, that add up to 69",
    "no block": "block_size must be positive",
    "other weights": "process 1 differs from process 0 in its weights",
    "alone": "create the operator with process_group=",
    "restricted": "sharded vectors cannot be restricted",
}


@pytest.mark.parametrize(("name", "text"), ERRORS.items(), ids=ERRORS)
def test_errors_are_raised_in_all_processes(found, world, name, text):
    for answer in found[world]:
        kind, message = answer["errors"][name]
        assert kind in ("OperatorError", "ValueError")
        assert re.search(text, message)


def test_a_failure_in_one_process_is_raised_in_all_and_later_calls_work(found, world):
    for name, kind in (
        ("failing loss", "ZeroDivisionError"),
        ("too many rows in one", "ValueError"),
    ):
        kinds = [answer["errors"][name][0] for answer in found[world]]
        assert kinds == [kind] + ["OperatorError"] * (world - 1)
    for answer in found[world]:
        assert answer["errors"]["afterwards"] < 1e-13
