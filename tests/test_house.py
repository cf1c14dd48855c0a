"""The rules of the code base that a program can check.

They hold for the library and all adapters: imports without cycles, small folders, files and
functions, and one meaning for every name.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import matfree as mf

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("matfree/**/*.py"), *ROOT.glob("adapters/**/*.py")])

MAX_MODULES = 16  # per folder
MAX_LINES = 300  # per file
MAX_BODY_LINES = 40  # per function, without its signature and its docstring

SHARED_NAMES = {
    "adapt": "the entry point of every adapter, which converts foreign operators",
    "hessian": "the public function of matfree_torch, and the class of PyHessian's interface",
    "register": "every command of the command line adds its own parser",
    "run": "every command of the command line has a function that executes it",
}
"""Top-level names that may be defined in several modules, and why."""


def _tracked_texts() -> list[Path]:
    """The text files of the project that git tracks."""
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the project's files")
    endings = {".py", ".md", ".toml", ".txt", ".css", ".yml", ""}
    paths = (ROOT / name for name in listing.stdout.splitlines())
    return [path for path in paths if path.suffix in endings and path.is_file()]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module_name(path: Path) -> str:
    """The dotted name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "adapters" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
MODULES = {_module_name(path): tree for path, tree in TREES.items()}
FOLDERS = sorted({path.parent for path in SOURCES})


def _imports(module: str) -> set[str]:
    """The modules of this code base that a module imports, also in functions or for typing."""
    found: set[str] = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = members & MODULES.keys()
            found |= submodules if submodules == members else submodules | {node.module}
    return (found & MODULES.keys()) - {module}


def _reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    """All modules that a module imports directly or indirectly."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        fresh = imports[waiting.pop()] - reached
        reached |= fresh
        waiting.extend(fresh)
    return reached


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines at its top level, without those of Python."""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names = [node.name]
            case ast.Assign():
                nested = [getattr(target, "elts", [target]) for target in node.targets]
                targets = [target for group in nested for target in group]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("__"))


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of lines of a function, without its signature and its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_imports_have_no_cycles() -> None:
    imports = {module: _imports(module) for module in MODULES}
    assert [module for module in MODULES if module in _reachable(module, imports)] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=_relative)
def test_a_folder_has_few_modules(folder: Path) -> None:
    assert len([path for path in SOURCES if path.parent == folder]) <= MAX_MODULES


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_a_file_is_short(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_functions_are_short(path: Path) -> None:
    lengths = [
        (node.name, _body_lines(node))
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, length) for name, length in lengths if length > MAX_BODY_LINES] == []


def test_a_top_level_name_is_defined_in_one_module_unless_a_contract_asks_for_it() -> None:
    modules_of: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        for name in set(_top_level_names(tree)):
            modules_of.setdefault(name, []).append(module)
    shared = {name: modules for name, modules in modules_of.items() if len(modules) > 1}
    assert {name: shared[name] for name in shared.keys() - SHARED_NAMES.keys()} == {}
    assert SHARED_NAMES.keys() - shared.keys() == set()  # no exception outlives its reason


def test_the_library_prints_nothing_outside_the_command_line() -> None:
    on_request = {ROOT / "adapters/matfree_torch/pyhessian/layers.py"}  # show_layer=True
    talkers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "cli" not in path.parts
        and path not in on_request
        and any(
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert talkers == []


def test_no_global_random_generator_is_touched() -> None:
    pattern = re.compile(r"np\.random\.(seed|rand|randn|normal|choice|uniform)\(|random\.seed\(")
    assert [p.name for p in SOURCES if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(work|home|Users|root)/\w")
    guilty = [p.name for p in _tracked_texts() if pattern.search(p.read_text(encoding="utf-8"))]
    assert guilty == []


@pytest.mark.parametrize("name", mf.__all__)
def test_every_public_name_is_documented_and_every_function_has_an_example(name: str) -> None:
    thing = getattr(mf, name)
    assert thing.__doc__, f"{name} has no docstring"
    if not isinstance(thing, type):
        assert ">>> " in thing.__doc__, f"{name} has no executed example"
