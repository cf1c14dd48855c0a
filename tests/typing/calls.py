"""Calls as a type checker sees them; ``make check`` runs mypy in strict mode over this file.

Wrong calls carry the error that is expected. An error that is no longer found makes its
comment superfluous, which strict mode reports as an error.
"""

import numpy as np

import matfree as mf

A = np.eye(4)
blocks = {"first": slice(0, 2)}

value: float = float(mf.logdet(A, num_probes=3, num_steps=4, reorthogonalize="full", seed=0))
norm: mf.Estimate = mf.frobenius_norm(A, rtol=0.1, max_matvecs=100, progress=False)
diagonals: dict[str, mf.Estimate] = mf.block_diagonals(A, blocks, method="xdiag", num_probes=3)

mf.trace(A, num_probs=3)  # type: ignore[call-arg]
mf.logdet(A, num_probs=3)  # type: ignore[call-arg]
mf.schatten_norm(A, 1, num_probs=3)  # type: ignore[call-arg]
mf.block_diagonals(A, blocks, num_probs=3)  # type: ignore[call-arg]
mf.diagonal(A, kind="nonsense")  # type: ignore[arg-type]
mf.eigsh(A, 2, which="nonsense")  # type: ignore[arg-type]
