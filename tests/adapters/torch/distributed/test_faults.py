"""One process of several is killed: the others end, and others yet go on from the checkpoint."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[4]
WORKER = ROOT / "tests" / "support" / "mortals.py"
NUM_JOBS = 11
SLACK = 5.0  # seconds: noticing, and ending, on a machine with other things to do


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of ten runs that lost a process, and of one whose process hangs."""
    folder = tmp_path_factory.mktemp("mortals")
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
def test_the_others_end_within_the_timeout_and_say_why(found, number):
    scenario = found[1][number]
    job, killed = scenario["job"], scenario["killed"]
    assert killed[job["victim"]] is None, "it was killed before it could answer"
    for answer in (answer for answer in killed if answer is not None):
        assert answer["error"][0] == "LostProcessError", answer["traceback"]
        assert "start it again, with checkpoint=" in answer["error"][1]
        assert answer["seconds"] < job.get("timeout", 8.0) + SLACK


@pytest.mark.parametrize("stage", ["rehearsed", "resumed"])
@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_unbroken_or_gone_on_with_by_others_the_answer_is_that_of_one_process(found, number, stage):
    alone, scenarios = found
    expected = alone[scenarios[number]["job"]["run"]]["numbers"]
    for answer in scenarios[number][stage]:
        assert "error" not in answer, answer["traceback"]
        assert np.abs(answer["numbers"] - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_what_was_done_is_not_done_again(found, number):
    """One product of each start tells the operator; a search for pairs has starts of its own."""
    alone, scenarios = found
    run = scenarios[number]["job"]["run"]
    starts = 4 if run.startswith("deflated") else 2
    for answer in scenarios[number]["resumed"]:
        assert answer["matvecs"] <= alone[run]["matvecs"] + starts


@pytest.mark.parametrize("number", range(NUM_JOBS))
def test_one_generation_of_files_is_left(found, number):
    job, left = (found[1][number][what] for what in ("job", "left"))
    pieces = [name for name in left if ".piece-" in name]
    assert set(left) - set(pieces) == {f"run-{number}.npz"}
    assert len({name.split("-")[2] for name in pieces}) <= 1
    assert len(pieces) <= max(job["before"], job["after"])  # a run that was done writes no more
