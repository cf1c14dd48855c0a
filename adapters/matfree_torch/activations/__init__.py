"""Second derivatives of a loss with respect to activations, as operators and traces."""
