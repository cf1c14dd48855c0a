"""Errors of Gauss quadratures of spectral measures: bounds from the recurrence coefficients.

It may import protocol, errors, arguments and arrays.
"""
