"""Strategies for computing Hessian-vector products.

It may import objective, data, autograd, vectors and distributed. The operators of ``curvature``
import it.
"""
