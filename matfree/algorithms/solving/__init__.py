"""Linear systems and least-squares problems, and the inverse of an operator as an operator.

Of the algorithms, it may import ``low_rank``, ``krylov`` and ``running`` only.
"""
