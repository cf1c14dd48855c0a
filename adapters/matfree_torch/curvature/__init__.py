"""Second derivatives of the loss with respect to parameters, as linear operators.

It may import ``derivative_checks`` and the packages below it (see :mod:`matfree_torch`), but none
that uses its operators: analysis, activations, pyhessian and cli.
"""
