"""Traces and diagonals by averaging over random probes.

Of the algorithms, it may import ``eigen``, ``krylov`` and ``running``, but not ``spectra``.
"""
