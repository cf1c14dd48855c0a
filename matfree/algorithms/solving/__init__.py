"""Linear systems and least-squares problems, and the inverse of an operator as an operator.

Of the algorithms, it may import ``krylov`` and ``running`` only.
"""
