"""What all algorithms share: counted operators, budgets, the sampling loop, checkpoints.

It may import none of the other algorithms.
"""
