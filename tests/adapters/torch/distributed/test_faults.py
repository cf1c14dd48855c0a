"""One of several processes is killed: the others stop, and a restart resumes the checkpoint."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[4]
WORKER = ROOT / "tests" / "support" / "killed_processes.py"
NUM_JOBS = 11
SLACK = 5.0  # seconds to notice the death and to stop, on a busy machine


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of ten runs that lose a process, and of one in which a process hangs."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), os.environ.get("MATFREE_FAULT_SEED", "1")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    alone, scenarios = pickle.loads((folder / "found.pickle").read_bytes())
    assert len(scenarios) == NUM_JOBS
    return alone, scenarios


@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_the_other_processes_stop_within_the_timeout_and_name_the_cause(found, number):
    scenario = found[1][number]
    job, killed = scenario["job"], scenario["killed"]
    assert killed[job["victim"]] is None, "it was killed before it could return"
    for answer in (answer for answer in killed if answer is not None):
        assert answer["error"][0] == "LostProcessError", answer["traceback"]
        assert "start it again, with checkpoint=" in answer["error"][1]
        assert answer["seconds"] < job.get("timeout", 8.0) + SLACK


@pytest.mark.parametrize("stage", ["rehearsed", "resumed"])
@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_uninterrupted_and_resumed_runs_agree_with_one_process(found, number, stage):
    alone, scenarios = found
    expected = alone[scenarios[number]["job"]["run"]]["numbers"]
    for answer in scenarios[number][stage]:
        assert "error" not in answer, answer["traceback"]
        assert np.abs(answer["numbers"] - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_finished_work_is_not_repeated(found, number):
    """Each start costs one additional matvec, which identifies the operator.

    The eigenpair search of a deflated density is a start as well.
    """
    alone, scenarios = found
    run = scenarios[number]["job"]["run"]
    starts = 4 if run.startswith("deflated") else 2
    for answer in scenarios[number]["resumed"]:
        assert answer["matvecs"] <= alone[run]["matvecs"] + starts


@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_one_generation_of_files_remains(found, number):
    job, left = (found[1][number][what] for what in ("job", "left"))
    pieces = [name for name in left if ".piece-" in name]
    assert set(left) - set(pieces) == {f"run-{number}.npz"}
    assert len({name.split("-")[2] for name in pieces}) <= 1
    assert len(pieces) <= max(
        job["before"], job["after"]
    )  # a run that had finished writes no more files
