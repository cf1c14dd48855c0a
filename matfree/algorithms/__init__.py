"""Randomized algorithms, one textbook page a file."""
