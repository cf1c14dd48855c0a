"""Traces and diagonals by sampling."""
