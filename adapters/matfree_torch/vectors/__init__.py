"""Named tensors as one flat vector."""
