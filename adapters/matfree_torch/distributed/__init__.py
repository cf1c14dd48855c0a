"""Collective operations, sharded layouts and DTensors."""
