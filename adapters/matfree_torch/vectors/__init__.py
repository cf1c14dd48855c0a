"""Named tensors as one flat vector.

It may import ``distributed`` and ``matfree_torch.tensors`` only.
"""
