"""Keywords that several public functions share, declared once.

A function that takes ``**options: Unpack[Sampling[Estimate]]`` is checked by mypy and pyright
keyword by keyword. The decorator :func:`declares` gives it the full signature for ``help()``,
IPython and Sphinx, and :func:`known` refuses any other keyword under the function's own name.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypedDict, TypeVar

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.running.run import State
from matfree.protocol import ProbeKind, Seed

F = TypeVar("F", bound=Callable[..., Any])
Options = TypeVar("Options", bound=Mapping[str, Any])

_DEFAULTS = {"kind": "rademacher", "first_probe": 0, "progress": False}
"""Defaults of shared keywords that are not None."""


class Sampling(TypedDict, Generic[State], total=False):
    """Keywords of every estimator that averages over random probes; see ``matfree.trace``."""

    num_probes: int | None
    rtol: float | None
    atol: float | None
    max_matvecs: int | None
    block_size: int | None
    seed: Seed
    kind: ProbeKind
    first_probe: int
    progress: bool
    callback: Callable[[State], bool | None] | None
    checkpoint: PathLike | None


def declares(keywords: Any, **defaults: Any) -> Callable[[F], F]:
    """Give a function whose last parameter is ``**options`` the signature of its keywords.

    Parameters
    ----------
    keywords : TypedDict class
        The keywords that ``**options`` stands for.
    **defaults
        Their defaults, unless these are the usual ones.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]  # without **options
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=(_DEFAULTS | defaults).get(name),
                # A TypedDict stores annotations as ForwardRef; help() shows their source text.
                annotation=getattr(hint, "__forward_arg__", hint),
            )
            for name, hint in keywords.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]  # read by inspect
        return function

    return decorate


def known(function: Callable[..., Any], options: Options) -> Options:
    """The keywords given to a function, if its signature has all of them.

    Raises
    ------
    TypeError
        It has no such keyword; the message names the function and a similar keyword.
    """
    accepted = inspect.signature(function).parameters
    for name in options:
        if name not in accepted:
            similar = difflib.get_close_matches(name, accepted, n=1)
            advice = f"; did you mean {similar[0]!r}?" if similar else ""
            raise TypeError(
                f"{function.__name__}() got an unexpected keyword argument {name!r}{advice}"
            )
    return options
