"""Second derivatives of the loss with respect to parameters, as linear operators.

It may import hvp, objective, data, autograd, vectors and distributed, but none of the packages
that use its operators: analysis, activations, pyhessian and cli.
"""
