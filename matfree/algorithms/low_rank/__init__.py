"""Sketches of the range of an operator, and low-rank approximations from them.

Of the algorithms, it may import ``running`` only.
"""
