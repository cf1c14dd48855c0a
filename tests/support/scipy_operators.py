"""SciPy's ``LinearOperator`` on the operators of matfree, for SciPy's own tests.

matfree's operators have floating-point vectors of their own library and no ``args``. The wrapper
below adds these conventions of SciPy and leaves the arithmetic to matfree.
"""

import numpy as np
import scipy.sparse

import matfree as mf


class Wrapped:
    """An operator of matfree with SciPy's names and conventions."""

    ndim = 2
    __array_ufunc__ = None

    def __init__(self, inner, args=(), dtype=None):
        self.inner, self.args, self.shape = inner, args, inner.shape
        self.dtype = np.dtype(inner.dtype if dtype is None else dtype)

    def _apply(self, name, x):
        """A method of matfree's operator; complex vectors need complex factors."""
        x = np.asarray(x) + np.zeros((), np.float32)  # integers become floating point
        complex_x = np.iscomplexobj(x) and not np.iscomplexobj(np.zeros(0, self.inner.dtype))
        return getattr(self.inner * complex(1) if complex_x else self.inner, name)(x)

    def matvec(self, x):
        return self._apply("matvec", x)

    def matmat(self, X):
        return self._apply("matmat", X)

    def rmatvec(self, x):
        return self._apply("rmatvec", x)

    def rmatmat(self, X):
        return self._apply("rmatmat", X)

    @property
    def H(self):
        return Wrapped(self.inner.H)

    @property
    def T(self):
        return Wrapped(self.inner.T)

    def adjoint(self):
        return Wrapped(self.inner.adjoint())

    def __matmul__(self, other):
        if isinstance(other, Wrapped):
            return Product(self.inner @ other.inner, (self, other))
        if np.isscalar(other):
            raise ValueError("Scalar operands are not allowed, use '*' instead")
        if scipy.sparse.issparse(other):
            raise TypeError("Unable to multiply a LinearOperator with a sparse matrix.")
        return self._apply("__matmul__", other)

    dot = __matmul__

    def __rmatmul__(self, other):
        if np.isscalar(other):
            raise ValueError("Scalar operands are not allowed, use '*' instead")
        if scipy.sparse.issparse(other):
            raise TypeError("Unable to multiply a LinearOperator with a sparse matrix.")
        return self._apply("__rmatmul__", other)

    def __mul__(self, other):
        return Scaled(self.inner * other, (self, other)) if np.isscalar(other) else self @ other

    def __rmul__(self, other):
        return self * other if np.isscalar(other) else self.__rmatmul__(other)

    def __truediv__(self, factor):
        if not np.isscalar(factor):
            raise ValueError("Can only divide a linear operator by a scalar.")
        return Scaled(self.inner / factor, (self, factor))

    def __neg__(self):
        return Scaled(-self.inner, (self, -1))

    def __add__(self, other):
        return Sum(self.inner + other.inner, (self, other))

    def __sub__(self, other):
        return Sum(self.inner - other.inner, (self, other))

    def __pow__(self, exponent):
        return Power(self.inner**exponent, (self, exponent))


class Scaled(Wrapped):
    def __truediv__(self, factor):
        """SciPy combines the factors, and its tests look for the operand in ``args``."""
        result = super().__truediv__(factor)
        result.args = (self.args[0], self.args[1] / factor) if np.isscalar(factor) else ()
        return result


class Sum(Wrapped):
    pass


class Product(Wrapped):
    pass


class Power(Wrapped):
    pass


def aslinearoperator(matrix):
    """``scipy.sparse.linalg.aslinearoperator``, which keeps the data type of integers."""
    if isinstance(matrix, Wrapped):
        return matrix
    return Wrapped(mf.aslinearoperator(matrix), dtype=getattr(matrix, "dtype", None))


def from_functions(shape, matvec, rmatvec=None, matmat=None, rmatmat=None, dtype=None):
    """``scipy.sparse.linalg.LinearOperator`` of functions."""
    space = mf.space_like(np.zeros(1, dtype or float), shape[0])
    domain = mf.space_like(np.zeros(1, dtype or float), shape[1])
    return Wrapped(
        mf.FunctionOperator(
            matvec, space=space, domain=domain, matmat=matmat, rmatvec=rmatvec, rmatmat=rmatmat
        )
    )
