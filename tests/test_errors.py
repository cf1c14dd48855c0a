"""Warnings point at the user's line, however deep in the library they are issued."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import matfree as mf
from matfree import errors


def _as_if_in(module: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with the globals of a module of that name."""
    globals_ = {**function.__globals__, "__name__": module}
    return types.FunctionType(function.__code__, globals_, closure=function.__closure__)


def _issue() -> None:
    errors.warn("something", RuntimeWarning)


@pytest.mark.parametrize("module", ["matfree", "matfree.x.y", "matfree_torch.x", "torch.nn"])
def test_a_warning_points_at_the_first_frame_outside_the_library(module: str) -> None:
    inner = _as_if_in(module, _issue)
    outer = _as_if_in("matfree_scipy.z", lambda: inner())
    with pytest.warns(RuntimeWarning, match="something") as caught:
        outer()
    assert caught[0].filename == __file__
    with open(__file__) as file:
        assert file.readlines()[caught[0].lineno - 1].strip() == "outer()"


def test_a_module_whose_name_only_begins_like_ours_is_the_users() -> None:
    with pytest.warns(RuntimeWarning) as caught:
        _as_if_in("matfreedom", _issue)()
    assert caught[0].lineno == _issue.__code__.co_firstlineno + 1


def test_a_context_manager_of_the_library_warns_at_the_users_with_statement() -> None:
    def manager() -> Iterator[None]:
        _as_if_in("matfree.x", _issue)()
        yield

    enter = contextlib.contextmanager(_as_if_in("matfree.x", manager))
    with pytest.warns(RuntimeWarning) as caught, enter():
        pass
    assert caught[0].filename == __file__


def test_a_filter_on_the_users_module_applies() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        _as_if_in("matfree.x", _issue)()


GAUSSIAN = np.random.default_rng(0).standard_normal((80, 80))
SYMMETRIC = (GAUSSIAN + GAUSSIAN.T) / 2
GRID = np.linspace(-1, 1, 10_000)
DENSE_SPECTRUM = mf.FunctionOperator(lambda x: GRID * x, space=mf.space_like(GRID, len(GRID)))
POSITIVE = np.eye(80) + GAUSSIAN @ GAUSSIAN.T / 80
TOO_FEW: Any = {"rtol": 1e-6, "max_matvecs": 60, "seed": 0}


class Chunked:
    """``SYMMETRIC`` as a matrix that is stored in one chunk larger than a slab."""

    shape, dtype, ndim, chunks = (80, 80), np.dtype(float), 2, (80, 80)

    def __getitem__(self, index: Any) -> Any:
        return SYMMETRIC[index]


WARNING_CALLS: dict[str, Callable[[], Any]] = {
    "SlabOperator": lambda: mf.SlabOperator(Chunked(), slab_bytes=800),
    "apply_function": lambda: mf.apply_function(POSITIVE, "exp", np.ones(80), max_matvecs=3),
    "matrix_function": lambda: mf.matrix_function(POSITIVE, "exp", max_matvecs=3) @ np.ones(80),
    "block_traces": lambda: mf.block_traces(SYMMETRIC, {"all": slice(0, 80)}, **TOO_FEW),
    "block_diagonals": lambda: mf.block_diagonals(SYMMETRIC, {"all": slice(0, 80)}, **TOO_FEW),
    "condition_number": lambda: mf.condition_number(SYMMETRIC, max_matvecs=12, seed=0),
    "diagonal": lambda: mf.diagonal(SYMMETRIC, **TOO_FEW),
    "eigenvalue_count": lambda: mf.eigenvalue_count(POSITIVE, 2.0, 3.0, **TOO_FEW),
    "eigsh": lambda: mf.eigsh(SYMMETRIC, 3, max_matvecs=12, seed=0),
    "frobenius_norm": lambda: mf.frobenius_norm(SYMMETRIC, **TOO_FEW),
    "logdet": lambda: mf.logdet(POSITIVE, num_steps=10, **TOO_FEW),
    "low_rank": lambda: mf.low_rank(POSITIVE, rtol=1e-3, max_matvecs=20, seed=0),
    "power_iteration": lambda: mf.power_iteration(SYMMETRIC, max_steps=3, seed=0),
    "schatten_norm": lambda: mf.schatten_norm(SYMMETRIC, 3, num_steps=10, **TOO_FEW),
    "spectral_norm": lambda: mf.spectral_norm(SYMMETRIC, max_matvecs=12, seed=0),
    "spectral_density": lambda: mf.spectral_density(
        DENSE_SPECTRUM, eigenpairs=1, num_probes=1, seed=0
    ),
    "solve": lambda: mf.solve(POSITIVE, np.ones(80), max_matvecs=4),
    "svds": lambda: mf.svds(GAUSSIAN, 2, max_matvecs=12, seed=0),
    "trace": lambda: mf.trace(SYMMETRIC, **TOO_FEW),
    "trace_function": lambda: mf.trace_function(POSITIVE, "log", num_steps=10, **TOO_FEW),
}


@pytest.mark.parametrize("name", WARNING_CALLS)
def test_every_public_function_warns_at_the_line_of_its_call(name: str) -> None:
    call = WARNING_CALLS[name]
    with pytest.warns(RuntimeWarning) as caught:
        call()
    lines = {line for *_, line in call.__code__.co_lines()}
    for warning in caught:
        assert warning.filename == __file__
        assert warning.lineno in lines


@pytest.mark.parametrize("method", ["xtrace", "hutch++", "deflated"])
def test_every_method_of_trace_warns_at_the_line_of_its_call(method: Any) -> None:
    with pytest.warns(mf.ConvergenceWarning) as caught:
        mf.trace(SYMMETRIC, method=method, **TOO_FEW)
    assert caught[0].filename == __file__


def test_every_public_function_that_documents_a_warning_is_called() -> None:
    documented = {name for name in mf.__all__ if "Warns\n" in (getattr(mf, name).__doc__ or "")}
    assert documented <= set(WARNING_CALLS)
