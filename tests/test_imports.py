"""``import matfree`` loads few libraries, and refuses a mixture with another distribution."""

import subprocess
import sys
from pathlib import Path

import pytest

from matfree import _distribution

# Among them scipy.stats is not, which would take longer than all of these.
LOADED = "array_api_compat.numpy, numpy, scipy.fft, scipy.linalg, scipy.special"
HEAVY = ("torch", "cupy", "matplotlib", "sklearn", "tqdm", "jax", "pandas")
ADAPTERS = ("matfree_scipy", "matfree_cupy", "matfree_dask", "matfree_torch")


def _loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_matfree_loads_what_is_listed_here_and_the_standard_library() -> None:
    script = (
        f"import sys, {LOADED}; before = set(sys.modules); import matfree\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {"matfree"}


def test_import_matfree_loads_nothing_heavy_and_no_adapter() -> None:
    assert _loaded_after("import matfree").isdisjoint(HEAVY + ADAPTERS)


def test_a_numpy_array_loads_no_adapter_either() -> None:
    code = "import matfree, numpy; matfree.trace(numpy.eye(3), num_probes=1, seed=0)"
    assert _loaded_after(code).isdisjoint(HEAVY + ADAPTERS)


def test_a_scipy_matrix_loads_its_adapter_and_no_other() -> None:
    code = "import matfree, scipy.sparse as s; matfree.trace(s.eye_array(3), num_probes=1, seed=0)"
    assert _loaded_after(code) & set(ADAPTERS) == {"matfree_scipy"}


def test_a_mixture_with_the_other_matfree_is_refused_with_both_names(tmp_path: Path) -> None:
    _distribution.refuse_mixture(tmp_path)  # a folder without foreign modules
    (tmp_path / "stochtrace.py").touch()
    with pytest.raises(ImportError, match=r"matfree-nla.*PyPI's 'matfree'.*uninstall both"):
        _distribution.refuse_mixture(tmp_path)
