"""A loss over data, evaluated without side effects on the model."""
