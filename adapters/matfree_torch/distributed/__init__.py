"""Distributed vectors: collectives, row-sharded vector spaces, DTensors and their redistribution.

It is the lowest package of ``matfree_torch`` and imports none of the others.
"""
