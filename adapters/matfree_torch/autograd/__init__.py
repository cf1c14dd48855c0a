"""Replacements for what torch differentiates incorrectly, slowly or not at all.

It may import ``distributed`` and ``matfree_torch.tensors`` only.
"""
