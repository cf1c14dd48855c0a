"""Shared keywords are declared once, and checked in every function that takes them."""

import inspect

import numpy as np
import pytest

import matfree as mf
from matfree.algorithms.running.keywords import Sampling
from matfree.algorithms.spectra.quadrature_sampling import QuadratureSampling

A = np.eye(6) * 2.0
PARTS = {"first": slice(0, 3), "second": slice(3, 6)}

BY_SAMPLING = {
    "trace": lambda **options: mf.trace(A, **options),
    "diagonal": lambda **options: mf.diagonal(A, **options),
    "frobenius_norm": lambda **options: mf.frobenius_norm(A, **options),
    "block_traces": lambda **options: mf.block_traces(A, PARTS, **options),
    "block_diagonals": lambda **options: mf.block_diagonals(A, PARTS, **options),
}
BY_QUADRATURE = {
    "trace_function": lambda **options: mf.trace_function(A, "log", **options),
    "logdet": lambda **options: mf.logdet(A, **options),
    "schatten_norm": lambda **options: mf.schatten_norm(A, 1, **options),
    "eigenvalue_count": lambda **options: mf.eigenvalue_count(A, 0, 3, **options),
}
EVERY = BY_SAMPLING | BY_QUADRATURE


@pytest.mark.parametrize("name", EVERY)
def test_a_misspelt_keyword_is_refused_under_the_name_of_the_function(name):
    message = rf"{name}\(\) got an unexpected keyword argument 'num_probs'"
    with pytest.raises(TypeError, match=message):
        EVERY[name](num_probs=3)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "trace"])
def test_the_message_suggests_the_keyword_that_was_meant(name):
    with pytest.raises(TypeError, match="did you mean 'num_probes'"):
        EVERY[name](num_probs=3)


@pytest.mark.parametrize("name", EVERY)
def test_the_signature_lists_every_shared_keyword(name):
    parameters = inspect.signature(getattr(mf, name)).parameters
    shared = QuadratureSampling if name in BY_QUADRATURE else Sampling
    assert set(shared.__annotations__) <= set(parameters)
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize("name", EVERY)
def test_the_defaults_in_the_signature_are_those_that_are_used(name):
    parameters = inspect.signature(getattr(mf, name)).parameters.values()
    keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in keywords} | {"seed": 0}
    assert all(p.default is not inspect.Parameter.empty for p in keywords)
    explicit, implicit = EVERY[name](**defaults), EVERY[name](seed=0)
    for one, other in zip(_estimates(explicit), _estimates(implicit), strict=True):
        assert np.array_equal(one.value, other.value)
        assert (one.num_matvecs, one.num_probes) == (other.num_matvecs, other.num_probes)


def _estimates(result):
    return list(result.values()) if isinstance(result, dict) else [result]
