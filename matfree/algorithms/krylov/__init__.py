"""Lanczos factorizations."""
