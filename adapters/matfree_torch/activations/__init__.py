"""Second derivatives of a loss with respect to activations, as operators and traces.

A *port* is a place in a network where a perturbation can be added to an activation: the input or
the output of a module. The derivatives are taken with respect to these perturbations.

It may import ``curvature`` and the packages below it (see :mod:`matfree_torch`), but not
``analysis``, ``pyhessian`` or ``cli``.
"""
