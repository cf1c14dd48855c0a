"""Randomized algorithms for traces, diagonals, spectra, eigenpairs and singular triplets."""
