"""What a user of the installed wheel does first, with nothing but its required dependencies.

``make wheel-test`` runs this script in a new environment and in an empty folder, without pytest.
"""

import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import matfree as mf


def run(*words: str) -> tuple[int, str]:
    """The exit status of the command ``matfree``, and everything that it prints."""
    command = Path(sys.executable).with_name("matfree")
    done = subprocess.run([command, *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    optional = [line for line in requires("matfree-nla") or () if "extra ==" in line]
    assert optional, "the extras are missing from the metadata"
    present = [name for name in ("torch", "matplotlib", "tqdm", "sklearn") if find_spec(name)]
    assert not present, f"installed in addition to the required dependencies: {present}"
    source = Path(mf.__file__).parent
    assert "site-packages" in source.parts, f"matfree is imported from {source}"
    for package in ("matfree", "matfree_scipy", "matfree_cupy", "matfree_dask", "matfree_torch"):
        assert (source.parent / package / "py.typed").exists(), f"{package} has no py.typed"

    A = np.diag(np.arange(1.0, 101.0))
    estimate = mf.trace(A, num_probes=20, seed=0)
    assert estimate.value == 5050.0, estimate  # sign probes are exact for a diagonal matrix
    pairs = mf.eigsh(A, 3, seed=0)
    assert np.allclose(pairs.values, [100, 99, 98], rtol=1e-6), pairs
    assert 0.3 < mf.spectral_density(A, seed=0).cdf(50.0) < 0.7

    np.save("matrix.npy", A)
    status, text = run("matrix", "matrix.npy", "--seed", "0")
    assert (status, "5050" in text) == (0, True), text
    for words, library in ((("network", "model.py:build"), "torch"), (("demo",), "matplotlib")):
        status, text = run(*words)
        assert (status, f"pip install {library}" in text) == (2, True), text
        assert "Traceback" not in text, text
    print(f"the wheel works on Python {sys.version.split()[0]}, NumPy {np.__version__}")


if __name__ == "__main__":
    main()
