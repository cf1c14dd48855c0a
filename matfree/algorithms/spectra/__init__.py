"""Spectral densities, traces of matrix functions, eigenvalue counts and norms.

It may import all other algorithms, and none of them imports it.
"""
