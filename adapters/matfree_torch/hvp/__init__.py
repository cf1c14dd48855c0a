"""Strategies for computing Hessian-vector products."""
