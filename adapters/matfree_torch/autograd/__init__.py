"""Replacements for what torch differentiates incorrectly, slowly or not at all."""
