"""Every public name, and every public method of a result, has an executed example.

Examples run with the test suite (``--doctest-modules``); these tests check that they exist.
"""

import doctest
import importlib
import inspect
import re

import pytest

from matfree.operators import Operator
from matfree.results import Record

PACKAGES = [
    "matfree",
    "matfree.plotting",
    "matfree_scipy",
    "matfree_cupy",
    "matfree_dask",
    "matfree_torch",
    "matfree_torch.pyhessian",
]
RETURNED_BY = {  # classes whose methods are shown in the example of the function that returns them
    "matfree_torch.pyhessian.HessianComputation": "hessian",
    "matfree_torch.pyhessian.ActivationComputation": "hessian_with_activation",
}


def _public(package: str) -> dict[str, object]:
    if package.startswith("matfree_torch"):
        pytest.importorskip("torch", reason="importing matfree_torch needs torch")
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def _example(thing: object) -> str:
    """The statements in the doctests of an object."""
    examples = doctest.DocTestParser().get_examples(thing.__doc__ or "")
    skipped = [example for example in examples if doctest.SKIP in example.options]
    assert not skipped, "a skipped example is not executed"
    return "".join(example.source for example in examples)


def _methods(result: type) -> list[str]:
    return [
        name
        for name, member in inspect.getmembers(result, callable)
        if not name.startswith("_")
        and not isinstance(member, type)
        and not hasattr(Operator, name)  # shown where operators are
    ]


def without_example(things: dict[str, object], package: str = "") -> list[str]:
    """The names without an example, and the methods of results that no example calls."""
    missing = []
    for name, thing in things.items():
        function = RETURNED_BY.get(f"{package}.{name}")
        example = _example(things[function] if function else thing)
        if not example:
            missing.append(name)
        if isinstance(thing, type) and issubclass(thing, Record):
            used = example + "".join(_example(base) for base in thing.__mro__)
            missing += [
                f"{name}.{method}"
                for method in _methods(thing)
                if not _example(getattr(thing, method)) and not re.search(rf"\.{method}\(", used)
            ]
    return missing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_and_result_method_has_an_example(package: str) -> None:
    assert without_example(_public(package), package) == []


def test_names_and_methods_without_an_example_are_found() -> None:
    class Silent(Record):
        """Says nothing."""

        def told(self) -> None:
            """Told.

            >>> 1 + 1
            2
            """

        def untold(self) -> None:
            """Not told."""

    def spoken() -> None:
        """
        >>> spoken()
        """

    def mute() -> None:
        """Says nothing."""

    found = without_example({"Silent": Silent, "spoken": spoken, "mute": mute})
    assert found == ["Silent", "Silent.untold", "mute"]
