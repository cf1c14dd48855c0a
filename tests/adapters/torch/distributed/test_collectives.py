"""Curvatures of data divided among real processes, compared with one that has all data."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).parents[4]
WORKER = ROOT / "tests" / "support" / "processes.py"
COUNTS = (5, 0, 3, 2)
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of four processes; the last one is killed at the end."""
    folder = tmp_path_factory.mktemp("processes")
    arguments = [str(folder), ",".join(map(str, COUNTS))]
    runs = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(len(COUNTS))
    ]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    codes = [run.returncode for run in runs]
    assert codes == [0, 0, 0, 3], "\n".join(outputs)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(len(COUNTS))]


QUANTITIES = [
    "hessian",
    "sum loss",
    "class weights and weight decay",
    "ggn",
    "fisher monte-carlo",
    "fisher empirical",
    "recomputed",
    "gradient",
    "loss",
    "loss along a direction",
    "trace",
    "diagonal",
    "eigsh",
    "density",
    "traces exact",
    "traces by probes",
    "traces per sample",
    "activation eigsh",
    "activation trace of a block",
    "activation traces",
    "activation sizes",
]


@pytest.mark.parametrize("name", QUANTITIES)
def test_all_processes_compute_what_one_with_all_data_computes(answers, name):
    for answer in answers:
        ours, alone = answer[name]
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


@pytest.mark.parametrize("name", QUANTITIES)
def test_results_are_bitwise_equal_in_all_processes(answers, name):
    assert len({answer[name][0].tobytes() for answer in answers}) == 1


@pytest.mark.parametrize("name", ["rows of a block's matvec", "rows of the adjoint's matvec"])
def test_a_process_holds_the_rows_of_its_samples(answers, name):
    for answer in answers:
        ours, alone = answer[name]
        assert ours.shape == alone.shape
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


def test_a_mean_of_the_processes_means_would_be_another_matrix(answers):
    far = answers[0]["mean of the shares"]
    assert far > 0.05


ERRORS = {
    "other seeds": "the seeds are 0, 1, 2, 3; pass the same seed in all processes, or none",
    "other numbers of probes": "1, 2, 3 differ from process 0 in their numbers of vectors",
    "other fisher seeds": "processes 1, 2, 3 got another seed than process 0",
    "other weights": "process 2 differs from process 0 in its weights",
    "other buffers": "processes 1, 2, 3 differ from process 0 in their buffers",
    "other parameters": "process 3 differs from process 0 in its parameters or weight decay",
    "other loss options": "process 1 differs from process 0 in its losses or options of the loss",
    "other class weights": "process 2 differs from process 0 in its losses or options of the loss",
    "other losses": "differ from process 0 in their losses or options of the loss",
    "no data at all": "no process holds a batch with a weight above 0",
    "batch by batch": "each process sees only its own",
}


@pytest.mark.parametrize(("name", "text"), ERRORS.items(), ids=ERRORS)
def test_the_processes_that_disagree_are_named_in_all_processes(answers, name, text):
    for answer in answers:
        kind, message = answer[name]
        assert kind in ("OperatorError", "ValueError")
        assert re.search(text, message)


def test_a_failure_in_one_process_raises_in_all(answers):
    kinds = [answer["failing loss"][0] for answer in answers]
    assert kinds == ["OperatorError", "OperatorError", "ZeroDivisionError", "OperatorError"]
    assert "process 2 failed in this call" in answers[0]["failing loss"][1]
    assert "ZeroDivisionError: division by zero" in answers[0]["failing loss"][1]


def test_a_failure_during_construction_raises_in_all(answers):
    kinds = [answer["failing activations"][0] for answer in answers]
    assert kinds == ["OperatorError", "ZeroDivisionError", "OperatorError", "OperatorError"]


def test_computations_continue_after_an_error_raised_in_all(answers):
    for answer in answers:
        ours, alone = answer["after the errors"]
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()


def test_processes_of_one_machine_share_its_memory(answers):
    assert [answer["neighbours"] for answer in answers] == [4] * 4


def test_a_wrapped_model_needs_its_process_group_or_warns(answers):
    for answer in answers:
        ours, alone = answer["wrapped"]
        assert abs(ours - alone).max() <= 1e-12 * abs(alone).max()
        assert "this process's own data" in answer["warning"]


def test_the_death_of_a_process_raises_in_the_others_with_the_cause(answers):
    for answer in answers[:3]:
        kind, message, seconds = answer["after a death"]
        assert kind == "LostProcessError"
        assert "has died, hangs, or makes other calls" in message
        assert "checkpoint=" in message
        assert seconds < answer["timeout"] + 5


def test_a_restart_with_other_processes_resumes_from_the_checkpoint(answers):
    """One process with all data resumes from the file of the run that died."""
    resumed, alone, seen = answers[0]["resumed"]
    assert abs(resumed - alone) <= 1e-12 * abs(alone)
    assert seen == [6, 8], "the run that died had finished four probes"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data_parallel.py", "activation trace of layer 2"),
        ("sharded_density.py", "loaded shape (404, 3)"),
    ],
)
def test_the_examples_of_the_documentation_run_under_torchrun(name, text, tmp_path):
    script = ROOT / "docs" / "how-to" / "examples" / name
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env={**ENVIRONMENT, "RUN_FOLDER": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_an_object_that_is_not_a_process_group_is_refused():
    from torch import nn

    from matfree_torch import hessian

    data = torch.zeros(1, 1), torch.zeros(1, 1)
    with pytest.raises(TypeError, match=r"torch\.distributed\.ProcessGroup"):
        hessian(nn.Linear(1, 1), nn.MSELoss(), data, process_group="world")
