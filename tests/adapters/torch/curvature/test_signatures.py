"""The keywords of the functions that return curvature operators."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from matfree_torch import fisher, ggn, hessian, hessian_of  # noqa: E402  # only where torch is


def _parameters(function):
    return inspect.signature(function).parameters


def test_all_functions_have_the_keywords_of_the_hessian_with_the_same_defaults():
    common = _parameters(hessian)
    assert _parameters(ggn).keys() == common.keys()
    assert _parameters(fisher).keys() == common.keys() | {
        "kind",
        "positions",
        "num_samples",
        "seed",
    }
    assert _parameters(hessian_of).keys() - {"function", "parameters"} <= common.keys()
    for function in (ggn, fisher, hessian_of):
        for name in common.keys() & _parameters(function).keys():
            assert _parameters(function)[name].default == common[name].default, name
            assert _parameters(function)[name].kind == common[name].kind, name


@pytest.mark.parametrize("function", [hessian, ggn, fisher, hessian_of])
def test_a_misspelt_keyword_is_an_error_that_names_the_function_called(function):
    arguments = (None, None) if function is hessian_of else (None, None, None)
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) .*'weight_dekay'"):
        function(*arguments, weight_dekay=0.1)
