"""The weights of ragged batches over several processes are right, or refused in all of them."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[4]
PATHS = os.pathsep.join([str(ROOT / "tests"), *sys.path])
WAYS = ("group", "twin", "differences")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of two forked processes."""
    folder = tmp_path_factory.mktemp("divisors")
    done = subprocess.run(
        [sys.executable, "-m", "support.divisors", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = pickle.loads((folder / "answers.pickle").read_bytes())
    assert all(found), done.stderr
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", ["mean", "masked", "hidden, with normalizer"])
def test_ragged_batches_of_two_processes_weigh_as_in_one_process(answers, loss, way):
    for answer in answers:
        matvec, value = answer[loss, way]
        assert matvec <= (1e-8 if way == "differences" else 1e-12)
        assert value <= 1e-12


REFUSED = {
    "sum": "is_sum, is a sum over the terms of a batch.*normalizer=",
    "hidden": r"it is not known what the loss.*divides its sum by.*Pass normalizer=",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", REFUSED)
def test_a_loss_of_unknown_divisor_is_refused_in_all_processes(answers, loss, way):
    for answer in answers:
        kind, message = answer[loss, way]
        assert kind == "ValueError"
        assert re.search(REFUSED[loss], message)
