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


def test_an_estimate_that_did_not_converge_warns_at_the_call() -> None:
    with pytest.warns(mf.ConvergenceWarning) as caught:
        mf.trace(np.ones((50, 50)), rtol=1e-3, max_matvecs=20, seed=0)
    assert caught[0].filename == __file__
