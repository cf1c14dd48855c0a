"""One batch of data: its structure, the tensors in it, and its weight in the loss.

It may import autograd, vectors and distributed, but not ``objective``, which combines batches.
"""
