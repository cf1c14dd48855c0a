"""Traces and diagonals by averaging over random probes."""
