"""Results of linear systems and of functions of operators."""
