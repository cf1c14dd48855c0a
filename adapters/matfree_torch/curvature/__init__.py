"""Second derivatives of the loss with respect to parameters, as linear operators."""
