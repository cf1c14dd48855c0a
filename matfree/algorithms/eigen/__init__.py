"""Eigenpairs and singular triplets of operators, and a search for those that were missed.

Of the algorithms, it may import ``krylov`` and ``running`` only.
"""
