"""The command ``matfree network FILE.py:FUNCTION``: a study of the Hessian of a user's network."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from matfree.arrays import to_host
from matfree.cli import options, sections
from matfree.cli.failure import CommandError, one_line
from matfree.cli.report.document import Chapter, ReportBuilder
from matfree.cli.session import run_and_report
from matfree.cli.study import Study
from matfree.errors import MatfreeError
from matfree_torch import HessianOperator, hessian
from matfree_torch.data.nested import moved_to_device

_EXPECTED = "it must return (model, loss, data), where loss(outputs, targets) is a scalar"


def register(subparsers: Any) -> None:
    """Add the command to the parser of ``matfree``."""
    parser = subparsers.add_parser(
        "network",
        help="study the Hessian of your own torch network",
        description="Top eigenvalues, trace, diagonal and spectral density of the Hessian of a "
        "loss. FUNCTION takes no arguments and returns (model, loss, data): a torch module, a "
        "function loss(outputs, targets), and a batch (inputs, targets) or a DataLoader.",
    )
    parser.add_argument("target", metavar="FILE.py:FUNCTION")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: that of the model)"
    )
    options.add_budget(parser)
    options.add_out(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Study the Hessian of the model, loss and data that the user's function returns."""
    device = None if given.device is None else usable_device(given.device)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the report
        model, loss, data = load_problem(given.target)
        if device is not None:
            model, data = model.to(device), moved(data, device)
        H = _hessian(model, loss, data, given.target)
    settings = options.settings(given, H.shape[0])

    def work(report: ReportBuilder) -> None:
        report.add_chapter(_network_chapter(given, model, H))
        study = Study(H, "H", "network", settings)
        if given.exact:
            study = study.with_exact(to_host(H.to_dense()))
        sections.add_sections(study, report)

    try:
        return run_and_report(given, f"The Hessian of {given.target}", work)
    except torch.OutOfMemoryError as cause:
        raise CommandError(
            f"the device ran out of memory ({one_line(cause)}); return fewer samples, or a "
            "DataLoader with smaller batches"
        ) from cause


def usable_device(name: str) -> torch.device:
    """The device of this name, after allocating a tensor on it.

    Raises
    ------
    CommandError
        The device does not exist or cannot be used.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as cause:  # torch raises RuntimeError, AssertionError and others
        reason = one_line(cause).split(". ")[0]
        raise CommandError(f"--device {name} cannot be used here ({reason}); try cpu") from cause
    return device


def load_problem(target: str) -> tuple[nn.Module, Callable[..., Any], Any]:
    """Import the file, call the function, and check what it returns.

    Parameters
    ----------
    target : str
        "path/file.py:function".

    Raises
    ------
    CommandError
        There is no such file or function, it raises an exception, or its result has another form.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not path.endswith(".py") or not name:
        raise CommandError(f"{target} must have the form FILE.py:FUNCTION, like model.py:problem")
    if not Path(path).is_file():
        raise CommandError(f"{path} is not a file; check the path")
    function = getattr(_imported(path), name, None)
    if not callable(function):
        raise CommandError(f"{path} defines no function {name}; check the name after the colon")
    with _user_errors_named(f"{name} in {path}"):
        problem = function()
    if not isinstance(problem, tuple | list) or len(problem) != 3:
        raise CommandError(f"{target} returned {_described(problem)}: {_EXPECTED}")
    model, loss, data = problem
    if not isinstance(model, nn.Module):
        raise CommandError(f"{target} returned as model {_described(model)}: {_EXPECTED}")
    if not callable(loss):
        raise CommandError(f"{target} returned as loss {_described(loss)}: {_EXPECTED}")
    return model, loss, data


def moved(data: Any, device: torch.device) -> Any:
    """Data on a device: a batch or a list of batches, or a re-iterable that moves every batch."""
    if isinstance(data, torch.Tensor | Mapping | tuple | list) or not hasattr(data, "__iter__"):
        return moved_to_device(data, device)
    return MovedBatches(data, device)


@final
class MovedBatches:
    """A re-iterable of batches that are moved to a device when they are needed.

    Parameters
    ----------
    batches : re-iterable of batches, such as a DataLoader
    device : torch.device
    """

    def __init__(self, batches: Any, device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield moved(batch, self._device)

    def __len__(self) -> int:
        return len(self._batches)


def _imported(path: str) -> Any:
    file = Path(path).resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # so that it can import modules next to it
    sys.modules[file.stem] = module
    with _user_errors_named(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _user_errors_named(what: str) -> Iterator[None]:
    """A context that turns exceptions of the user's code into one line with their location."""
    try:
        yield
    except (Exception, SystemExit) as cause:
        raise CommandError(f"{what} failed: {one_line(cause)}{_location(cause)}") from cause


def _location(error: BaseException) -> str:
    """The file and line of the last frame of the traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or isinstance(error, SyntaxError):  # whose message contains the location
        return ""
    return f" ({Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno})"


def _hessian(model: nn.Module, loss: Callable[..., Any], data: Any, target: str) -> HessianOperator:
    """The Hessian, after one matvec, which reveals errors in the model or the data."""
    try:
        H = hessian(model, loss, data)
        H.matmat(H.space.probes(1, seed=0))
    except MatfreeError:
        raise
    except Exception as cause:
        raise CommandError(
            f"the model and the loss of {target} cannot be applied to its data: "
            f"{one_line(cause)}{_location(cause)}; {_EXPECTED}"
        ) from cause
    return H


def _mode(model: nn.Module) -> str:
    if len({module.training for module in model.modules()}) > 1:
        return "partly training, partly evaluation"
    return "training" if model.training else "evaluation"


def _described(x: Any) -> str:
    size = f" of {len(x)}" if isinstance(x, tuple | list) else ""
    return f"{type(x).__name__}{size}"


def _network_chapter(given: argparse.Namespace, model: nn.Module, H: HessianOperator) -> Chapter:
    path, _, name = given.target.rpartition(":")
    file = Path(path)
    return Chapter(
        key="network",
        title=f"The Hessian of {given.target}",
        text=(),
        code="import matfree as mf\nfrom matfree_torch import hessian\n"
        f"from {file.stem} import {name}  # in {file.parent}\n"
        f"H = hessian(*{name}())",
        facts=(
            ("model", type(model).__name__),
            ("parameters", f"{H.shape[0]:,}, {H.dtype}"),
            ("loss", _loss(H)),
            ("data", _data(H)),
            ("device", str(H.space.device)),
            ("mode", _mode(model)),
            ("torch", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        ),
    )


def _loss(H: HessianOperator) -> str:
    loss = H.batches.loss
    if loss is None:
        return "the model's own"
    name = getattr(loss, "__name__", type(loss).__name__)
    return f"{name}, a {'mean' if H.batches.averaged else 'sum'}"


def _data(H: HessianOperator) -> str:
    sizes = [batch.samples for batch in H.batches]
    return f"{sum(sizes):,} samples" + f" in {len(sizes)} batches" * (len(sizes) > 1)
