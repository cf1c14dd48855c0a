"""Randomized algorithms for traces, diagonals, spectra, eigenpairs and singular triplets.

The modules may import ``matfree.operators`` and everything below it (spaces, probes, results), but
neither ``matfree.checks`` nor ``matfree.cli``. Imports among the packages go in one direction:
spectra, traces, eigen, krylov, running; each may import those after it.
"""
