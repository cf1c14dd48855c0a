"""Standard errors of traces from their definition, with dense matrices and all probes in memory."""

import numpy as np
from scipy.stats import t


def squared_deviations(A, W, kind):
    """One number per probe (a column of W) whose mean is the variance of w^H A w.

    Of random signs there is one fewer, because the diagonal is that of the earlier probes.
    """
    Z, factor = A @ W, 1.0 if np.iscomplexobj(W) else 2.0
    if kind == "gaussian":
        return factor * np.sum(np.abs(Z) ** 2, axis=0)
    if kind == "sphere":
        forms = np.sum(W.conj() * Z, axis=0).real
        return factor * (np.sum(np.abs(Z) ** 2, axis=0) - forms**2 / len(A))
    d, found = (W.conj() * Z).real, []
    for i in range(1, W.shape[1]):
        found.append(2 * i / (i + 1) * np.sum((d[:, i] - d[:, :i].mean(axis=1)) ** 2))
    return np.array(found)


def error_of_runs(A, *runs, kind="rademacher"):
    """(stderr, degrees of freedom, half-width at 95 %) of runs over the probes W of each."""
    squares = np.concatenate([squared_deviations(A, W, kind) for W in runs])
    num_probes, q = sum(W.shape[1] for W in runs), squares.size
    h = 1.0
    if q > 1:
        relative = squares.var(ddof=1) / (2 * squares.mean() ** 2)
        h = min(1.0, (4 + (q - 1) * relative) / (4 + q - 1))
    stderr = np.sqrt(squares.mean() / num_probes)
    return stderr, q / h, t.ppf(0.975, q / h) * stderr
