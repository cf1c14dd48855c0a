"""The comparison with other libraries works on tiny problems, whatever is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
sys.path.append(str(Path(__file__).parent / "benchmarks"))  # after the installed packages

import contest
import peers
import roofline
from harness import Report

TINY = peers.Sizes(
    side=8,
    grid=12,
    dense=150,
    rounds=1,
    trained=False,
    network_rounds=1,
    copied=1 << 12,
    multiplied=64,
)


@pytest.fixture
def report(capsys):
    return Report()


def tiny_machine():
    return roofline.measured(1, length=TINY.copied, order=TINY.multiplied)


@pytest.mark.filterwarnings("ignore")  # issued by other libraries
def test_every_row_of_matfree_runs_with_a_small_error(report):
    runs = peers.sums(report, TINY, [tiny_machine()])
    ours = [run for run in runs if run.ours]
    assert len(ours) >= 6
    for run in ours:  # with 20 probes and 512 unknowns, five standard errors are below 10 %
        if "torch" in run.entry.call and importlib.util.find_spec("torch") is None:
            assert "No module named 'torch'" in run.failure
            continue
        assert not run.failure
        assert max(run.errors) < 0.1
        assert min(run.matvecs) > 0


@pytest.mark.filterwarnings("ignore")  # issued by other libraries
def test_every_row_of_matfree_on_a_network_is_near_the_answer_in_double_precision(report):
    pytest.importorskip("torch", reason="torch is not installed")
    runs = [run for run in peers.hessians(report, TINY) if run.ours]
    assert len(runs) >= 10
    for run in runs:
        assert not run.failure
        assert max(run.errors) < 1e-4  # single precision, with as many matvecs as unknowns


def test_the_row_of_a_library_that_is_missing_or_fails_states_the_reason(report):
    def missing():
        raise ModuleNotFoundError("No module named 'nowhere'")

    def broken():
        def run(seed):
            raise AttributeError("module 'torch' has no attribute | 'eig'")

        return run

    def fine():
        return lambda seed: contest.Answer(2.0, 3)

    entries = [
        contest.Entry("nowhere", "f", missing),
        contest.Entry("broken", "g", broken),
        contest.Entry("matfree", "h", fine, roofline.Work(1.0, 2.0).times),
    ]
    contest.contest(report, "Three", entries, lambda value: abs(value - 1), tiny_machine(), 2)
    rows = {line.split(" | ")[0]: line for line in report.lines if line.startswith("| ")}
    assert "not installed" in rows["| nowhere"]
    assert "fails: AttributeError: module 'torch' has no attribute / 'eig'" in rows["| broken"]
    assert rows["| matfree"].startswith("| matfree | h | 1.0e+00 | 3 |")
    assert {line.count("|") for line in report.lines if line.startswith("|")} == {13}


def test_the_bytes_and_operations_of_a_matvec_agree_with_a_count_by_hand():
    matrix = peers.peers_matrices.laplacian_3d(2).matrix  # 8 rows of 4 entries
    assert roofline.csr_matvec(matrix, 1) == (32 * 8 + 32 * 4 + 8 * 4 + 2 * 8 * 8, 64)
    single, block = (roofline.lanczos_step(matrix, size) for size in (1, 8))
    assert single.computed == block.computed == 64 + 9 * 8
    assert single.moved - block.moved == pytest.approx((32 * 8 + 32 * 4 + 8 * 4) * 7 / 8)
