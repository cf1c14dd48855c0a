"""Eigenpairs and singular triplets of operators, and a search for those that were missed."""
