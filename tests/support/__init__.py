"""Matrices with known answers, tolerances, measures, and the sharded test double."""
