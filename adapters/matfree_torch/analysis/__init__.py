"""Studies of a network with an operator: loss landscape, training history, batch jackknife.

It may import :mod:`matfree_torch.curvature` and the packages below it (hvp, objective, data,
autograd, vectors, distributed), but not ``activations``, ``pyhessian`` or ``cli``.
"""
