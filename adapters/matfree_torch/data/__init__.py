"""One batch of data: its structure, the tensors in it, and its weight in the loss."""
