"""SciPy's own tests of ``eigsh``, ``svds`` and ``LinearOperator``, with matfree in SciPy's place.

A test module of SciPy is loaded a second time under another name, and the functions under test are
replaced by the ones below, which have SciPy's signatures and conventions and call matfree. Where
matfree has no counterpart of an argument, the replacement skips the test and gives the reason.
"""

import importlib.util

import numpy as np
import pytest
from scipy.sparse.linalg import ArpackNoConvergence

import matfree as mf


def load(name):
    """A fresh copy of a module of SciPy's tests, whose globals can be replaced."""
    try:
        specification = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        specification = None
    if specification is None:
        pytest.skip(f"this build of SciPy has no {name}", allow_module_level=True)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def tolerance(tol, A):
    """SciPy's ``tol=0`` asks for the precision of the data type."""
    dtype = np.promote_types(getattr(A, "dtype", float), np.float32)
    return tol or 20 * float(np.finfo(dtype).eps)


def start_block(v0, A=None):
    """``v0`` as a block on the right side of A; SciPy's lies on the shorter side."""
    if v0 is None:
        return None
    block = np.asarray(v0)[:, None]
    return block if A is None or len(block) == A.shape[1] else mf.aslinearoperator(A).rmatmat(block)


def entropy(rng):
    return 0 if rng is None else rng


def eigsh(
    A,
    k=6,
    M=None,
    sigma=None,
    which="LM",
    v0=None,
    ncv=None,
    maxiter=None,
    tol=0,
    mode="normal",
    rng=None,
):
    """``scipy.sparse.linalg.eigsh`` for standard problems at the ends of the spectrum."""
    if mode != "normal":
        pytest.skip(f"matfree has no {mode} mode")
    width = ncv or 20
    pairs = mf.eigsh(
        A,
        k,
        which=which,
        sigma=sigma,
        M=M,
        rtol=tolerance(tol, A),
        start=start_block(v0),
        num_vectors=ncv,
        max_matvecs=None if maxiter is None else width + maxiter * (width - k),
        seed=entropy(rng),
    )
    if maxiter is not None and not pairs.converged.all():
        found = pairs.converged
        raise ArpackNoConvergence(
            "not all eigenpairs converged", pairs.values[found], pairs.vectors[:, found]
        )
    order = np.argsort(pairs.values)
    return pairs.values[order], pairs.vectors[:, order]


def svds(
    A,
    k=6,
    ncv=None,
    tol=0,
    which="LM",
    v0=None,
    maxiter=None,
    return_singular_vectors=True,
    solver=None,
    rng=None,
    options=None,
):
    """``scipy.sparse.linalg.svds`` for the largest singular values, in ascending order."""
    if which == "SM":
        pytest.skip("matfree has no search for the smallest singular values")
    found = mf.svds(
        A, k, rtol=tolerance(tol, A), start=start_block(v0, A), num_vectors=ncv, seed=entropy(rng)
    )
    if return_singular_vectors is False:
        return found.values[::-1]
    left, right = found.left[:, ::-1], found.right[:, ::-1].conj().T
    # SciPy returns one side as None if only the other is asked for and is cheap to compute.
    rows, columns = A.shape
    return (
        None if return_singular_vectors == "vh" and rows > columns else left,
        found.values[::-1],
        None if return_singular_vectors == "u" and rows <= columns else right,
    )
