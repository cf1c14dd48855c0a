"""Linear operators: conversion to them, dense, sparse and streamed matrices, functions, algebra.

The modules may import ``matfree.spaces`` and everything below it (probes, results, arrays), but no
algorithm.
"""

from matfree.operators.algebra import Operator
from matfree.operators.dense import DenseOperator
from matfree.operators.frontdoor import aslinearoperator
from matfree.operators.function import FunctionOperator
from matfree.operators.streamed import SlabOperator

__all__ = ["DenseOperator", "FunctionOperator", "Operator", "SlabOperator", "aslinearoperator"]
