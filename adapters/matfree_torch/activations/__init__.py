"""Second derivatives of the loss with respect to activations."""
