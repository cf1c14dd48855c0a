"""Spectral densities, traces of matrix functions, eigenvalue counts and norms."""
