"""A loss over data, evaluated without side effects on the model.

It may import data, autograd, vectors and distributed, but no package that differentiates the loss
(hvp, curvature).
"""
