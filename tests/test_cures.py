"""Refusals name a cause that holds and a cure that works, in code that can be evaluated."""

import re

import numpy as np
import pytest
from support.matrices import with_spectrum

import matfree

G = np.random.default_rng(0).standard_normal((40, 40))
NOT_HERMITIAN = np.triu(np.ones((40, 40)))


def refusal(call):
    with pytest.raises(ValueError, match=r"[a-z]") as error:
        call()
    return str(error.value)


def evaluated(message, A):
    """The operator that ``B = matfree.aslinearoperator(A)`` and the formula before it describe."""
    formula = re.search(r"symmetrize it: (.*) with B = ", message)[1]
    return eval(formula, {"B": matfree.aslinearoperator(A)})


DIAGONALS = ("xdiag", "diag++", "deflated")


@pytest.mark.parametrize("method", DIAGONALS)
def test_a_diagonal_that_needs_symmetry_names_the_method_that_does_not(method):
    def call(A, method=method):
        return matfree.diagonal(A, method=method, max_matvecs=20, seed=0)

    operator = NOT_HERMITIAN
    if method == "xdiag":  # which uses the adjoint if there is one
        forward = matfree.aslinearoperator(NOT_HERMITIAN)
        operator = matfree.FunctionOperator(forward.matvec, space=forward.space)
    message = refusal(lambda: call(operator))
    assert "use trace" not in message
    call(NOT_HERMITIAN, re.search(r'use method="([a-z]+)"', message)[1])
    call(evaluated(message, NOT_HERMITIAN))


SYMMETRIC_ONLY = {
    "eigsh": lambda A: matfree.eigsh(A, 2, rtol=0.1, seed=0),
    "power_iteration": lambda A: matfree.power_iteration(A, rtol=0.5, seed=0),
    "spectral_density": lambda A: matfree.spectral_density(A, num_steps=5, seed=0),
    "logdet": lambda A: matfree.trace_function(A, np.cos, num_steps=5, seed=0),
    "exact": lambda A: matfree.trace_function(A, np.cos, max_matvecs=40, seed=0),
    "trace": lambda A: matfree.trace(A, method="deflated", num_probes=4, seed=0),
    "lanczos": lambda A: matfree.lanczos(A, np.ones(40), 5),
}


@pytest.mark.parametrize("name", SYMMETRIC_ONLY)
def test_symmetrizing_as_advised_works_for_an_array(name):
    call = SYMMETRIC_ONLY[name]
    message = refusal(lambda: call(NOT_HERMITIAN))
    call(evaluated(message, NOT_HERMITIAN))
    for function in re.findall(r"matfree\.(\w+)(?=,| or)", message):
        getattr(matfree, function)(NOT_HERMITIAN)


@pytest.mark.filterwarnings("ignore::matfree.ConvergenceWarning")
@pytest.mark.parametrize("name", ["log", "inverse", "sqrt"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("least", [-1e-3, 0.0, 1e-9])
def test_the_advised_shift_makes_an_operator_definite(name, dtype, least):
    spectrum = np.r_[least, np.linspace(1, 100, 39)]
    matrix = with_spectrum(spectrum).astype(dtype)
    A = matfree.FunctionOperator(lambda x: matrix @ x, space=matfree.space_like(matrix[0], 40))
    for options in ({"num_probes": 4, "num_steps": 40}, {"max_matvecs": 40}):

        def call(B, options=options):
            return matfree.trace_function(B, name, seed=0, **options)

        try:
            assert np.isfinite(call(A).value)
            continue
        except ValueError as error:
            message = str(error)
        if "those next to 0" in message:  # the exact answer is the cure
            assert np.isfinite(matfree.trace_function(A, name, max_matvecs=40).value)
            continue
        shift = re.search(r"shift it \((matfree.aslinearoperator\(A\).shift\(.*?\))\)", message)[1]
        assert np.isfinite(call(eval(shift, {"matfree": matfree, "A": A})).value)


def test_a_stored_matrix_is_judged_by_the_rounding_of_double_precision():
    """The smallest eigenvalue is below the rounding of a float32 matvec, but not of the matrix."""
    M = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    M = M @ M.T
    exact = np.linalg.slogdet(M.astype(float))[1]
    assert matfree.logdet(M, seed=0, max_matvecs=300).value == pytest.approx(exact, rel=1e-9)
    function = matfree.FunctionOperator(lambda x: M @ x, space=matfree.space_like(M[0], 256))
    message = refusal(lambda: matfree.logdet(function, seed=0, max_matvecs=300))
    assert "not distinguished from 0 by rounding" in message
    assert "double precision" in message


def test_a_rectangular_operator_is_sent_to_functions_that_take_it():
    message = refusal(lambda: matfree.eigsh(G[:, :7], 2))
    assert "matfree.svds" in message
    assert matfree.svds(G[:, :7], 2, seed=0).converged.all()
    formula = re.search(r"or (B.H @ B) with B = ", message)[1]
    squared = eval(formula, {"B": matfree.aslinearoperator(G[:, :7])})
    assert matfree.eigsh(squared, 2, seed=0).converged.all()
