"""Traces and diagonals by averaging over random probes.

Of the algorithms, it may import ``eigen``, ``low_rank``, ``krylov`` and ``running``, but not
``spectra``.
"""
