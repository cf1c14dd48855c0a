"""The action of matrix functions on vectors, and matrix functions as operators.

It may import all other algorithms, and none of them imports it.
"""
