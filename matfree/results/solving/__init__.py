"""Results of linear systems."""
