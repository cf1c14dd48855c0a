"""Krylov subspace methods: the Lanczos recurrence, the storage of its vectors, and restarts.

Of the algorithms, it may import ``running`` only.
"""
