"""What can be applied: the front door, explicit matrices, functions, and their algebra."""

from matfree.operators.base import Operator
from matfree.operators.dense import DenseOperator
from matfree.operators.frontdoor import aslinearoperator
from matfree.operators.function import FunctionOperator

__all__ = ["DenseOperator", "FunctionOperator", "Operator", "aslinearoperator"]
