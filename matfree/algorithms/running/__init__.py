"""The common parts of all algorithms: counted operators, budgets, sampling loop, checkpoints.

It may import none of the other algorithms.
"""
