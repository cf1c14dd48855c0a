"""Checks that the second derivatives of torch are correct, and the search for those that are not.

It may import hvp, objective, data, autograd, vectors and distributed. The operators of
``curvature`` call it at their first matvec.
"""
