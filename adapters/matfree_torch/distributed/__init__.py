"""Collectives, sharded layouts and DTensors: what several processes compute together."""
