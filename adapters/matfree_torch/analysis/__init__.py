"""Studies of a network with an operator: loss landscape, training history, batch jackknife.

It may import ``curvature`` and the packages below it (see :mod:`matfree_torch`), but not
``activations``, ``pyhessian`` or ``cli``.
"""
